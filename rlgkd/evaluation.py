"""How good a policy is on held-out prompts: reward, quality, divergence to the teacher, diversity, mismatch.

One sample for each prompt, drawn at the policy's own temperature from a stream that belongs to the prompt, so two
policies are compared on the same prompts and the same random numbers. Intervals are 95% percentile bootstraps over
prompts; changes are paired by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats

from rlgkd.errors import SettingError
from rlgkd.lm.fused import fused_sum
from rlgkd.lm.model import LanguageModel
from rlgkd.ops import divergence, policy_loss
from rlgkd.rollout import references, rollout
from rlgkd.types import Batch, Task, Trajectory

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was written for each prompt and what was measured of it."""

    trajectories: list[Trajectory]
    qualities: list[dict[str, float]]
    """Of each text, by measures that training never sees."""
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> one value for each prompt; NaN where it is not defined."""

    def scores(self) -> dict[str, Interval]:
        """The mean of each measure with its interval."""
        return {name: interval(values) for name, values in self.measures.items()}

    def change_from(self, before: Evaluation) -> dict[str, Interval]:
        """This minus `before`, paired by prompt, for the measures that both have.

        Raises: SettingError if the two are not of the same prompts.
        """
        keys = [[t.item.key for t in evaluation.trajectories] for evaluation in (self, before)]
        if keys[0] != keys[1]:
            raise SettingError("before", keys[1][:1], "compare evaluations of the same prompts")
        return {
            name: interval(values - before.measures[name])
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
    greedy: bool = False,
    batch_size: int = 64,
) -> Evaluation:
    """Sample one completion for each of the split's first `prompts` items and measure it.

    Measures, per prompt: `reward`; the task's qualities; `length` (tokens); `ended` (1 if the end token was written);
    `entropy` (nats per token, at the policy's own prefixes); and given a teacher `reverse_kl` (KL(policy || teacher),
    nats per token, at the policy's own prefixes) and `reverse_kl_data` (the same at the references' prefixes, where
    there are any; the gap between the two is the train-inference mismatch).

    Raises: SettingError if prompts < 1.
    """
    if prompts < 1:
        raise SettingError("prompts", prompts, "evaluate at least 1")
    number = min(prompts, task.size(split))
    items = [task.item(split, seed, index) for index in range(number)]
    trajectories: list[Trajectory] = []
    columns: dict[str, list[float]] = {}

    def add(name: str, values: Sequence[float]) -> None:
        columns.setdefault(name, []).extend(values)

    for start in range(0, number, batch_size):
        some = items[start : start + batch_size]
        written = rollout(policy, task, some, seed=seed, greedy=greedy)
        trajectories += written
        for name, values in _distances(policy, teacher, written).items():
            add(name, values)
        if teacher is not None and all(item.reference for item in some):
            add("reverse_kl_data", _distances(policy, teacher, references(policy, task, some))["reverse_kl"])

    qualities = task.quality(items, [t.text for t in trajectories])
    measures = {"reward": np.array([t.score.reward for t in trajectories])}
    for name in dict.fromkeys(name for quality in qualities for name in quality):
        measures[name] = np.array([quality.get(name, np.nan) for quality in qualities])
    measures |= {name: np.array(values) for name, values in columns.items() if len(values) == number}
    measures["length"] = np.array([float(t.length) for t in trajectories])
    measures["ended"] = np.array([float(t.stop == "end") for t in trajectories])
    return Evaluation(trajectories=trajectories, qualities=qualities, measures=measures)


def interval(values: np.ndarray) -> Interval:
    """Mean and 95% percentile bootstrap interval over prompts; NaN values are left out."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(values.mean())
    if len(values) == 1 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=256, rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(mean, float(result.low), float(result.high))


@torch.inference_mode()
def _distances(
    policy: LanguageModel, teacher: LanguageModel | None, trajectories: Sequence[Trajectory]
) -> dict[str, list[float]]:
    """Mean over each completion's tokens of the entropy and, given a teacher, of KL(policy || teacher)."""
    batch = Batch.collate(trajectories, pad=policy.pad, device=policy.device)
    teacher_states_NH = None if teacher is None else teacher.states(batch)

    def record(logits_NV: torch.Tensor, which: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        records = {"entropy": policy_loss.entropy(logits_NV)}
        if teacher is not None and teacher_states_NH is not None:
            records["reverse_kl"] = divergence.reverse_kl(teacher.logits(teacher_states_NH[which]), logits_NV)
        return logits_NV.new_zeros(()), records

    _, records = fused_sum(policy, policy.states(batch), record)
    lengths = [t.length for t in trajectories]
    return {name: [float(row.mean()) for row in values.split(lengths)] for name, values in records.items()}
