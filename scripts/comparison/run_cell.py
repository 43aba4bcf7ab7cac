"""One run of a comparison: trained into its folder as `rlgkd train` would, then measured. And the untrained models.

`measured.json` in the run's folder holds all that a comparison reads: each measure's value for each prompt, the
divergence at each position, some completions, and how training went, with the measures that training did not see
computed afterwards on the completions that it sampled. No times and no paths: the same run gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents.agent_settings import TeacherSettings
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.teachers import fitted, open_outside_teacher, open_several, open_teacher
from rlgkd.errors import CheckpointError
from rlgkd.evaluation import Evaluation, evaluate
from rlgkd.file_kinds import check_file
from rlgkd.lm.loading import load
from rlgkd.lm.model import LanguageModel
from rlgkd.scripts.config.reading import dump, read
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.report.progress_csv import read_table
from rlgkd.scripts.runs.fit import fit
from rlgkd.scripts.runs.folder import CONFIG, PROGRESS, ROLLOUTS, locked
from rlgkd.scripts.runs.rewind import rewind
from rlgkd.scripts.runs.rollouts import records
from rlgkd.scripts.runs.stopping import stoppable
from rlgkd.scripts.runs.tracked import tracked
from rlgkd.scripts.runs.train import build_agent
from rlgkd.secret_masks import masked
from rlgkd.teachers import RoutedTeachers, Teacher
from rlgkd.teachers.names import is_outside, is_self
from rlgkd.types import ON_POLICY, Task

MEASURED = "measured.json"
PARTS = {"by", "prompts", "measures", "by_position", "texts"}
"""What it holds of any model; a file that lacks one is not whole."""
SHOWN_TEXTS = 24
"""Prompts whose completions are kept for the report."""
CURVE_POINTS = 200
"""Most points of a curve; a longer one is averaged in blocks."""
HOW_IT_MOVES = ("teacher_decay", "divergence_target", "alpha_rate", "sibling_from")
"""Settings of the teacher on which it does not depend as it is before training."""
EVALUATION_SETTINGS = ("eval_split", "eval_prompts", "eval_seed")
OF_EVERY_EVALUATION = (*EVALUATION_SETTINGS, "eval_forward_kl")
CURVES = {
    "tokens": "time/total_timesteps",
    "reward": "rollout/ep_rew_mean",
    "divergence": "train/divergence",
    "length": "rollout/ep_len_mean",
    "entropy": "train/entropy",
    "ended": "rollout/ended",
    "alpha": "train/alpha",
}
"""Name of a curve -> its column in progress.csv."""


def train_and_measure(settings: RunConfig, base: RunConfig, samples: int, out: Path) -> None:
    """Train into `out`, from wherever an earlier call came to, and measure.

    Raises: CheckpointError if the folder holds another run; SettingError, ModelError, DataError, RewardError.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=True):  # the process of a comparison that was killed may still hold it
        check_same(settings, out)
        checkpoint.atomic_write(out / CONFIG, dump(settings))
        agent = build_agent(settings)
        opened = _comparison_teacher(base, agent, settings)  # before training, for what refuses it
        # With a teacher of the agent's next to it there would be two in memory; if nothing needs it on the way, it is
        # opened again.
        teacher = opened if settings.eval_every or agent.teacher is None or opened is agent.teacher else None
        del opened
        console = Console(stderr=True)
        found = rewind(settings, agent, out, console)
        with (
            stoppable("the command of the comparison", console, second_ends=False) as stop,
            tracked(settings, out, console, main=True) as trackers,
        ):
            fit(settings, agent, out, stop, found, teacher, trackers=trackers, quiet=True, console=console)
        teacher = teacher or _comparison_teacher(base, agent, settings)
        measured = measure(agent.student, teacher, agent.task, base, samples)
        measured["tokens"] = agent.num_timesteps
        measured["updates"] = agent.state.updates
        measured["training"] = training_curves(settings, agent, out)
        write(measured, base, samples, out)


def measure_untrained(settings: RunConfig, base: RunConfig, samples: int, out: Path, *, teacher: bool) -> None:
    """Measure a model that the comparison does not train: its teacher, or the student before training."""
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=True):
        agent = build_agent(settings)
        teacher_model = _comparison_teacher(base, agent, settings)
        policy = teacher_model if teacher else agent.student
        assert isinstance(policy, LanguageModel | RoutedTeachers), "a teacher that writes texts"
        write(measure(policy, teacher_model, agent.task, base, samples), base, samples, out)


def is_measured(base: RunConfig, samples: int, out: Path) -> bool:
    """Return whether the folder has been measured in the way of this comparison."""
    try:
        check_file(out / MEASURED)
        measured = json.loads((out / MEASURED).read_text(encoding="utf-8"))
        if measured["by"] != _fingerprint(base, samples) or not measured.keys() >= PARTS:
            return False
        numbers = [value for values in measured["measures"].values() for value in values]
        return all(value is None or isinstance(value, int | float) for value in numbers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def check_same(settings: RunConfig, out: Path) -> None:
    """Raise CheckpointError if the folder holds the run of other settings."""
    if not (out / CONFIG).is_file():
        return
    theirs, ours = masked(read(out / CONFIG).flat()), masked(settings.flat())
    for name, value in theirs.items():
        if name not in OF_EVERY_EVALUATION and value != ours.get(name):
            remedy = f"its {name} is {value!r}, not {ours.get(name)!r}; give another --out"
            raise CheckpointError("out", str(out), remedy)


def measure(
    policy: LanguageModel | RoutedTeachers, teacher: Teacher | None, task: Task, base: RunConfig, samples: int
) -> dict[str, Any]:
    """Return the evaluation as plain numbers and texts."""
    evaluation = evaluate(
        policy,
        teacher,
        task,
        split=base.eval_split,
        prompts=base.eval_prompts,
        seed=base.eval_seed,
        group=samples,
        forward_kl=base.eval_forward_kl,
    )
    first_rows = range(0, len(evaluation.trajectories), samples)
    return {
        "prompts": [evaluation.trajectories[row].item.key for row in first_rows],
        "measures": {name: rounded(values) for name, values in evaluation.measures.items()},
        "by_position": {name: [rounded(row) for row in rows] for name, rows in evaluation.by_position.items()},
        "texts": [_text_record(evaluation, row) for row in first_rows[:SHOWN_TEXTS]],
        "first_texts": [evaluation.trajectories[row].transcript for row in first_rows],
    }


def training_curves(settings: RunConfig, agent: TextAlgorithm, out: Path) -> dict[str, list[float | None]]:
    """Return how training went: curves of progress.csv, and the unseen measures of the completions it sampled."""
    names, rows = read_table((out / PROGRESS).read_text(encoding="utf-8"))
    columns = {name: [to_float(row[number]) for row in rows] for number, name in enumerate(names)}
    curves = {name: columns[column] for name, column in CURVES.items() if column in columns}
    curves |= _unseen_measures(settings, agent, out, len(rows))
    return {name: rounded(block_means(values)) for name, values in curves.items()}


def block_means(values: Sequence[float]) -> np.ndarray:
    """Average a curve in at most CURVE_POINTS blocks; NaN values are left out, and a block of them alone is NaN."""
    if not len(values):
        return np.array([])
    blocks = np.array_split(np.array(values, dtype=np.float64), min(CURVE_POINTS, len(values)))
    return np.array([block[np.isfinite(block)].mean() if np.isfinite(block).any() else np.nan for block in blocks])


def rounded(values: Any) -> list[float | None]:
    """Round to six significant digits; null for what is not a number."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in np.asarray(values).tolist()]


def write(measured: Mapping[str, Any], base: RunConfig, samples: int, out: Path) -> None:
    """Write `measured.json`, whole or not at all."""
    checkpoint.atomic_write(out / MEASURED, json.dumps({"by": _fingerprint(base, samples), **measured}) + "\n")


def _fingerprint(base: RunConfig, samples: int) -> dict[str, Any]:
    """Return all that decides the evaluation: a change of it makes a measurement out of date."""
    names = ("env", "env_settings", "teacher", "teacher_temperature", *EVALUATION_SETTINGS)
    given = masked(base.flat())
    # Measurements of before this setting hold for its default.
    later = {
        name: given[name]
        for name in ("teacher_dtype", "teacher_quantization")
        if given[name] != TeacherSettings.model_fields[name].default
    }
    if base.eval_forward_kl:
        later["eval_forward_kl"] = True
    if is_outside(base.teacher):
        later["teacher_top_k"] = given["teacher_top_k"]
    return {"samples": samples, **{name: given[name] for name in names}, **later}


def _comparison_teacher(base: RunConfig, agent: TextAlgorithm, settings: RunConfig) -> Teacher | None:
    """The comparison's teacher, as it is before any training: the agent's own, unless that is another or moves."""
    if not base.teacher:
        return None
    if agent.teacher is not None and agent.following_teacher is None and _models(settings) == _models(base):
        return agent.teacher
    if isinstance(base.teacher, str) and is_outside(base.teacher):
        return open_outside_teacher(agent.task, base.algorithm, base.teacher, agent.student.tokenizer)
    how = {"device": agent.device}
    if isinstance(base.teacher, dict):
        teachers = {name: base.student if is_self(one) else one for name, one in base.teacher.items()}
        return open_several(agent.task, base.algorithm, teachers, agent.student, **how)
    name, opened = base.teacher, None
    if is_self(name):
        layers = base.algorithm.model.student_layers
        name, opened = base.student, load(base.student, layers=() if isinstance(layers, int) else layers)
    config = base.algorithm
    if is_self(config.teacher.reference_model):
        of_the_start = config.teacher.model_copy(update={"reference_model": base.student})
        config = config.model_copy(update={"teacher": of_the_start})
    teacher = open_teacher(agent.task, config, name, agent.student.tokenizer, opened=opened, **how)
    own_format = name != base.student
    return fitted(agent.task, config, teacher, agent.student, name=name, own_format=own_format, **how)


def _models(settings: RunConfig) -> tuple[object, ...]:
    """What a teacher depends on, and what is known of one that is elsewhere."""
    config = settings.algorithm
    given = config.teacher
    opened = tuple(value for name, value in given.flat().items() if name not in HOW_IT_MOVES)
    known = config.known_tokens if is_outside(settings.teacher) else None
    return settings.teacher, settings.student, config.model.dtype, config.sampling.teacher_temperature, opened, known


def _text_record(evaluation: Evaluation, row: int) -> dict[str, Any]:
    trajectory = evaluation.trajectories[row]
    measures = {"reward": trajectory.score.reward, **evaluation.qualities[row]}
    return {
        "prompt": trajectory.item.prompt,
        "reference": trajectory.item.reference,
        "text": trajectory.transcript,
        "measures": dict(zip(measures, rounded(list(measures.values())), strict=True)),
        "stop": str(trajectory.stop),
    }


def _unseen_measures(settings: RunConfig, agent: TextAlgorithm, out: Path, updates: int) -> dict[str, list[float]]:
    """Return each measure's mean over the on-policy completions of each update; NaN for updates without any."""
    stream = range(updates * settings.algorithm.sampling.prompts_per_update)
    items = {item.key: item for item in (agent.task.item(agent.split, settings.seed, index) for index in stream)}
    completions: dict[int, list[tuple[str, str]]] = defaultdict(list)  # update -> (key of the item, text)
    for record in records(out / ROLLOUTS):
        if record["source"] in ON_POLICY:
            completions[record["step"]].append((record["key"], record["completion"]))
    means: dict[str, list[float]] = {}
    for update in range(updates):
        keys = [key for key, _ in completions[update]]
        texts = [text for _, text in completions[update]]
        qualities = agent.task.quality([items[key] for key in keys], texts)
        for name in dict.fromkeys(name for quality in qualities for name in quality):
            values = [quality[name] for quality in qualities if name in quality]
            means.setdefault(name, [math.nan] * updates)[update] = float(np.mean(values))
    return means
