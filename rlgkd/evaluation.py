"""How good a policy is on held-out prompts: reward, quality, divergence to the teacher, diversity, mismatch.

One sample for each prompt, or a group of them, drawn at the policy's own temperature from streams that belong to the
prompt, so two policies are compared on the same prompts and the same random numbers. Intervals are 95% percentile
bootstraps over prompts; changes are paired by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rlgkd.diversity import distinct, pass_at, self_bleu
from rlgkd.errors import SettingError
from rlgkd.lm.fused_loss import fused_sum
from rlgkd.lm.model import LanguageModel
from rlgkd.ops import divergence, policy_loss
from rlgkd.ops.logit_filters import Filters
from rlgkd.rollout import references, rollout
from rlgkd.statistics import Interval, prompt_interval
from rlgkd.types import Batch, Task, Trajectory

CHECKABLE = ("truth", "exact", "reward")
"""Measures that decide whether a text is right, where they are 0 or 1 for every text."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was written for each prompt and what was measured of it."""

    trajectories: list[Trajectory]
    """Sample g of prompt p at p * group + g."""
    qualities: list[dict[str, float]]
    """Of each text, by measures that training never sees."""
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> one value for each prompt, the mean over its samples; NaN where it is not defined."""
    by_position: dict[str, np.ndarray] = field(default_factory=dict)
    """`reverse_kl` and `reverse_kl_data` -> [prompts, positions], nats at each token; NaN where no text is so long."""

    def scores(self) -> dict[str, Interval]:
        """The mean of each measure with its interval."""
        return {name: prompt_interval(values) for name, values in self.measures.items()}

    def change_from(self, before: Evaluation) -> dict[str, Interval]:
        """This minus `before`, paired by prompt, for the measures that both have.

        Raises: SettingError if the two are not of the same prompts.
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
    policy: LanguageModel,
    teacher: LanguageModel | None,
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
) -> Evaluation:
    """Sample `group` completions for each of the split's first `prompts` items and measure them.

    Measures, per prompt: `reward`; the task's qualities; `length` (tokens); `ended` (1 if it did so by an end
    token or a stop string); `entropy` (nats per token, at the policy's own prefixes); and given a teacher `reverse_kl`
    (KL(policy || teacher), nats per token, at the policy's own prefixes) and `reverse_kl_data` (the same at the
    references' prefixes, where there are any; the gap between the two is the train-inference mismatch). A group of two
    or more has `self_bleu` and `distinct1` to `distinct3` of its texts and, for each measure of CHECKABLE that is 0 or
    1, `truth@2` and its like: the probability that one of so many texts is right, for powers of two.

    With `top_k`, `top_p` or `min_p` (rlgkd.ops.logit_filters) the texts are sampled from the likelier tokens alone.
    Entropy and divergences stay those of the whole tempered distributions, at the prefixes that were so written.

    Raises: SettingError if prompts or group < 1, or for a filter outside its range or beside `greedy`.
    """
    filters = Filters(top_k=top_k, top_p=top_p, min_p=min_p)
    if prompts < 1 or group < 1:
        raise SettingError("prompts", prompts, "evaluate at least 1, with at least 1 sample of each")
    number = min(prompts, task.size(split))
    items = [task.item(split, seed, index) for index in range(number)]
    trajectories: list[Trajectory] = []
    tokens: dict[str, list[np.ndarray]] = {}

    def add(distances: dict[str, list[np.ndarray]], ending: str = "") -> None:
        for name, values in distances.items():
            tokens.setdefault(name + ending, []).extend(values)

    for start in range(0, number, batch_size):
        some = items[start : start + batch_size]
        written = rollout(policy, task, some, group=group, seed=seed, greedy=greedy, filters=filters)
        trajectories += written
        known = teacher is not None and all(item.reference for item in some)
        read = [*written, *(references(policy, task, some) if known else [])]
        distances = {"entropy": [t.entropy_T[t.action_mask_T] for t in written]}
        if filters or teacher is not None:  # a filter's texts were sampled from less than the policy
            distances |= _distances(policy, teacher, read, entropy=bool(filters))  # together: the prompts are the same
        add({name: values[: len(written)] for name, values in distances.items()})
        if known:
            add({"reverse_kl": distances["reverse_kl"][len(written) :]}, "_data")

    texts = [t.text for t in trajectories]
    qualities = task.quality([t.item for t in trajectories], texts)
    columns = {"reward": [t.score.reward for t in trajectories]}
    for name in dict.fromkeys(name for quality in qualities for name in quality):
        columns[name] = [quality.get(name, np.nan) for quality in qualities]
    measures = {name: np.array(values).reshape(number, group) for name, values in columns.items()}
    if group > 1:
        measures |= _of_groups(measures, [texts[row : row + group] for row in range(0, len(texts), group)])
    whole = {name: values for name, values in tokens.items() if len(values) in (number, number * group)}
    for name, values in whole.items():
        measures[name] = np.array([float(value.mean()) for value in values]).reshape(number, -1)
    measures["length"] = np.array([float(t.length) for t in trajectories]).reshape(number, group)
    measures["ended"] = np.array([float(t.stop == "end") for t in trajectories]).reshape(number, group)
    return Evaluation(
        trajectories=trajectories,
        qualities=qualities,
        measures={name: values.mean(axis=1) for name, values in measures.items()},
        by_position={name: _by_position(values, number) for name, values in whole.items() if "kl" in name},
    )


def _of_groups(measures: dict[str, np.ndarray], groups: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """What is measured of all texts of a prompt together, [prompts, 1]."""
    found = {f"distinct{n}": [distinct(texts, n) for texts in groups] for n in (1, 2, 3)}
    found["self_bleu"] = [self_bleu(texts) for texts in groups]
    samples = len(groups[0])
    for name in CHECKABLE:
        if name in measures and np.isin(measures[name], (0.0, 1.0)).all():
            right = measures[name].sum(axis=1).astype(int).tolist()
            for k in (2**power for power in range(1, samples.bit_length())):
                found[f"{name}@{k}"] = [pass_at(k, right=count, samples=samples) for count in right]
    return {name: np.array(values)[:, None] for name, values in found.items()}


def _by_position(values: Sequence[np.ndarray], prompts: int) -> np.ndarray:
    """[prompts, positions], the mean over a prompt's texts that are so long."""
    longest = max(map(len, values))
    padded = np.full((prompts, len(values) // prompts, longest), np.nan)
    for row, value in enumerate(values):
        padded[divmod(row, padded.shape[1])][: len(value)] = value
    known = np.isfinite(padded).sum(axis=1)
    return np.where(known > 0, np.nansum(padded, axis=1) / np.maximum(known, 1), np.nan)


@torch.inference_mode()
def _distances(
    policy: LanguageModel, teacher: LanguageModel | None, trajectories: Sequence[Trajectory], *, entropy: bool
) -> dict[str, list[np.ndarray]]:
    """At each completion's tokens the entropy, if it is asked for, and, given a teacher, KL(policy || teacher)."""
    batch = Batch.collate(trajectories, pad=policy.pad, device=policy.device)
    guide = None if teacher is None else (teacher, teacher.states(batch))

    def record(
        logits_NV: torch.Tensor, teacher_NV: torch.Tensor | None, _: slice
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        records = {"entropy": policy_loss.entropy(logits_NV)} if entropy else {}
        if teacher_NV is not None:
            records["reverse_kl"] = divergence.reverse_kl(teacher_NV, logits_NV)
        return logits_NV.new_zeros(()), records

    _, records = fused_sum(policy, policy.states(batch), record, guide)
    lengths = [t.length for t in trajectories]
    return {name: [row.double().cpu().numpy() for row in values.split(lengths)] for name, values in records.items()}
