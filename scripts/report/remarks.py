"""Sentences about a finished run that its table does not say: what was changed, failed, collapsed or was exploited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from rlgkd.scripts._change_text import change_text
from rlgkd.scripts.report.formatting import whole
from rlgkd.scripts.report.lenient import to_float, to_interval, to_list, to_mapping
from rlgkd.scripts.report.metrics import MeasureRow, measure_rows, metric_of

COLLAPSED: Final = 0.1
"""Texts have collapsed if few are distinct, and their entropy is below this share of the start's and the teacher's."""
FEW_DISTINCT: Final = 0.5
"""Few are distinct if fewer than this share of the texts to different prompts are."""
RANDOM: Final = 3.0
"""Texts have become random if their entropy is above this multiple of the start's and of the teacher's."""
LEFT_TEACHER: Final = 3.0
"""The student has left the teacher if the reverse KL is above this multiple of the start's, and above 1 nat."""
NEVER_ENDED: Final = 0.05
"""Texts do not end if fewer than this share of them end by themselves."""
RAISED: Final = ("reward", "ended")
"""Measures that are raised by texts that have gone wrong: a short word again and again ends by itself."""
OTHER_LENGTH: Final = 1.3
"""The factor in length from which on a rise of the reward may be one of length alone."""


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """Return the sentences on a `summary.json`, each with what to look at or to change."""
    of_reward = _of_reward(to_mapping(summary.get("rewards")))
    of_evaluations = _of_evaluations(to_mapping(summary.get("held_out")), to_float(summary.get("tokens")))
    return [*_changes(summary.get("changes")), *of_evaluations, *of_reward, *_doubts(summary), *_of_ends(summary)]


def judged_rows(summary: Mapping[str, Any]) -> list[MeasureRow]:
    """The rows of the table; a rise that texts gone wrong have, too, is called in doubt and not better."""
    rows = measure_rows(summary)
    if not _doubts(summary):
        return rows
    return [replace(row, mark="doubtful") if row.mark == "better" and row.metric.key in RAISED else row for row in rows]


def _changes(value: object) -> list[str]:
    """One for each setting that was changed; entries that are none are left out."""
    return [
        f"A setting was changed while the run was stopped: {_change(entry)}."
        for entry in to_list(value)
        if isinstance(entry, Mapping)
    ]


def _change(entry: Mapping[str, Any]) -> str:
    tokens = whole(to_float(entry.get("tokens"))) or "an unknown number of"
    return change_text(entry.get("setting"), entry.get("old"), entry.get("new"), tokens)


def _of_evaluations(held_out: Mapping[str, Any], tokens: float) -> list[str]:
    """One if evaluations on the way ended the training, one if the best model is not the last one."""
    best = to_mapping(held_out.get("best"))
    at, metric = to_float(best.get("tokens")), metric_of(str(held_out.get("keep_best")).lstrip("+-"))
    value = f"{metric.value(to_float(best.get('value')))} after {whole(at)} tokens"
    sentences = []
    if held_out.get("ended_early") is True and math.isfinite(at):
        since = whole(to_float(held_out.get("since_best")))
        sentences.append(
            f"Training ended early: {since} evaluations on held-out prompts in a row were no better in "
            f"{metric.label_in_text} than {value}. Its schedules did not come to their end."
        )
    if at < tokens:
        prompts = f"{whole(to_float(held_out.get('prompts')))} {held_out.get('split')} prompts"
        sentences.append(
            f"The last model is not the best on the way, which is in the folder best: {metric.label_in_text} was "
            f"{value}, on {prompts}. The best of several looks better there than it is."
        )
    return sentences


def _of_reward(rewards: Mapping[str, Any]) -> list[str]:
    """One for a reward that never differed, one if it failed."""
    always, scored, failed = (to_float(rewards.get(name)) for name in ("always", "scored", "failed"))
    sentences = []
    if math.isfinite(always):
        sentences.append(
            f"The reward was the same, {always:.3f}, for all samples: nothing to learn from; look at rollouts.jsonl."
        )
    if failed > 0:
        reason = str(rewards.get("first_failure") or "it returned NaN")
        sentences.append(
            f"The reward failed for {failed:,.0f} of {scored:,.0f} samples, which were left out. First: {reason}"
        )
    return sentences


def _doubts(summary: Mapping[str, Any]) -> list[str]:
    """One for each way in which the texts have gone wrong; a comparison with an unknown value is false."""
    by_key = {row.metric.key: row for row in measure_rows(summary)}
    trained_on = to_list(summary.get("trained_on")) or ["reward", "teacher"]  # what older runs do not say
    follows_references = "references" in trained_on and "teacher" not in trained_on
    sentences = []
    if entropy := by_key.get("entropy"):
        before, after = entropy.before.mean, entropy.after.mean
        least, most = _range_with_teacher(entropy)
        course = f"the entropy of a token went from {before:.3f} to {after:.3f} nats"
        if after < COLLAPSED * least and not to_float(summary.get("distinct")) >= FEW_DISTINCT:
            sentences.append(
                f"The texts have collapsed: {course}, so nearly the same is written whatever the prompt. Read them; "
                "lower learning_rate, or raise alpha or entropy_bonus."
            )
        if after > RANDOM * most > 0:
            sentences.append(f"The texts have become random: {course}. Read them; lower learning_rate.")
    kl = None if follows_references else by_key.get("reverse_kl")  # which are to lead away from the start
    if kl and kl.after.mean > max(1.0, LEFT_TEACHER * kl.before.mean):
        sentences.append(
            f"The student has left its teacher: the reverse KL went from {kl.before.mean:.3f} to {kl.after.mean:.3f} "
            "nats/token. Read the texts; lower learning_rate, or raise alpha."
        )
    reward, length = by_key.get("reward"), by_key.get("length")
    if reward and length and reward.mark == "better" and "reward" in trained_on:
        before, after = length.before.mean, length.after.mean
        if after > OTHER_LENGTH * before or before > OTHER_LENGTH * after:
            sentences.append(
                f"The reward rose while the texts went from {before:.1f} to {after:.1f} tokens. Read them: a reward "
                "that pays for length is raised by length alone."
            )
    return sentences


def _of_ends(summary: Mapping[str, Any]) -> list[str]:
    """One if hardly a text ends."""
    ended = to_interval(to_mapping(summary.get("after")).get("ended")).mean
    if not ended < NEVER_ENDED:
        return []
    return [
        f"{100 * ended:.1f}% of the texts end by themselves; the others are cut at the limit. Raise max_new_tokens, "
        "give a stop string, or teach the student to end."
    ]


def _range_with_teacher(row: MeasureRow) -> tuple[float, float]:
    """The least and the greatest of the start's value and the teacher's, if that is known."""
    known = [value for value in (row.before.mean, row.teacher.mean) if math.isfinite(value)]
    return (min(known), max(known)) if known else (math.nan, math.nan)
