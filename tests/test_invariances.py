"""A gradient does not depend on how a batch is ordered, padded and split, nor on values that a mask leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tiny
import torch
from gradients import accumulate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlgkd.lm import LanguageModel, language_model
from rlgkd.objective import Objective
from rlgkd.types import Item, Score, Source, StopReason, Trajectory

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
MODELS = {
    kind: tuple(
        language_model(tiny.model(kind, vocabulary=4, seed=seed).double(), TOKENIZER, temperature=1 + seed / 4)
        for seed in (0, 1)
    )
    for kind in ("llama", "t5")
}
LONGEST = 6

token = st.integers(0, 3)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    prompt = draw(st.lists(token, min_size=1, max_size=5))
    completion = draw(st.lists(token, min_size=1, max_size=LONGEST))
    logp = draw(st.lists(st.floats(-3, -0.125, width=32), min_size=len(completion), max_size=len(completion)))
    length = len(prompt) + len(completion)
    return Trajectory(
        item=Item(key="", prompt=""),
        tokens_T=np.array([*prompt, *completion]),
        action_mask_T=np.arange(length) >= len(prompt),
        logp_T=np.array([0.0] * len(prompt) + logp, dtype=np.float32),
        entropy_T=np.zeros(length),
        stop=StopReason.END,
        source=draw(st.sampled_from([Source.STUDENT, Source.DATA, Source.MIXED])),
        sample=0,
        text="",
        score=Score(reward=0.0),
    )


reductions = st.sampled_from(["sequence_sum", "sequence_mean", "token_mean", "constant"])
objectives = st.builds(
    Objective,
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    divergence=st.sampled_from(["reverse_kl", "forward_kl", "total_variation", "jeffreys", "adaptive_kl"]),
    teacher_top_k=st.sampled_from([None, 2]),
    horizon=st.sampled_from([0.0, 0.5, 1.0]),
    policy_loss=st.sampled_from(["clipped", "clipped_weight"]),
    ratio=st.sampled_from(["token", "sequence"]),
    entropy_bonus=st.sampled_from([0.0, 0.2]),
    policy_reduction=reductions,
    divergence_reduction=reductions,
)
batches = st.lists(trajectories(), min_size=1, max_size=5)
advantages = st.lists(st.one_of(st.integers(-4, 4).map(lambda n: n / 2), st.just(float("nan"))), min_size=5, max_size=5)
kinds = st.sampled_from(sorted(MODELS))
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def gradient(
    models: tuple[LanguageModel, LanguageModel],
    objective: Objective,
    batch: Sequence[Trajectory],
    advantages_B1: Tensor,
    token_budget: int = 10**6,
) -> Tensor:
    student, teacher = models
    student.module.zero_grad()
    accumulate(objective, student, teacher, batch, advantages_B1, token_budget=token_budget, max_new_tokens=LONGEST)
    return torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None])


def same(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=1e-6, rtol=1e-5)


@quick
@given(kind=kinds, objective=objectives, batch=batches, values=advantages, budget=st.integers(1, 40))
def test_micro_batches_and_accumulation(kind, objective, batch, values, budget):
    advantages_B1 = torch.tensor(values[: len(batch)])[:, None]
    whole = gradient(MODELS[kind], objective, batch, advantages_B1)
    same(gradient(MODELS[kind], objective, batch, advantages_B1, token_budget=budget), whole)


@quick
@given(kind=kinds, objective=objectives, batch=batches, values=advantages, data=st.data())
def test_the_order_of_the_batch(kind, objective, batch, values, data):
    advantages_B1 = torch.tensor(values[: len(batch)])[:, None]
    order = data.draw(st.permutations(range(len(batch))))
    shuffled = gradient(MODELS[kind], objective, [batch[n] for n in order], advantages_B1[order])
    same(shuffled, gradient(MODELS[kind], objective, batch, advantages_B1))


@quick
@given(kind=kinds, objective=objectives, batch=batches, values=advantages)
def test_padding(kind, objective, batch, values):
    """A batch's gradient is the mean of its completions' own gradients, whatever the batch is padded to."""
    objective = Objective(
        **objective.flat() | {"policy_reduction": "sequence_mean", "divergence_reduction": "sequence_sum"}
    )
    advantages_B1 = torch.tensor(values[: len(batch)])[:, None].nan_to_num(nan=0.5)
    whole = gradient(MODELS[kind], objective, batch, advantages_B1)
    alone = [gradient(MODELS[kind], objective, [t], advantages_B1[n : n + 1]) for n, t in enumerate(batch)]
    same(sum(alone) / len(batch), whole)


@quick
@given(kind=kinds, objective=objectives, batch=batches, values=advantages, pad=token)
def test_values_that_the_mask_leaves_out(kind, objective, batch, values, pad):
    class Padded(type(MODELS[kind][0])):
        pad = 0

    advantages_B1 = torch.tensor(values[: len(batch)])[:, None]
    whole = gradient(MODELS[kind], objective, batch, advantages_B1)
    student, teacher = MODELS[kind]
    other = Padded(student.module, TOKENIZER, temperature=student.temperature)
    other.pad = pad
    same(gradient((other, teacher), objective, batch, advantages_B1), whole)
    # The log-probabilities under the prompt are no actions' and the advantages of data no policy's.
    noisy = [dataclasses.replace(t, logp_T=np.where(t.action_mask_T, t.logp_T, np.float32(-7.0))) for t in batch]
    own = torch.tensor([t.source is not Source.DATA for t in batch])[:, None]
    same(gradient((student, teacher), objective, noisy, advantages_B1.where(own, 9.0)), whole)
