"""The example completions of a report: what changed in a text, and what the reward and the oracle say of it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rlgkd.scripts.report.lenient import to_float, to_mapping
from rlgkd.scripts.report.metrics import METRICS

MOST_WORDS: Final = 800
"""Longer texts are not compared word by word: the time grows with the square of the length."""
LEAST_LIKENESS: Final = 0.4
"""Texts that have less in common are shown unmarked: marks everywhere say nothing."""

Spans = list[tuple[str, bool]]
"""Pieces of a text, each with whether it differs from the other text."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One completion of an example's prompt, and how it was judged."""

    kind: str
    """before, after or teacher."""
    label: str
    spans: Spans
    reward: str
    details: list[tuple[str, str]]
    """Name and value of the reward's parts and of other measures."""
    badges: list[tuple[str, str]]
    """Class and text of each verdict of the oracle."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt with its completions before and after training."""

    key: str
    prompt: str
    reference: str
    verdict: str
    """improved, worse or same."""
    judged_by: str
    """The measure that decides the verdict: truth or reward."""
    completions: list[Completion]


def read_example(entry: Mapping[str, Any]) -> Example:
    """Return an example of `summary.json`."""
    before, after, teacher = (to_mapping(entry.get(name)) for name in ("before", "after", "teacher"))
    old_spans, new_spans = marked_difference(_text(before), _text(after))
    completions = [
        _completion(kind, label, given, spans)
        for kind, label, given, spans in (
            ("before", "Student before", before, old_spans),
            ("after", "Student after", after, new_spans),
            ("teacher", "Teacher", teacher, [(_text(teacher), False)]),
        )
        if given
    ]
    judged_by, change = _judged_change(before, after)
    return Example(
        key=str(entry.get("key") or ""),
        prompt=str(entry.get("prompt") or "").strip(),
        reference=str(entry.get("reference") or "").strip(),
        verdict="improved" if change > 0 else "worse" if change < 0 else "same",
        judged_by=judged_by,
        completions=completions,
    )


def marked_difference(old: str, new: str) -> tuple[Spans, Spans]:
    """Mark the words in which two texts differ; long texts, and texts with little in common, come unmarked.

    Examples:
        >>> marked_difference("a farm was sold", "a farm was bought")[1]
        [('a farm was ', False), ('bought', True)]
    """
    old_words, new_words = (re.findall(r"\S+|\s+", text) for text in (old, new))
    matcher = difflib.SequenceMatcher(a=old_words, b=new_words, autojunk=False)
    if max(len(old_words), len(new_words)) > MOST_WORDS or matcher.ratio() < LEAST_LIKENESS:
        return [(old, False)], [(new, False)]
    old_spans: Spans = []
    new_spans: Spans = []
    for kind, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        differs = kind != "equal"
        if old_start < old_end:
            old_spans.append(("".join(old_words[old_start:old_end]), differs))
        if new_start < new_end:
            new_spans.append(("".join(new_words[new_start:new_end]), differs))
    return old_spans, new_spans


def _text(given: Mapping[str, Any]) -> str:
    return str(given.get("text") or "")


def _judged_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, float]:
    """Return the measure that judges a change and how much it changed: the oracle's truth if there is one."""
    truth = [to_float(to_mapping(given.get("quality")).get("truth")) for given in (before, after)]
    if math.isfinite(truth[1] - truth[0]):
        return "truth", truth[1] - truth[0]
    change = to_float(after.get("reward")) - to_float(before.get("reward"))
    return "reward", change if math.isfinite(change) else 0.0


def _completion(kind: str, label: str, given: Mapping[str, Any], spans: Spans) -> Completion:
    details = [(str(name), f"{to_float(x):.3f}") for name, x in to_mapping(given.get("parts")).items()]
    badges = []
    for key, value in to_mapping(given.get("quality")).items():
        x = to_float(value)
        if not math.isfinite(x):
            continue
        if key in ("truth", "parsable"):
            badges.append(_yes_or_no(key, x))
        elif key == "coverage":
            grade = "good" if x >= 1 else "bad" if x <= 0 else "partly"
            badges.append((grade, f"coverage {100 * x:.0f}%"))
        else:
            metric = METRICS.get(str(key))
            details.append((metric.label, metric.value(x)) if metric else (str(key), f"{x:.4g}"))
    if given.get("stop") == "length":
        details.append(("cut", "at the limit"))
    return Completion(
        kind=kind,
        label=label,
        spans=spans,
        reward=METRICS["reward"].value(to_float(given.get("reward"))),
        details=details,
        badges=badges,
    )


def _yes_or_no(key: str, x: float) -> tuple[str, str]:
    """Return class and text of a badge for a measure that is 0 or 1."""
    yes, no = ("true", "not true") if key == "truth" else ("parsable", "unparsable")
    if x not in (0, 1):
        return "partly", f"{yes} {METRICS[key].value(x)}"
    return ("good", f"\N{CHECK MARK} {yes}") if x else ("bad", f"\N{BALLOT X} {no}")
