"""Evaluation of a policy on held-out prompts: reward, quality, divergence to the teacher, diversity, mismatch.

One completion per prompt, or a group of them, is sampled at the policy's own temperature from a random stream that
belongs to the prompt, so that two policies are compared on the same prompts and the same random numbers. Intervals are
95% percentile bootstraps over prompts; changes are paired by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlgkd.diversity import distinct, pass_at, self_bleu
from rlgkd.errors import SettingError
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.logit_filters import Filters
from rlgkd.ranks import ALONE, Ranks, with_items, without_items
from rlgkd.rollout import reference_episodes, rollout
from rlgkd.sharding import whole
from rlgkd.statistics import Interval, prompt_interval
from rlgkd.teachers import AlignedTeacher, RoutedTeachers, Teacher, cancelled_on_error, in_process
from rlgkd.token_values import token_values
from rlgkd.types import Item, Task, Trajectory

CHECKABLE = ("truth", "exact", "reward")
"""Measures that say whether a completion is correct, if they are 0 or 1 for every completion."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The completions of each prompt and their measures."""

    trajectories: list[Trajectory]
    """Sample g of prompt p at p * group + g."""
    qualities: list[dict[str, float]]
    """For each completion, the task's quality measures, which training never uses."""
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> one value per prompt, the mean over its samples; NaN where it is not defined."""
    by_position: dict[str, np.ndarray] = field(default_factory=dict)
    """`reverse_kl`, `reverse_kl_data` and their like -> [prompts, positions], nats per token; NaN after a prompt's
    longest text."""

    def __repr__(self) -> str:
        """The means: the arrays would fill pages."""
        means = ", ".join(f"{name} {values.mean():.4g}" for name, values in self.measures.items())
        return f"Evaluation({len(self.trajectories)} texts: {means})"

    def scores(self) -> dict[str, Interval]:
        """Return the mean of each measure with its interval."""
        return {name: prompt_interval(values) for name, values in self.measures.items()}

    def unknown_prompts(self) -> dict[str, tuple[int, ...]]:
        """Return the measures that are not known at some prompts, such as where a reward failed, with their numbers."""
        found = {name: tuple(np.flatnonzero(~np.isfinite(values)).tolist()) for name, values in self.measures.items()}
        return {name: prompts for name, prompts in found.items() if prompts}

    def change_from(self, before: Evaluation) -> dict[str, Interval]:
        """Return the change since `before`, paired by prompt, for the measures that both have.

        Raises: SettingError if the two have different prompts.
        """
        keys = [[t.item.key for t in evaluation.trajectories] for evaluation in (self, before)]
        if keys[0] != keys[1]:
            raise SettingError("before", keys[1][:1], "compare evaluations of the same prompts")
        return {
            name: prompt_interval(values - before.measures[name])
            for name, values in self.measures.items()
            if name in before.measures
        }


def evaluate(
    policy: LanguageModel | RoutedTeachers,
    teacher: Teacher | None,
    task: Task,
    *,
    split: str = "test",
    prompts: int = 256,
    seed: int = 0,
    group: int = 1,
    greedy: bool = False,
    batch_size: int = 64,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    forward_kl: bool = False,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Sample `group` completions for each of the split's first `prompts` items and measure them.

    Measures, per prompt:
    - `reward`, and the task's quality measures;
    - `length` in tokens; `ended`: 1 if the completion ended with an end token or a stop string;
    - `entropy`, nats per token, at the policy's own prefixes;
    - given a teacher, `reverse_kl`: KL(policy || teacher), nats per token, at the policy's own prefixes, and
      `reverse_kl_data`: the same at the references' prefixes, if there are any. The gap between the two is the
      train-inference mismatch. A served teacher gives them over its top k tokens and one bucket, never more than the
      whole, and NaN for a prompt at which it fails; one that gives no tokens but the written ones, or is a file, none.
      One with other tokens gives `reverse_kl` by the log-ratios of the sampled spans, or both through its map;
    - with `forward_kl`, `forward_kl` and `forward_kl_data` too: KL(teacher || policy) at the same prefixes, wherever
      the teacher gives a distribution;
    - for a group of two or more, `self_bleu` and `distinct1` to `distinct3` of its completions and, for each measure of
      CHECKABLE that is 0 or 1, `truth@2` and its like: the probability that one of so many completions is correct, for
      powers of two.

    With `top_k`, `top_p` or `min_p` (rlgkd.ops.logit_filters) completions are sampled from the likelier tokens alone.
    Entropy and divergences stay those of the whole tempered distributions, at the prefixes sampled in this way.

    A text ends with the end tokens of task and policy; neither is changed. Of teachers of which each text has one, the
    item's own writes and measures.

    The `ranks` of a job share the batches of `batch_size` prompts; the numbers are those of one process to the bit. All
    of them have to call this, and all get the whole.

    Raises: SettingError if prompts or group < 1, or for a filter outside its range or combined with `greedy`.
    """
    draw = _Draw(task, group, seed, greedy, Filters(top_k=top_k, top_p=top_p, min_p=min_p), forward_kl)
    counts: Any = (prompts, group)
    if not all(isinstance(count, int | np.integer) and count >= 1 for count in counts):
        raise SettingError("prompts", prompts, "evaluate at least 1, with at least 1 sample of each")
    if teacher is not None and not in_process(teacher) and not (teacher.takes_any_text and teacher.top_k):
        teacher = None
    prompts = min(prompts, task.size(split))
    items = [task.item(split, seed, index) for index in range(prompts)]
    batches = [items[start : start + batch_size] for start in range(0, prompts, batch_size)]

    def measure() -> list[_BatchMeasures]:
        own = [_measure_batch(policy, teacher, batches[number], draw) for number in ranks.share(len(batches))]
        return [one.with_texts(without_items) for one in own] if ranks.size > 1 else own

    with whole(policy, teacher):
        measured = [one for part in ranks.gather(measure) for one in part]
    if ranks.size > 1:
        measured = [one.with_texts(lambda texts: with_items(texts, items)) for one in measured]
    trajectories = [t for one in measured for t in one.trajectories]
    rows_of: dict[str, list[np.ndarray]] = {}
    for one in measured:
        for name, rows in one.token_values.items():
            rows_of.setdefault(name, []).extend(rows)

    texts = [t.text for t in trajectories]
    qualities = task.quality([t.item for t in trajectories], texts)
    columns = {"reward": [t.score.reward for t in trajectories]}
    for name in dict.fromkeys(name for quality in qualities for name in quality):
        columns[name] = [quality.get(name, np.nan) for quality in qualities]
    measures_PG = {name: np.array(values).reshape(prompts, group) for name, values in columns.items()}
    if group > 1:
        measures_PG |= _group_measures(measures_PG, [texts[row : row + group] for row in range(0, len(texts), group)])
    # What some batch could not measure (no reference at an item, no teacher's tokens) is a measure of none.
    complete = {name: rows for name, rows in rows_of.items() if len(rows) in (prompts, prompts * group)}
    for name, rows in complete.items():
        measures_PG[name] = np.array([float(row.mean()) for row in rows]).reshape(prompts, -1)
    measures_PG["length"] = np.array([float(t.length) for t in trajectories]).reshape(prompts, group)
    measures_PG["ended"] = np.array([float(t.stop == "end") for t in trajectories]).reshape(prompts, group)
    return Evaluation(
        trajectories=trajectories,
        qualities=qualities,
        measures={name: values_PG.mean(axis=1) for name, values_PG in measures_PG.items()},
        by_position={name: _position_means(rows, prompts) for name, rows in complete.items() if "kl" in name},
    )


@dataclass(frozen=True)
class _Draw:
    """How completions are sampled."""

    task: Task
    group: int
    seed: int
    greedy: bool
    filters: Filters
    forward_kl: bool
    """Whether the divergence is measured in this direction too."""


@dataclass(frozen=True)
class _BatchMeasures:
    """What is sampled and measured in one go."""

    trajectories: list[Trajectory]
    token_values: dict[str, list[np.ndarray]]
    """`NAME_kl_data` has a row for each prompt, or is missing; the others have one for each trajectory."""

    def with_texts(self, change: Callable[[Sequence[Trajectory]], list[Trajectory]]) -> _BatchMeasures:
        return replace(self, trajectories=change(self.trajectories))


def _measure_batch(
    policy: LanguageModel | RoutedTeachers,
    teacher: Teacher | None,
    items: Sequence[Item],
    draw: _Draw,
) -> _BatchMeasures:
    """Sample the completions of some items, and measure their tokens and those of the references."""
    several = next((one for one in (teacher, policy) if isinstance(one, RoutedTeachers)), None)
    if several is not None:
        return _measure_each(several, policy, teacher, items, draw)
    assert isinstance(policy, LanguageModel)
    sampled = rollout(
        policy, draw.task, items, group=draw.group, seed=draw.seed, greedy=draw.greedy, filters=draw.filters
    )
    by_spans = isinstance(teacher, AlignedTeacher) and teacher.map is None  # whose texts the student must have sampled
    has_references = teacher is not None and not by_spans and all(item.reference for item in items)
    given = reference_episodes(policy, draw.task, items) if has_references else []
    values = {"entropy": [t.entropy_T[t.action_mask_T] for t in sampled]}
    if draw.filters or teacher is not None:  # with a filter, the recorded entropy is not that of the policy
        # One forward pass for both, since they share their prompts.
        with cancelled_on_error(teacher):
            values |= token_values(
                policy, teacher, [*sampled, *given], entropy=bool(draw.filters), forward_kl=draw.forward_kl
            )
    measures = {name: rows[: len(sampled)] for name, rows in values.items()}
    if has_references:
        measures |= {f"{name}_data": rows[len(sampled) :] for name, rows in values.items() if name.endswith("_kl")}
    return _BatchMeasures(sampled, measures)


def _measure_each(
    several: RoutedTeachers,
    policy: LanguageModel | RoutedTeachers,
    teacher: Teacher | None,
    items: Sequence[Item],
    draw: _Draw,
) -> _BatchMeasures:
    """`_measure_batch` of the items of each teacher, put back in their order."""
    trajectories: dict[int, list[Trajectory]] = {}
    values: dict[str, dict[int, list[np.ndarray]]] = {}
    for lm, rows in several.parts(items):
        writes, reads = (lm if isinstance(one, RoutedTeachers) else one for one in (policy, teacher))
        assert isinstance(writes, LanguageModel)
        part = _measure_batch(writes, reads, [items[row] for row in rows], draw)
        for n, row in enumerate(rows):
            trajectories[row] = part.trajectories[n * draw.group : (n + 1) * draw.group]
            for name, found in part.token_values.items():
                each = len(found) // len(rows)
                values.setdefault(name, {})[row] = found[n * each : (n + 1) * each]
    return _BatchMeasures(
        [t for row in range(len(items)) for t in trajectories[row]],
        {
            name: [one for row in range(len(items)) for one in found[row]]
            for name, found in values.items()
            if len(found) == len(items)
        },
    )


def _group_measures(measures_PG: dict[str, np.ndarray], groups: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Return the measures of each prompt's completions taken together, [prompts, 1]."""
    found = {f"distinct{n}": [distinct(texts, n) for texts in groups] for n in (1, 2, 3)}
    found["self_bleu"] = [self_bleu(texts) for texts in groups]
    samples = len(groups[0])
    powers_of_two = [2**power for power in range(1, samples.bit_length())]
    for name in CHECKABLE:
        if name in measures_PG and np.isin(measures_PG[name], (0.0, 1.0)).all():
            right_P = measures_PG[name].sum(axis=1).astype(int).tolist()
            for k in powers_of_two:
                found[f"{name}@{k}"] = [pass_at(k, right=right, samples=samples) for right in right_P]
    return {name: np.array(values)[:, None] for name, values in found.items()}


def _position_means(rows: Sequence[np.ndarray], prompts: int) -> np.ndarray:
    """Return [prompts, positions], the mean at each position over a prompt's completions that reach it."""
    group = len(rows) // prompts
    padded_PGL = np.full((prompts, group, max(map(len, rows))), np.nan)
    for number, row in enumerate(rows):
        prompt, sample = divmod(number, group)
        padded_PGL[prompt, sample, : len(row)] = row
    count_PL = np.isfinite(padded_PGL).sum(axis=1)
    return np.where(count_PL > 0, np.nansum(padded_PGL, axis=1) / np.maximum(count_PL, 1), np.nan)
