"""Benchmarks of lm-eval on a model, and for a run on its start and teacher next to it: `rlgkd evaluate --lm-eval`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from rlgkd.devices import best_device
from rlgkd.errors import DependencyError, SettingError, one_line, shown
from rlgkd.lm import open_by_name
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.generate import run_of
from rlgkd.teachers.names import is_outside, is_self

BATCH = 8
Results = Mapping[str, Mapping[str, tuple[float, float]]]
"""Task -> measure -> (value, standard error; NaN if there is none)."""


def compared(model: str, tasks: Sequence[str], *, limit: int | None = None) -> dict[str, Results]:
    """Return the results of the model, and of a run's start and teacher, each under its role.

    Args:
        model: A model's name or path, or the folder of a run.
        tasks: Names of lm-eval's tasks, or YAML files of one's own, which may name code.
        limit: Documents of each task, at most; None takes all.

    Raises: DependencyError without lm-eval; SettingError for a task that it does not know or cannot read; ModelError.
    """
    try:
        import lm_eval  # noqa: F401 - before any model is opened
    except ImportError as error:
        raise DependencyError("lm-eval", ",".join(tasks), "install it: pip install 'rlgkd[lm-eval]'") from error
    run = run_of(model)
    chat = bool(run and run.env_settings.get("chat"))
    return {role: results(name, tasks, limit=limit, chat=chat) for role, name in models_of(model, run).items()}


def models_of(model: str, run: RunConfig | None) -> dict[str, str]:
    """Return the names of the model, of a run's start unless it was cut, and of its teacher unless it is no model."""
    models = {"model": model}
    if run is not None and not run.algorithm.model.student_layers:
        models["start"] = run.student
    if run is not None and run.teacher and not run.teacher_is_start and not is_outside(run.teacher):
        several = run.teacher if isinstance(run.teacher, dict) else {"": run.teacher}
        models |= {f"teacher {name}".strip(): one for name, one in several.items() if not is_self(one)}
    return models


def results(model: str, tasks: Sequence[str], *, limit: int | None = None, chat: bool = False) -> Results:
    """Return lm-eval's results of one model.

    Raises: SettingError for a task that lm-eval does not know or cannot read; ModelError.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = open_by_name(model, device=best_device())
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    names = [_name(Path(task)) if task.endswith((".yaml", ".yml")) else task for task in tasks]
    wrapped = HFLM(pretrained=lm.module, tokenizer=lm.tokenizer, batch_size=BATCH, max_length=lm.context)
    try:
        found = simple_evaluate(
            model=wrapped,
            tasks=names,
            limit=limit,
            log_samples=False,
            apply_chat_template=chat,
            task_manager=TaskManager(include_path=[str(file.resolve().parent) for file in files] or None),
        )
    except (KeyError, ValueError, OSError) as error:
        raise SettingError("lm-eval", ",".join(tasks), f"lm-eval does not run it: {one_line(error, 300)}") from error
    assert found is not None  # in the main process
    return {task: _measures(measured) for task, measured in found["results"].items()}


def table(found: Mapping[str, Results]) -> Table:
    """Return a row for each task and measure, a column for each model: its value and standard error."""
    shown_table = Table("task", "measure", *found)
    first = next(iter(found.values()))
    for task, measures in first.items():
        for measure in measures:
            cells = [_cell(results.get(task, {}).get(measure, (math.nan, math.nan))) for results in found.values()]
            shown_table.add_row(Text(shown(task)), Text(shown(measure)), *cells)
    return shown_table


def _name(file: Path) -> str:
    try:
        # Its own loader knows `!function`; the name alone needs none of it.
        (line,) = [line for line in file.read_text().splitlines() if line.startswith("task:")]
        return str(yaml.safe_load(line)["task"])
    except (OSError, ValueError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError("lm-eval", str(file), "give a file of a task, with a line `task: NAME`") from error


def _measures(measured: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Those among lm-eval's `acc,none`, `acc_stderr,none` and `alias` that are measures."""
    found = {}
    for key, value in measured.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        error = measured.get(f"{name}_stderr,{kind}")
        label = name if kind == "none" else f"{name}, {kind}"
        found[label] = (float(value), float(error) if isinstance(error, int | float) else math.nan)
    return found


def _cell(result: tuple[float, float]) -> str:
    value, error = result
    if not math.isfinite(value):
        return ""
    return f"{value:.4f}" + (f" (standard error {error:.4f})" if math.isfinite(error) else "")
