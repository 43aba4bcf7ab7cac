"""What a run sends to its trackers besides the numbers of each update: evaluations, texts, and its files at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from rlgkd.evaluation import Evaluation
from rlgkd.scripts._console import say
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.folder import CONFIG, PROGRESS, REPORT, SUMMARY
from rlgkd.scripts.tracking.trackers import Trackers
from rlgkd.secret_masks import masked

FILES = (CONFIG, PROGRESS, SUMMARY, REPORT)
"""Files that trackers get when the run ends; the model is not among them."""
OF_A_TEXT = ("step", "key", "source", "prompt", "completion", "reward", "parts", "length", "stop")
"""What a row of texts holds of a line of rollouts.jsonl."""


@contextmanager
def tracked(settings: RunConfig, out: Path, console: Console, *, main: bool) -> Iterator[Trackers]:
    """The run's trackers, ended with its files; without any in processes other than the main one.

    Raises: CheckpointError if the folder takes no file. What a tracker does raises nothing here.
    """
    name = out.name if out.name.startswith(settings.name) else f"{settings.name} {out.name}"
    names = settings.trackers if main else ()
    trackers = Trackers(
        names, out, name=name, project=settings.tracker_project, settings=masked(settings.flat()) if names else {}
    )
    whole = False
    try:
        yield trackers
        whole = True
    finally:
        trackers.files([out / file for file in FILES])
        for line in trackers.end(whole=whole):
            say(console, line)


def send_evaluation(trackers: Trackers, evaluation: Evaluation, tokens: int, part: str = "evaluation") -> None:
    """Send the means of an evaluation and the bounds of their intervals, as `evaluation/reward` and its like."""
    if not trackers:
        return
    values: dict[str, float] = {}
    for name, score in evaluation.scores().items():
        values |= {f"{part}/{name}": score.mean, f"{part}/{name}/low": score.low, f"{part}/{name}/high": score.high}
    trackers.numbers(values, tokens)


def text_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the trackers' table of texts, from a line of rollouts.jsonl."""
    return {name: record[name] for name in OF_A_TEXT}
