"""The measures of the reports: the name of each, how it is written, which direction is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rlgkd.scripts.report.formatting import DASH, signed
from rlgkd.scripts.report.lenient import to_interval, to_mapping
from rlgkd.statistics import Interval

UNIT_RANGE: Final = (0.0, 1.0)
POSITIVE: Final = (0.0, math.inf)
LEAST_BASE: Final = 1e-3
"""The least start of which a change is written in percent; a divergence below it is one of a model to itself."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measure's name, how it is written, and which direction is better."""

    key: str
    label: str
    better: int = 0
    """+1 if more is better, -1 if less is better, 0 if neither."""
    share: bool = False
    """Whether it is a share in [0, 1], written in percent; its changes are in percentage points."""
    digits: int = 3
    """Digits after the decimal point."""
    unit: str = ""
    relative: bool = False
    """Whether a change is also written in percent of the start."""
    note: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)
    """The least and the greatest possible value; for a share always 0 and 1."""

    @property
    def range(self) -> tuple[float, float]:
        """The range that its mean must lie in."""
        return UNIT_RANGE if self.share else self.limits

    @property
    def change_range(self) -> tuple[float, float]:
        """The range that a change of its mean must lie in."""
        low, high = self.range
        return low - high, high - low

    def value(self, x: float) -> str:
        """Write a value: `62.1%`, `0.412`."""
        if not math.isfinite(x):
            return DASH
        return signed(f"{100 * x:.1f}%" if self.share else f"{x:.{self.digits}f}")

    def bounds(self, low: float, high: float, *, between: str = f" {DASH} ") -> str:
        """Write an interval without a unit; empty if a bound is missing."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return ""
        factor, digits = (100, 1) if self.share else (1, self.digits)
        return between.join(signed(f"{factor * bound:.{digits}f}") for bound in (low, high))

    def change(self, x: float, start: float = math.nan) -> str:
        """Write a change: `+25.9 points`, or `-0.360 (-59%)` if the metric is relative and `start` is known."""
        if not math.isfinite(x):
            return DASH
        text = f"{100 * x:+.1f} points" if self.share else f"{x:+.{self.digits}f}"
        if self.relative and start >= LEAST_BASE:  # NaN is not
            text += f" ({100 * x / abs(start):+.0f}%)"
        return signed(text)

    def change_with_bounds(self, change: Interval) -> str:
        """Write a change and its interval: `+25.9 points (22.0 to 29.8)`."""
        return f"{self.change(change.mean)} ({self.bounds(change.low, change.high, between=' to ')})"

    @property
    def label_in_text(self) -> str:
        """The label inside a sentence: `truth`, but `ROUGE-2` and `Reverse KL`."""
        is_name = self.label.isupper() or "-" in self.label or "KL" in self.label
        return self.label if is_name else self.label.lower()


METRICS: Final = {
    metric.key: metric
    for metric in (
        Metric(key="reward", label="Reward", better=1, note="what training maximises"),
        Metric(key="truth", label="Truth", better=1, share=True, note="judged true by the exact oracle"),
        Metric(key="parsable", label="Parsable", better=1, share=True, note="the oracle can read it"),
        Metric(key="coverage", label="Coverage", better=1, share=True, note="share of the main facts stated"),
        Metric(key="exact", label="Exact", better=1, share=True, note="the reference, word for word"),
        Metric(key="found", label="Found", better=1, share=True, note="what was sought, in the last turn"),
        Metric(key="steps", label="Steps", better=1, share=True, note="written steps whose result is right"),
        Metric(key="rouge2", label="ROUGE-2", better=1, note="overlap with the reference, 0 to 1", limits=UNIT_RANGE),
        Metric(
            key="chrf",
            label="chrF",
            better=1,
            note="characters shared with the reference, 0 to 1",
            limits=UNIT_RANGE,
        ),
        Metric(key="sentence", label="Sentence", better=1, share=True, note="one line that ends in a full stop"),
        Metric(key="copied", label="Copied", share=True, note="word pairs that stand in the prompt"),
        Metric(
            key="reverse_kl",
            label="Reverse KL",
            better=-1,
            unit="nats/token",
            relative=True,
            limits=POSITIVE,
            note="student to teacher, on the student's texts",
        ),
        Metric(
            key="reverse_kl_data",
            label="Reverse KL on references",
            better=-1,
            unit="nats/token",
            relative=True,
            limits=POSITIVE,
            note="the same on the references' prefixes: the gap is the mismatch of training and generation",
        ),
        Metric(
            key="forward_kl",
            label="Forward KL",
            better=-1,
            unit="nats/token",
            relative=True,
            limits=POSITIVE,
            note="teacher to student, on the student's texts",
        ),
        Metric(
            key="forward_kl_data",
            label="Forward KL on references",
            better=-1,
            unit="nats/token",
            relative=True,
            limits=POSITIVE,
            note="the same on the references' prefixes",
        ),
        Metric(
            key="length",
            label="Length",
            digits=1,
            unit="tokens",
            limits=POSITIVE,
            note="of a text, its end included",
        ),
        Metric(key="ended", label="Ended", better=1, share=True, note="stopped by itself, not at the limit"),
        Metric(key="entropy", label="Entropy", unit="nats", limits=POSITIVE, note="of the next token; low is certain"),
        Metric(
            key="self_bleu",
            label="Self-BLEU",
            limits=UNIT_RANGE,
            note="likeness of one prompt's texts, 0 to 1; high is uniform",
        ),
        Metric(
            key="distinct1",
            label="Distinct-1",
            limits=UNIT_RANGE,
            note="share of different words; low is uniform",
        ),
        Metric(
            key="distinct2",
            label="Distinct-2",
            limits=UNIT_RANGE,
            note="share of different word pairs; low is uniform",
        ),
        Metric(
            key="distinct3",
            label="Distinct-3",
            limits=UNIT_RANGE,
            note="share of different triples of words; low is uniform",
        ),
    )
}
"""The measures that have a name here, in the order of the reports; others are shown under their key."""

DIVERGENCE_LABELS: Final = {
    "reverse_kl": "reverse KL",
    "forward_kl": "forward KL",
    "jsd": "Jensen-Shannon divergence",
    "skew_forward_kl": "skew forward KL",
    "skew_reverse_kl": "skew reverse KL",
    "jeffreys": "Jeffreys divergence",
    "adaptive_kl": "adaptive KL",
}

MARKS: Final = {
    "better": "\N{BLACK UP-POINTING TRIANGLE} better",
    "worse": "\N{BLACK DOWN-POINTING TRIANGLE} worse",
    "changed": "\N{BLACK DIAMOND} changed",
    "doubtful": "\N{WHITE UP-POINTING TRIANGLE} in doubt",
    "unclear": "\N{WHITE CIRCLE} not clear",
    "": DASH,
}
"""Verdict -> how it is shown. The first four: the 95% interval of the change excludes zero; doubtful is a rise that
texts gone wrong have, too (rlgkd.scripts.report.remarks)."""


def metric_of(key: str) -> Metric:
    """Return a measure's metric; `truth@4` is pass@4 by truth, and an unknown key becomes its own label."""
    name, at, k = key.partition("@")
    if at and name in METRICS:
        label = f"{METRICS[name].label}, pass@{k}"
        return Metric(key=key, label=label, better=1, share=True, note=f"at least one of {k} texts is right")
    return METRICS.get(key) or Metric(key=key, label=key[:1].upper() + key[1:].replace("_", " "))


def in_report_order(keys: Iterable[str]) -> list[str]:
    """Sort measures: the known ones in the order of `METRICS`, then the others as they come."""
    order = {key: position for position, key in enumerate(METRICS)}
    return sorted(keys, key=lambda key: order.get(key, len(order)))


def verdict(metric: Metric, change: Interval, start: float = math.nan) -> str:
    """Judge a change by its interval, and of a training by its start; returns a key of `MARKS`."""
    if not (math.isfinite(change.low) and math.isfinite(change.high)):
        return ""
    if change.sign == 0:
        return "unclear"
    # Neither direction of a length is better; and if the teacher is the start, any training moves away from it.
    if not metric.better or (metric.relative and start < LEAST_BASE):
        return "changed"
    return "better" if change.sign == metric.better else "worse"


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One measure before and after training, the teacher's, and the change with its verdict (a key of `MARKS`)."""

    metric: Metric
    before: Interval
    after: Interval
    teacher: Interval
    change: Interval
    mark: str

    @property
    def change_text(self) -> str:
        """The change's mean as text."""
        return self.metric.change(self.change.mean, self.before.mean)

    @property
    def course(self) -> str:
        """`from 62.1% to 88.0% (+25.9 points, 95% interval 22.0 to 29.8)`, as far as it is known."""
        unit = f" {self.metric.unit}" if self.metric.unit else ""
        if not math.isfinite(self.before.mean) or not math.isfinite(self.after.mean):
            return self.metric.value(self.after.mean) + unit
        details = [self.change_text.replace(" (", ", ").removesuffix(")")]
        bounds = self.metric.bounds(self.change.low, self.change.high, between=" to ")
        if bounds:
            details.append(f"95% interval {bounds}")
        ends = f"from {self.metric.value(self.before.mean)} to {self.metric.value(self.after.mean)}{unit}"
        return f"{ends} ({', '.join(details)})"


def measure_rows(summary: Mapping[str, Any]) -> list[MeasureRow]:
    """Return one row for each measure of a `summary.json` that has a value, in the order of the report."""
    groups = [to_mapping(summary.get(name)) for name in ("before", "after", "teacher_scores", "change")]
    rows = []
    for key in in_report_order(dict.fromkeys(str(key) for group in groups for key in group)):
        before, after, teacher, change = (to_interval(group.get(key)) for group in groups)
        if not any(math.isfinite(score.mean) for score in (before, after, teacher)):
            continue
        if not math.isfinite(change.mean):
            change = Interval(after.mean - before.mean)
        metric = metric_of(key)
        rows.append(
            MeasureRow(
                metric=metric,
                before=before,
                after=after,
                teacher=teacher,
                change=change,
                mark=verdict(metric, change, before.mean),
            )
        )
    return rows
