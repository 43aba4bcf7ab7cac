"""The measures of a report: how each is called, written and judged; a row for each, before, after and changed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rlgkd.statistics import Interval

Floats = np.ndarray[Any, np.dtype[np.float64]]

MINUS: Final = "\N{MINUS SIGN}"

DASH: Final = "\N{EN DASH}"

UNIT: Final = (0.0, 1.0)

POSITIVE: Final = (0.0, math.inf)

ARROW: Final = "\N{RIGHTWARDS ARROW}"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a measure is called, written and judged."""

    key: str
    label: str
    better: int = 0
    """+1 more is better, -1 less is better, 0 neither."""
    share: bool = False
    """A share in [0, 1], written in percent; its changes in percentage points."""
    digits: int = 3
    """Digits behind the point."""
    unit: str = ""
    relative: bool = False
    """Write a change in percent of the start, too."""
    note: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)
    """The least and the greatest value that is possible; a share's are 0 and 1 in any case."""

    @property
    def range(self) -> tuple[float, float]:
        """Where its mean must lie."""
        return UNIT if self.share else self.limits

    @property
    def change_range(self) -> tuple[float, float]:
        """Where the change of its mean must lie."""
        low, high = self.range
        return low - high, high - low

    def value(self, x: float) -> str:
        """A value as text: `62.1%`, `0.412`."""
        if not math.isfinite(x):
            return DASH
        return signed(f"{100 * x:.1f}%" if self.share else f"{x:.{self.digits}f}")

    def bounds(self, low: float, high: float, *, between: str = f" {DASH} ") -> str:
        """An interval as text, without a unit; empty where a bound is missing."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return ""
        factor, digits = (100, 1) if self.share else (1, self.digits)
        return between.join(signed(f"{factor * bound:.{digits}f}") for bound in (low, high))

    def change(self, x: float, start: float = math.nan) -> str:
        """A change as text: `+25.9 points`, or `-0.360 (-59%)` where the metric is relative and `start` is known."""
        if not math.isfinite(x):
            return DASH
        text = f"{100 * x:+.1f} points" if self.share else f"{x:+.{self.digits}f}"
        if self.relative and math.isfinite(start) and start != 0:
            text += f" ({100 * x / abs(start):+.0f}%)"
        return signed(text)


METRICS: Final = {
    metric.key: metric
    for metric in (
        Metric(key="reward", label="Reward", better=1, note="what training maximises"),
        Metric(key="truth", label="Truth", better=1, share=True, note="judged true by the exact oracle"),
        Metric(key="parsable", label="Parsable", better=1, share=True, note="the oracle can read it"),
        Metric(key="coverage", label="Coverage", better=1, share=True, note="share of the main facts told"),
        Metric(key="exact", label="Exact", better=1, share=True, note="the reference, word for word"),
        Metric(key="found", label="Found", better=1, share=True, note="what was sought, in the last turn"),
        Metric(key="steps", label="Steps", better=1, share=True, note="written steps whose result is right"),
        Metric(key="rouge2", label="ROUGE-2", better=1, note="overlap with the reference, 0 to 1", limits=UNIT),
        Metric(key="chrf", label="chrF", better=1, note="characters shared with the reference, 0 to 1", limits=UNIT),
        Metric(key="sentence", label="Sentence", better=1, share=True, note="one line that ends in a full stop"),
        Metric(key="copied", label="Copied", share=True, note="word pairs that stand in the prompt"),
        Metric(
            key="reverse_kl", label="Reverse KL", better=-1, unit="nats/token", relative=True, limits=POSITIVE,
            note="student to teacher, on the student's texts",
        ),
        Metric(
            key="reverse_kl_data", label="Reverse KL on references", better=-1, unit="nats/token", relative=True,
            limits=POSITIVE,
            note="the same behind the references' words: the gap is the mismatch of training and writing",
        ),
        Metric(
            key="forward_kl", label="Forward KL", better=-1, unit="nats/token", relative=True,
            limits=POSITIVE, note="teacher to student",
        ),
        Metric(
            key="length", label="Length", digits=1, unit="tokens", limits=POSITIVE, note="of a text, its end included"
        ),
        Metric(key="ended", label="Ended", better=1, share=True, note="stopped by itself, not at the limit"),
        Metric(key="entropy", label="Entropy", unit="nats", limits=POSITIVE, note="of the next token; low is certain"),
        Metric(
            key="self_bleu", label="Self-BLEU", limits=UNIT,
            note="likeness of one prompt's texts, 0 to 1; high is uniform",
        ),
        Metric(key="distinct1", label="Distinct-1", limits=UNIT, note="share of different words; low is uniform"),
        Metric(key="distinct2", label="Distinct-2", limits=UNIT, note="share of different word pairs; low is uniform"),
        Metric(
            key="distinct3", label="Distinct-3", limits=UNIT, note="share of different triples of words; low is uniform"
        ),
    )
}  # fmt: skip
"""The measures that have a name here, in the order of the report; others are shown under the name they come with."""


def metric_of(key: str) -> Metric:
    """The measure's metric; `truth@4` is pass@4 by truth, an unknown one has its key as its name."""
    name, at, k = key.partition("@")
    if at and name in METRICS:
        label = f"{METRICS[name].label}, pass@{k}"
        return Metric(key=key, label=label, better=1, share=True, note=f"at least one of {k} texts is right")
    return METRICS.get(key) or Metric(key=key, label=key[:1].upper() + key[1:].replace("_", " "))


MARKS: Final = {
    "better": "\N{BLACK UP-POINTING TRIANGLE} better",
    "worse": "\N{BLACK DOWN-POINTING TRIANGLE} worse",
    "changed": "\N{BLACK DIAMOND} changed",
    "unclear": "\N{WHITE CIRCLE} not clear",
    "": DASH,
}
"""A change's mark. The first three: its 95% interval excludes zero. `changed` is for measures without a direction."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure before and after training, the teacher's, and the change with its mark (a key of `MARKS`)."""

    metric: Metric
    before: Interval
    after: Interval
    teacher: Interval
    change: Interval
    mark: str

    @property
    def change_text(self) -> str:
        """The change's mean."""
        return self.metric.change(self.change.mean, self.before.mean)

    @property
    def sentence(self) -> str:
        """`from 62.1% to 88.0% (+25.9 points, 95% interval 22.0 to 29.8)`, as far as it is known."""
        unit = f" {self.metric.unit}" if self.metric.unit else ""
        if not math.isfinite(self.before.mean) or not math.isfinite(self.after.mean):
            return self.metric.value(self.after.mean) + unit
        told = [self.change_text.replace(" (", ", ").removesuffix(")")]
        if bounds := self.metric.bounds(self.change.low, self.change.high, between=" to "):
            told.append(f"95% interval {bounds}")
        way = f"from {self.metric.value(self.before.mean)} to {self.metric.value(self.after.mean)}{unit}"
        return f"{way} ({', '.join(told)})"


def rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row for each measure of a `summary.json`: the known ones in the order of `METRICS`, then the others."""
    groups = [mapping(summary.get(name)) for name in ("before", "after", "teacher_scores", "change")]
    keys = dict.fromkeys(str(key) for group in groups for key in group)
    found = []
    for key in sorted(keys, key=lambda key: list(METRICS).index(key) if key in METRICS else len(METRICS)):
        metric = metric_of(key)
        before, after, teacher, change = (read_interval(group.get(key)) for group in groups)
        if not math.isfinite(change.mean):
            change = Interval(mean=after.mean - before.mean)
        if any(math.isfinite(score.mean) for score in (before, after, teacher)):
            mark = verdict(metric, change)
            found.append(Row(metric=metric, before=before, after=after, teacher=teacher, change=change, mark=mark))
    return found


def read_interval(entry: object) -> Interval:
    """From the {"mean", "low", "high"} of a JSON file, or from a bare number; NaN for what is missing or broken."""
    if isinstance(entry, Mapping):
        return Interval(to_float(entry.get("mean")), to_float(entry.get("low")), to_float(entry.get("high")))
    return Interval(to_float(entry))


def verdict(metric: Metric, change: Interval) -> str:
    """A key of `MARKS`."""
    if not (math.isfinite(change.low) and math.isfinite(change.high)):
        return ""
    if change.low <= 0 <= change.high:
        return "unclear"
    if not metric.better:
        return "changed"
    return "better" if (change.low > 0) == (metric.better > 0) else "worse"


def to_float(value: object) -> float:
    """A number, or NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def signed(text: str) -> str:
    """With a proper minus sign; and what rounds to zero has no sign of less than zero."""
    text = re.sub(r"^-(0(?:\.0+)?)(?![\d.])", r"\1", text)
    return text.replace("-", MINUS)


def compact(x: float) -> str:
    """Three significant digits."""
    if not math.isfinite(x):
        return DASH
    return signed(f"{x:.3g}") if abs(x) < 1000 else thousands(x)


def three(x: float) -> str:
    """Three significant digits, zeros among them."""
    return signed(f"{x:#.3g}".rstrip(".")) if 1e-3 <= abs(x) < 1000 else compact(x)


def thousands(x: float) -> str:
    """250k, 1.2M."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return signed(f"{x / size:.3g}{name}")
    return signed(f"{x:.3g}")


def visible(text: str) -> str:
    """Printable ASCII alone: for the plots' fonts and the terminal, which obeys control characters."""
    return re.sub(r"[^ -~]+", "?", text)
