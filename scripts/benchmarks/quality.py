"""Time to quality: the seconds of training until a student is as good on held-out prompts, for rlgkd and for a peer.

    rlgkd benchmark quality [key=value ...] [--peer trl]

A cell is a method, a learning rate, a precision, a seed and who trains; it is a process of its own, and its curve over
seconds is stored as it ends, so that a benchmark that was stopped goes on where it was, and one of more seeds or rates
begins with what is there. The two sides of a pair follow each other. Seconds are those of training alone; the
measurements between two updates are the same code for both (rlgkd.scripts.benchmarks.held_out).

The first seed runs at all rates and precisions, and each side's best is chosen by it: the one that takes the least
seconds to the best level that both sides reach, in the measure that the method trains. The other seeds run by the same
recipe on both sides, which is the first rate and precision, and at each side's best.

The level of a pair is the best that both sides of it reach. Where one of them is never better than at the start it is
the start, and no number of times is given.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, MinLen
from rich.console import Console

from rlgkd.checkpoint import atomic_write
from rlgkd.errors import SettingError
from rlgkd.lm import load, load_tokenizer, save
from rlgkd.scripts._console import say
from rlgkd.scripts.benchmarks.job import rows_of
from rlgkd.scripts.benchmarks.quality_page import write_files
from rlgkd.scripts.benchmarks.workloads import FAMILIES, PEER_RUNNERS, STEP_RUNNER, THREADS, run_job
from rlgkd.scripts.runs.train import make_env
from rlgkd.settings import Settings
from rlgkd.types import Task

METHODS = {"distill": "DistillationTrainer", "gkd": "GKDTrainer", "rl": "GRPOTrainer"}
"""On-policy reverse KL, the same with half of the batches from references, and GRPO without a teacher; TRL's name of
each."""
BEST = {"reverse_kl": min, "reward": max}
"""Measures, and which of two values is better."""
DECIDES = {"distill": "reverse_kl", "gkd": "reverse_kl", "rl": "reward"}
"""The measure that a method trains, by which each side's best is chosen."""
STUDENTS = {
    **FAMILIES,
    "smollm2-24": {**FAMILIES["smollm2"], "layers": [*range(12), *range(18, 30)]},
}
"""Families, with one whose student lacks the block that `rlgkd cut` leaves out on docstrings (docs/models.md)."""
TASKS = {name: "rlgkd/GroundedSummary-v0" if name == "embedded" else "rlgkd/DocstringSummary-v0" for name in STUDENTS}
PROMPTS = 1024
"""Prompts of the training data."""
KEPT = ("curve", "seconds", "peak_mb", "versions")
"""What a cell keeps of its run."""
GROWS = ("methods", "rates", "precisions", "seeds", "out")
"""Settings that may differ between two runs in one folder."""


class Recipe(NamedTuple):
    """What differs between the cells of a method and side, besides the seed."""

    rate: float
    precision: str


Cell = tuple[str, Recipe, int, str]
"""Method, recipe, seed, side."""


class QualitySettings(Settings):
    """What `rlgkd benchmark quality` takes as key=value."""

    owner: ClassVar[str] = "quality"
    family: Literal["embedded", "smollm2", "smollm2-24"] = "embedded"
    """Models and task: the embedded ones, or 8 or 24 of SmolLM2's layers that learn from all on docstrings."""
    methods: Annotated[tuple[Literal["distill", "gkd", "rl"], ...], MinLen(1)] = ("distill",)
    """Some of distill, gkd and rl."""
    rates: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (1e-4,)
    """Learning rates: the first is that of the same recipe on both sides, all are the grid."""
    precisions: Annotated[tuple[Literal["float32", "bfloat16"], ...], MinLen(1)] = ("float32",)
    """Precisions of training, likewise; bfloat16 is mixed precision, for processors that multiply it natively."""
    seeds: Annotated[int, Ge(1)] = 1
    """Runs of each side by the same recipe and at its best, which is chosen by the first."""
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
    """Run the cells that are not there yet, and return the comparison, which the folder then has as a page, too.

    Raises: SettingError for another number of texts, or for a folder of other settings; ModelError for a cell that
        fails.
    """
    if settings.batch % 4:
        raise SettingError("batch", settings.batch, "give a multiple of 4, the samples of a prompt")
    out = Path(settings.out)
    _check_folder(settings, out)
    sides = ["rlgkd", *([peer] if peer else [])]
    recipes = [Recipe(*chosen) for chosen in product(settings.rates, settings.precisions)]
    best: dict[str, dict[str, Recipe]] = {}
    with ExitStack() as stack:
        cells = _Cells(settings, out, stack)
        for method in settings.methods:
            cells.run([(method, recipe, 0, side) for recipe in recipes for side in sides])
            best[method] = _best_recipes(method, recipes, sides, cells)
        for method, seed in product(settings.methods, range(1, settings.seeds)):
            same = [(method, recipes[0], seed, side) for side in sides]
            cells.run([*same, *((method, best[method][side], seed, side) for side in sides)])
    compared: dict[str, Any] = {
        method: _compared(method, settings, recipes[0], best[method], cells) for method in settings.methods
    }
    curves: dict[str, Any] = {
        method: _curves(method, settings, recipes[0], best[method], cells) for method in settings.methods
    }
    write_files(settings.flat(), compared, curves, out)
    return compared


class _Cells:
    """The cells of a folder; what is there is never run again, and models are made for the first that is not."""

    def __init__(self, settings: QualitySettings, out: Path, stack: ExitStack) -> None:
        self.settings, self.out, self.stack = settings, out, stack
        self.folder = Path()
        self.shared: Mapping[str, Any] = {}

    def __getitem__(self, cell: Cell) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(_file(self.out, cell).read_text(encoding="utf-8"))
        return found

    def run(self, cells: Sequence[Cell]) -> None:
        """Run those that are not there yet, in their order."""
        missing = [cell for cell in dict.fromkeys(cells) if not _file(self.out, cell).exists()]
        if missing and not self.shared:
            self.folder = Path(self.stack.enter_context(TemporaryDirectory()))
            self.shared = _shared(self.settings, self.folder)
        for number, cell in enumerate(missing, start=1):
            method, recipe, seed, side = cell
            job = {**self.shared, **_kind(method, side), "seed": seed}
            job |= {"learning_rate": recipe.rate, "precision": recipe.precision}
            run = run_job(job, STEP_RUNNER if side == "rlgkd" else PEER_RUNNERS[side], self.folder)
            kept = {name: run[name] for name in KEPT if name in run}
            atomic_write(_file(self.out, cell), json.dumps(kept))
            done = f"{method}, {recipe.rate:g}, {recipe.precision}, seed {seed}, {side}"
            say(Console(stderr=True), f"{number} of {len(missing)}: {done}")


def _best_recipes(method: str, recipes: Sequence[Recipe], sides: Sequence[str], cells: _Cells) -> dict[str, Recipe]:
    """Each side's recipe that takes the least seconds, by the first seed, to the best level that all sides reach."""
    measure = DECIDES[method]
    curves = {side: {recipe: cells[method, recipe, 0, side]["curve"] for recipe in recipes} for side in sides}
    reached = [BEST[measure](_best(curve, measure) for curve in by_recipe.values()) for by_recipe in curves.values()]
    level = _worse(measure)(reached)

    def seconds(side: str, recipe: Recipe) -> float:
        found = seconds_to(curves[side][recipe], measure, level)
        return math.inf if found is None else found

    return {side: min(recipes, key=lambda recipe: seconds(side, recipe)) for side in sides}


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
    method: str, settings: QualitySettings, first: Recipe, best: Mapping[str, Recipe], cells: _Cells
) -> dict[str, Any]:
    """Each side's curve by the first recipe and seed, and the pairs by the same recipe and at each side's best."""
    found: dict[str, Any] = {"curves": {side: cells[method, first, 0, side]["curve"] for side in best}}
    if len(best) == 1:
        return found
    ours, theirs = best
    seeds = range(settings.seeds)
    same = [(cells[method, first, s, ours], cells[method, first, s, theirs]) for s in seeds]
    at_best = [(cells[method, best[ours], s, ours], cells[method, best[theirs], s, theirs]) for s in seeds]
    steps = [statistics.median(their["seconds"]) / statistics.median(our["seconds"]) for our, their in same]
    found["best"] = {side: recipe._asdict() for side, recipe in best.items()}
    for measure in BEST:
        found[measure] = {"same_recipe": _pairs(same, measure), "each_at_its_best": _pairs(at_best, measure)}
    return {"peer": METHODS[method], "step_times_as_long": round(statistics.median(steps), 2), **found}


def _curves(
    method: str, settings: QualitySettings, first: Recipe, best: Mapping[str, Recipe], cells: _Cells
) -> dict[str, dict[str, list[Any]]]:
    """The curves of the page: by the same recipe, and at each side's best where that is another."""

    def of_seeds(side: str, recipe: Recipe) -> list[Any]:
        return [cells[method, recipe, seed, side]["curve"] for seed in range(settings.seeds)]

    same = {side: of_seeds(side, first) for side in best}
    others = {side: of_seeds(side, recipe) for side, recipe in best.items() if recipe != first}
    return {"same_recipe": same, "each_at_its_best": others}


def _pairs(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], measure: str) -> dict[str, Any]:
    """The level of each pair, the seconds of both to it, and how many times as long the second takes."""
    worse = _worse(measure)
    rows: list[dict[str, Any]] = []
    ratios: list[float] = []
    for ours, theirs in pairs:
        level = worse([_best(ours["curve"], measure), _best(theirs["curve"], measure)])
        seconds = [seconds_to(one["curve"], measure, level) for one in (ours, theirs)]
        ratio = round(seconds[1] / seconds[0], 2) if seconds[0] and seconds[1] else None
        rows.append({"level": level, "seconds": seconds, "times_as_long": ratio})
        ratios += [ratio] if ratio else []
    return {"pairs": rows, "times_as_long": round(statistics.median(ratios), 2) if ratios else None}


def _best(curve: Sequence[Mapping[str, float]], measure: str) -> float:
    return BEST[measure](point[measure] for point in curve)


def _worse(measure: str) -> Callable[[Iterable[float]], float]:
    return max if BEST[measure] is min else min


def _kind(method: str, side: str) -> dict[str, Any]:
    share = 0.5 if method == "gkd" else 1.0
    kind = "distill" if method == "gkd" and side == "rlgkd" else method
    return {"kind": kind, "student_share": share, "group": 4 if method == "rl" else 1}


def _shared(settings: QualitySettings, folder: Path) -> dict[str, Any]:
    """The part of the job that all cells have; models are saved as they are, with their own end tokens."""
    models = STUDENTS[settings.family]
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


def _file(out: Path, cell: Cell) -> Path:
    method, recipe, seed, side = cell
    precision = "" if recipe.precision == "float32" else f"{recipe.precision}-"  # folders of before had float32 alone
    return out / "cells" / f"{method}-{recipe.rate:g}-{precision}{seed}-{side}.json"


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
