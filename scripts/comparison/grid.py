"""The grid of runs of a comparison: all combinations of the values of some settings, times seeds.

The evaluation is the same for all: its prompts, its samples, and the teacher that divergences are measured to, which is
the recipe's even for a cell that trains with another or with none. So every cell and seed answers the same prompts with
the same random numbers, and differences are paired.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlgkd.errors import SettingError, unknown_remedy
from rlgkd.scripts._yaml import load_yaml
from rlgkd.scripts.config.paths import folder_name, settled
from rlgkd.scripts.config.reading import check, put_over
from rlgkd.scripts.config.run import RunConfig, setting_names
from rlgkd.scripts.config.stages import check_heard, stage_name

COMMON = (
    *("name", "env", "seed", "threads", "device", "checkpoint_every"),
    *("eval_split", "eval_prompts", "eval_seed", "eval_forward_kl"),
)
"""Settings that all cells share."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of values; it is run once for each seed."""

    name: str
    """`alpha=0.25`, or `alpha=0.25 beta=0.5`."""
    values: Mapping[str, Any]
    settings: RunConfig
    """Its settings with the first seed."""

    @property
    def folder(self) -> str:
        """The name with characters that a folder's name may have."""
        return folder_name(self.name)

    def run_folder(self, seed: int) -> str:
        """The folder of the run with this seed, inside the comparison's."""
        return f"cells/{self.folder}/seed-{seed}"

    def seeded(self, seed: int) -> RunConfig:
        """Return the settings of the run with this seed."""
        return self.settings.model_copy(update={"seed": seed})


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells, seeds, and how they are evaluated."""

    base: RunConfig
    """The settings before any is varied."""
    vary: Mapping[str, Sequence[Any]]
    cells: Sequence[Cell]
    seeds: Sequence[int]
    samples: int
    """Completions for each prompt of the evaluation."""
    baselines: Sequence[Cell]
    """The cells to measure the others against: the first and the last, or the one that was named."""


def grid(
    base: RunConfig, vary: Mapping[str, Sequence[Any]], seeds: Sequence[int], *, samples: int, baseline: str = ""
) -> Grid:
    """Return all combinations, checked before anything runs.

    Raises: SettingError for a setting that is unknown, out of range or in contradiction, for a grid without cells or
    seeds, for fewer than two prompts, and for a baseline that is no cell.
    """
    if not vary:
        raise SettingError("vary", "", "say what to compare, such as --alphas 0,0.5,1 or --vary divergence=jsd,tv")
    for key, values in vary.items():
        if key in COMMON:
            raise SettingError("vary", key, "it is common to all cells; vary another setting, and seeds with --seeds")
        if len({str(value) for value in values}) < len(values):
            raise SettingError("vary", f"{key}={values}", "give each value once")
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingError("seeds", list(seeds), "give a number of seeds, or different seeds such as 0,1,2")
    if base.eval_prompts < 2:
        raise SettingError("eval_prompts", base.eval_prompts, "intervals need at least 2 prompts, better 200")
    if samples < 1:
        raise SettingError("samples", samples, "give at least 1 text for each prompt")
    # Results depend on the number of threads: one for each cell unless a number is given.
    base = base.model_copy(update={"threads": base.threads or 1, "seed": seeds[0]})
    cells = [_cell(base, dict(zip(vary, values, strict=True))) for values in itertools.product(*vary.values())]
    if any(isinstance(number := cell.settings.algorithm.model.student_layers, int) for cell in cells):
        remedy = "cut the student once with rlgkd cut, so that all cells begin with the same"
        raise SettingError("student_layers", number, remedy)
    folders = sorted({cell.folder for cell in cells})
    if len(folders) < len(cells):
        raise SettingError("vary", folders, "two cells would share a folder")
    by_name = {cell.name: cell for cell in cells}
    if baseline and baseline not in by_name:
        raise SettingError("baseline", baseline, unknown_remedy(baseline, list(by_name)))
    # One cell alone is its own baseline, once.
    baselines = [by_name[baseline]] if baseline else [cells[0], *cells[1:][-1:]]
    return Grid(base=base, vary=vary, cells=cells, seeds=seeds, samples=samples, baselines=baselines)


def parse_variation(argument: str) -> tuple[str, list[Any]]:
    """Return the key and the values, read as YAML, of `KEY=a,b,c`.

    Raises: SettingError if it is not of that form, or has no values.

    Examples:
        >>> parse_variation("student_layers=[0, 1],[0]"), parse_variation("beta=0.1,0.5")
        (('student_layers', [[0, 1], [0]]), ('beta', [0.1, 0.5]))
    """
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise SettingError("vary", argument, "write KEY=a,b,c")
    if key not in setting_names():
        raise SettingError("vary", key, unknown_remedy(key, setting_names()))
    try:
        values = load_yaml(f"[{text}]")
    except yaml.YAMLError as error:
        raise SettingError(key, text, "write values with commas between them, each in YAML") from error
    if not values:
        raise SettingError(key, text, "give at least one value")
    return key, values


MAX_SEEDS = 10_000
"""Seeds of a comparison, each of which is a run."""


def parse_seeds(text: str) -> list[int]:
    """Return the seeds: `3` is 0, 1, 2; `4,7` is these two; `4,` is 4 alone.

    Raises: SettingError for anything else.

    Examples:
        >>> parse_seeds("3"), parse_seeds("4,7"), parse_seeds("4,")
        ([0, 1, 2], [4, 7], [4])
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 20 for part in parts if part) or not parts[0]:
        raise SettingError("seeds", text, "give a number of seeds, or seeds with commas between them")
    if len(parts) == 1 and int(text) > MAX_SEEDS:
        raise SettingError("seeds", text, f"give a number of at most {MAX_SEEDS:,}, or a seed with a comma after it")
    return list(range(int(text))) if len(parts) == 1 else [int(part) for part in parts if part]


def _cell(base: RunConfig, values: Mapping[str, Any]) -> Cell:
    """Return the cell of these values.

    Raises: SettingError for values that the settings or the agent refuse.
    """
    absolute = {key: settled(key, value, [Path()]) for key, value in values.items()}
    settings = check(put_over(base.flat(), absolute))
    check_heard(settings.stages, absolute)
    for stage in settings.parts:
        stage.algorithm.check_teacher(settings.teacher or None)
    name = " ".join(f"{key}={_value_text(key, value)}" for key, value in values.items())
    return Cell(name=name, values=values, settings=settings)


def _value_text(key: str, value: Any) -> str:
    if key == "stages" and isinstance(value, list):
        named = [part for part in value if isinstance(part, Mapping)]
        return " then ".join(str(part.get("name") or stage_name(part)) for part in named) or "none"
    return str(value).removeprefix("embedded:") if isinstance(value, str) else f"{value}"
