"""Time to quality: the seconds of training until a student is as good on held-out prompts, for rlgkd and for a peer.

    rlgkd benchmark quality [key=value ...] [--peer trl]

A cell is a method, a learning rate, a seed and who trains; it is a process of its own, and its curve over seconds is
stored as it ends, so that a benchmark that was stopped goes on where it was, and one of more seeds or rates begins with
what is there. The two sides of a pair follow each other. Seconds are those of training alone; the measurements between
two updates are the same code for both (rlgkd.scripts.benchmarks.held_out).

The level is the best that both sides of a pair reach. Where one of them is never better than at the start it is the
start, and no number of times is given.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, MinLen
from rich.console import Console

from rlgkd.checkpoint import atomic_write
from rlgkd.errors import SettingError
from rlgkd.lm import load, load_tokenizer, save
from rlgkd.scripts._console import say
from rlgkd.scripts.benchmarks.job import rows_of
from rlgkd.scripts.benchmarks.workloads import FAMILIES, PEER_RUNNERS, STEP_RUNNER, THREADS, run_job
from rlgkd.scripts.runs.train import make_env
from rlgkd.settings import Settings
from rlgkd.types import Task

METHODS = {"distill": "DistillationTrainer", "gkd": "GKDTrainer", "rl": "GRPOTrainer"}
"""On-policy reverse KL, the same with half of the batches from references, and GRPO without a teacher; TRL's name of
each."""
BEST = {"reverse_kl": min, "reward": max}
"""Measures, and which of two values is better."""
TASKS = {"embedded": "rlgkd/GroundedSummary-v0", "smollm2": "rlgkd/DocstringSummary-v0"}
PROMPTS = 1024
"""Prompts of the training data."""
KEPT = ("curve", "seconds", "peak_mb", "versions")
"""What a cell keeps of its run."""
GROWS = ("methods", "rates", "seeds", "out")
"""Settings that may differ between two runs in one folder."""


class QualitySettings(Settings):
    """What `rlgkd benchmark quality` takes as key=value."""

    owner: ClassVar[str] = "quality"
    family: Literal["embedded", "smollm2"] = "embedded"
    """Models and task: the embedded ones, or 8 of SmolLM2's layers that learn from all on docstrings."""
    methods: Annotated[tuple[Literal["distill", "gkd", "rl"], ...], MinLen(1)] = ("distill",)
    """Some of distill, gkd and rl."""
    rates: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (1e-4,)
    """Learning rates: the first is that of the same recipe on both sides, all are the grid."""
    seeds: Annotated[int, Ge(1)] = 1
    """Runs of each side at each rate; a side's best rate is chosen by the first."""
    updates: Annotated[int, Ge(1)] = 40
    """Updates of a run."""
    batch: Annotated[int, Ge(4)] = 8
    """Texts of an update; a multiple of 4."""
    new_tokens: Annotated[int, Ge(2)] = 32
    """Length limit of a text, in tokens."""
    measure_every: Annotated[int, Ge(1)] = 5
    """Updates between two measurements."""
    held_out: Annotated[int, Ge(1)] = 32
    """Prompts of them."""
    threads: Annotated[int, Ge(1)] = THREADS
    """Threads of each process."""
    out: str = "runs/quality"
    """Folder of the cells."""


def quality(settings: QualitySettings, peer: str = "") -> dict[str, Any]:
    """Run the cells that are not there yet, and return the comparison.

    Raises: SettingError for another number of texts, or for a folder of other settings; ModelError for a cell that
        fails.
    """
    if settings.batch % 4:
        raise SettingError("batch", settings.batch, "give a multiple of 4, the samples of a prompt")
    out = Path(settings.out)
    _check_folder(settings, out)
    sides = ["rlgkd", *([peer] if peer else [])]
    cells = list(product(settings.methods, settings.rates, range(settings.seeds), sides))
    missing = [cell for cell in cells if not _file(out, *cell).exists()]
    if missing:
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            shared = _shared(settings, folder)
            for number, (method, rate, seed, side) in enumerate(missing, start=1):
                job = {**shared, **_kind(method, side), "learning_rate": rate, "seed": seed}
                run = run_job(job, STEP_RUNNER if side == "rlgkd" else PEER_RUNNERS[side], folder)
                kept = {name: run[name] for name in KEPT if name in run}
                atomic_write(_file(out, method, rate, seed, side), json.dumps(kept))
                say(Console(stderr=True), f"{number} of {len(missing)}: {method}, {rate:g}, seed {seed}, {side}")
    found = {cell: json.loads(_file(out, *cell).read_text()) for cell in cells}
    return {method: _compared(method, settings, sides, found) for method in settings.methods}


def seconds_to(curve: Sequence[Mapping[str, float]], measure: str, level: float) -> float | None:
    """Return when a curve first reaches a level, on a straight line between two points; None if it never does.

    Examples:
        >>> curve = [{"seconds": 0.0, "reverse_kl": 3.0}, {"seconds": 10.0, "reverse_kl": 1.0}]
        >>> seconds_to(curve, "reverse_kl", 1.5), seconds_to(curve, "reverse_kl", 0.5)
        (7.5, None)
    """
    better = BEST[measure]
    before: Mapping[str, float] | None = None
    for point in curve:
        value = point[measure]
        if better(value, level) == value:
            if before is None or value == before[measure]:
                return point["seconds"]
            share = (before[measure] - level) / (before[measure] - value)
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def _compared(
    method: str, settings: QualitySettings, sides: Sequence[str], cells: Mapping[tuple[Any, ...], Mapping[str, Any]]
) -> dict[str, Any]:
    """Each side's curve at the first rate, and the pairs at the same rate and at each side's best."""

    def cell(side: str, rate: float, seed: int) -> Mapping[str, Any]:
        return cells[method, rate, seed, side]

    first = settings.rates[0]
    found: dict[str, Any] = {"curves": {side: cell(side, first, 0)["curve"] for side in sides}}
    if len(sides) == 1:
        return found
    ours, theirs = sides
    seeds = range(settings.seeds)
    for measure in BEST:
        best = {}
        for side in sides:
            reached = {rate: _best(cell(side, rate, 0)["curve"], measure) for rate in settings.rates}
            best[side] = BEST[measure](reached, key=reached.__getitem__)
        found[measure] = {
            "same_recipe": _pairs([(cell(ours, first, s), cell(theirs, first, s)) for s in seeds], measure),
            "each_at_its_best": {
                "rates": best,
                **_pairs([(cell(ours, best[ours], s), cell(theirs, best[theirs], s)) for s in seeds], measure),
            },
        }
    steps = [
        statistics.median(cell(theirs, first, s)["seconds"]) / statistics.median(cell(ours, first, s)["seconds"])
        for s in seeds
    ]
    return {"peer": METHODS[method], "step_times_as_long": round(statistics.median(steps), 2), **found}


def _pairs(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], measure: str) -> dict[str, Any]:
    """The level of each pair, the seconds of both to it, and how many times as long the second takes."""
    worse = max if BEST[measure] is min else min
    rows: list[dict[str, Any]] = []
    ratios: list[float] = []
    for ours, theirs in pairs:
        level = worse(_best(ours["curve"], measure), _best(theirs["curve"], measure))
        seconds = [seconds_to(one["curve"], measure, level) for one in (ours, theirs)]
        ratio = round(seconds[1] / seconds[0], 2) if seconds[0] and seconds[1] else None
        rows.append({"level": level, "seconds": seconds, "times_as_long": ratio})
        ratios += [ratio] if ratio else []
    return {"pairs": rows, "times_as_long": round(statistics.median(ratios), 2) if ratios else None}


def _best(curve: Sequence[Mapping[str, float]], measure: str) -> float:
    return BEST[measure](point[measure] for point in curve)


def _kind(method: str, side: str) -> dict[str, Any]:
    share = 0.5 if method == "gkd" else 1.0
    kind = "distill" if method == "gkd" and side == "rlgkd" else method
    return {"kind": kind, "student_share": share, "group": 4 if method == "rl" else 1}


def _shared(settings: QualitySettings, folder: Path) -> dict[str, Any]:
    """The part of the job that all cells have; models are saved as they are, with their own end tokens."""
    models = FAMILIES[settings.family]
    tokenizer = load_tokenizer(models["teacher"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = models["end"]
    for role, layers in (("teacher", ()), ("student", models["layers"])):
        save(load(models[role], layers=layers), tokenizer, folder / role)
    task = make_env(TASKS[settings.family], {}, student=str(folder / "teacher"), seed=0).task
    prompts, references = _texts(task, "train", PROMPTS)
    held_prompts, held_references = _texts(task, "test", settings.held_out)
    return {
        "student": str(folder / "student"),
        "teacher": str(folder / "teacher"),
        "prompts": prompts,
        "references": references,
        "held_out": rows_of(held_prompts, held_references),
        "longest_prompt": max(len(tokenizer(text)["input_ids"]) for text in [*prompts, *held_prompts]),
        "measure_every": settings.measure_every,
        "batch": settings.batch,
        "new_tokens": settings.new_tokens,
        "steps": settings.updates,
        "warmup": 0,
        "threads": settings.threads,
        "bounded": False,
    }


def _texts(task: Task, split: Any, count: int) -> tuple[list[str], list[str]]:
    """Prompts as plain texts, which all trainers encode alike, and their references."""
    items = [task.item(split, 0, index) for index in range(count)]
    unlike = {item.prompt: item.reference for item in items}
    return [prompt if prompt.endswith(":") else f"{prompt}\n" for prompt in unlike], list(unlike.values())


def _file(out: Path, method: str, rate: float, seed: int, side: str) -> Path:
    return out / "cells" / f"{method}-{rate:g}-{seed}-{side}.json"


def _check_folder(settings: QualitySettings, out: Path) -> None:
    """Write the settings that all cells of a folder share, or compare them with those that are there."""
    shared = {name: value for name, value in settings.flat().items() if name not in GROWS}
    file = out / "settings.json"
    if not file.exists():
        (out / "cells").mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(shared))
    before = json.loads(file.read_text())
    for name, value in shared.items():
        if before.get(name) != value:
            raise SettingError(name, value, f"the cells in {out} have {before.get(name)}; give another `out`")
