"""One run of a comparison, trained into its folder as `rlgkd train` would and then measured; and its references.

`measured.json` in the run's folder holds all that a comparison reads: each measure's value for each prompt, the
divergence at each position, some texts, and how training went, with the measures that training did not see computed
afterwards on the texts that it sampled. No times and no paths: the same run gives the same bytes.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.build import open_teacher
from rlgkd.errors import CheckpointError
from rlgkd.evaluation import Evaluation, evaluate
from rlgkd.lm.model import LanguageModel
from rlgkd.scripts.config.run import RunConfig, dump, read
from rlgkd.scripts.runs.recorder import PROGRESS, ROLLOUTS
from rlgkd.scripts.runs.train import CONFIG, build_agent, fit, locked, rewind
from rlgkd.types import ON_POLICY, Task

MEASURED = "measured.json"
TEXTS = 24
"""Prompts whose texts are kept for reading side by side."""
POINTS = 200
"""Of a curve, at most: a longer one is averaged in blocks."""
OF_EVALUATION = ("eval_split", "eval_prompts", "eval_seed")


def run(settings: RunConfig, base: RunConfig, samples: int, out: Path) -> None:
    """Train into `out`, from where that has come, and measure.

    Raises: CheckpointError if the folder holds another run; SettingError, ModelError, DataError, RewardError.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=True):  # a comparison that was killed may not have let go yet
        check_same(settings, out)
        checkpoint.atomic_write(out / CONFIG, dump(settings))
        agent = build_agent(settings)
        guide = _teacher(base, agent)
        rewind(agent, out)
        fit(settings, agent, out, quiet=True, console=Console(stderr=True))
        found = measure(agent.student, guide, agent.task, base, samples)
        found |= {"tokens": agent.num_timesteps, "updates": agent.state.updates}
        found["training"] = training(settings, agent, out)
        write(found, base, samples, out)


def run_reference(settings: RunConfig, base: RunConfig, samples: int, out: Path, *, teacher: bool) -> None:
    """Measure what is not trained: the teacher, or the student's start."""
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=True):
        agent = build_agent(settings)
        guide = _teacher(base, agent)
        policy = guide if teacher and guide is not None else agent.student
        write(measure(policy, guide, agent.task, base, samples), base, samples, out)


def is_measured(base: RunConfig, samples: int, out: Path) -> bool:
    """Whether the folder has been measured as this comparison does it."""
    try:
        return bool(json.loads((out / MEASURED).read_text())["by"] == _by(base, samples))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_same(settings: RunConfig, out: Path) -> None:
    """Raise CheckpointError if the folder holds the run of other settings."""
    if not (out / CONFIG).is_file():
        return
    theirs, ours = read(out / CONFIG).flat(), settings.flat()
    for name, value in theirs.items():
        if name not in OF_EVALUATION and value != ours.get(name):
            remedy = f"its {name} is {value!r}, not {ours.get(name)!r}; give another --out"
            raise CheckpointError("out", str(out), remedy)


def measure(
    policy: LanguageModel, guide: LanguageModel | None, task: Task, base: RunConfig, samples: int
) -> dict[str, Any]:
    """The evaluation as plain numbers."""
    found = evaluate(
        policy, guide, task,
        split=base.eval_split, prompts=base.eval_prompts, seed=base.eval_seed, group=samples,
    )  # fmt: skip
    return {
        "prompts": [t.item.key for t in found.trajectories[::samples]],
        "measures": {name: numbers(values) for name, values in found.measures.items()},
        "by_position": {name: [numbers(row) for row in rows] for name, rows in found.by_position.items()},
        "texts": [_text(found, row) for row in range(0, len(found.trajectories), samples)][:TEXTS],
    }


def training(settings: RunConfig, agent: TextAlgorithm, out: Path) -> dict[str, list[float | None]]:
    """How training went, update by update: progress.csv, and the unseen measures of the texts that were sampled."""
    with (out / PROGRESS).open() as file:
        rows = list(csv.DictReader(file))
    names = {
        "tokens": "time/total_timesteps", "reward": "rollout/ep_rew_mean", "divergence": "train/divergence",
        "length": "rollout/ep_len_mean", "entropy": "train/entropy", "ended": "rollout/ended", "alpha": "train/alpha",
    }  # fmt: skip
    curves = {
        name: [float(row[column] or "nan") for row in rows] for name, column in names.items() if column in rows[0]
    }
    unseen = _unseen(settings, agent, out, len(rows))
    return {name: numbers(thinned(values)) for name, values in {**curves, **unseen}.items()}


def thinned(values: Sequence[float]) -> np.ndarray:
    """At most POINTS means of blocks."""
    if not len(values):
        return np.array([])
    blocks = np.array_split(np.array(values, dtype=np.float64), min(POINTS, len(values)))
    return np.array([block[np.isfinite(block)].mean() if np.isfinite(block).any() else np.nan for block in blocks])


def numbers(values: Any) -> list[float | None]:
    """Six significant digits; null for what is not a number."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in np.asarray(values).tolist()]


def write(found: Mapping[str, Any], base: RunConfig, samples: int, out: Path) -> None:
    """Write `measured.json`, whole or not at all."""
    checkpoint.atomic_write(out / MEASURED, json.dumps({"by": _by(base, samples), **found}) + "\n")


def _by(base: RunConfig, samples: int) -> dict[str, Any]:
    """How it was measured: a change of this makes it necessary anew."""
    names = ("env", "env_settings", "teacher", "teacher_temperature", *OF_EVALUATION)
    return {"samples": samples, **{name: base.flat()[name] for name in names}}


def _teacher(base: RunConfig, agent: TextAlgorithm) -> LanguageModel | None:
    """The comparison's teacher, as it is before any training."""
    if not base.teacher:
        return None
    return open_teacher(
        agent.task,
        base.teacher,
        agent.student.tokenizer,
        temperature=base.algorithm.sampling.teacher_temperature,
        device=agent.device,
    )


def _text(found: Evaluation, row: int) -> dict[str, Any]:
    written = found.trajectories[row]
    measures = {"reward": written.score.reward, **found.qualities[row]}
    return {
        "prompt": written.item.prompt, "reference": written.item.reference, "text": written.transcript,
        "measures": dict(zip(measures, numbers(list(measures.values())), strict=True)), "stop": str(written.stop),
    }  # fmt: skip


def _unseen(settings: RunConfig, agent: TextAlgorithm, out: Path, updates: int) -> dict[str, list[float]]:
    """Measure -> its mean over the texts of each update that the student sampled."""
    places = range(updates * settings.algorithm.sampling.prompts_per_update)
    items = {item.key: item for item in (agent.task.item(agent.split, settings.seed, place) for place in places)}
    written: dict[int, list[tuple[str, str]]] = defaultdict(list)
    with (out / ROLLOUTS).open() as file:
        for line in file:
            row = json.loads(line)
            if row["source"] in ON_POLICY:
                written[row["step"]].append((row["key"], row["completion"]))
    means: dict[str, list[float]] = {}
    for step in range(updates):
        texts = written[step]
        qualities = agent.task.quality([items[key] for key, _ in texts], [text for _, text in texts])
        for name in dict.fromkeys(name for quality in qualities for name in quality):
            values = [quality[name] for quality in qualities if name in quality]
            means.setdefault(name, [float("nan")] * updates)[step] = float(np.mean(values))
    return means
