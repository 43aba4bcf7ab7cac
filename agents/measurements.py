"""What is measured of an update besides its loss, and logged (docs/runs.md says what each name is).

An update is in algorithm.py and reads without this; metrics.py has the numbers that follow from the texts alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from rlgkd.agents.advantages import Credit
from rlgkd.agents.agent import TextAgent
from rlgkd.agents.agreement import Agreement
from rlgkd.agents.metrics import LONG_TEXT, of_reductions, rollout_metrics, teacher_metrics
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.update import Means, divergence_per_reward
from rlgkd.objective import Objective
from rlgkd.sharding import total_norm
from rlgkd.teachers import AlignedTeacher, RoutedTeachers, Teacher, in_process
from rlgkd.types import OFF_POLICY, reads_sibling

Accumulate = Callable[[Objective, Teacher | None, Rollout, Credit, bool], Means]
"""(objective, teacher, rollout, credit, whether with the policy term) -> the gradient, in parameters that had none."""


def terms_are_due(agent: TextAgent) -> bool:
    """Whether this update's gradient has two terms, and it is time to measure them."""
    every = agent.config.optimizer.gradient_norms_every
    mixes = agent.config.reward.combination == "in_loss" and 0 < agent.objective.alpha < 1
    return mixes and every > 0 and agent.state.updates % every == 0 and bool(agent.rollout.on_policy)


def record_terms(agent: TextAgent, accumulate: Accumulate, credit: Credit) -> None:
    """Record the norms of the policy term's gradient and of the divergence's, each with its weight in Eq. 5.

    Costs a pass for each and leaves no gradient. A loss besides Eq. 5's, such as a value head's, is in neither.
    """
    rollout, credit = agent.rollout, dataclasses.replace(credit, auxiliary=None)
    nothing_BL = torch.zeros(len(rollout.trajectories), rollout.longest, device="cpu")
    # A divergence that needs no teacher (the cross-entropy, say) is left out by its gate, any other for want of one.
    policy_alone = dataclasses.replace(credit, divergence_gate_BL=nothing_BL)
    no_horizon = agent.objective.model_copy(update={"horizon": 0.0})
    terms: dict[str, tuple[Objective, Teacher | None, Credit, bool]] = {
        "policy": (no_horizon, None, policy_alone, True),
        "divergence": (agent.objective, agent.teacher, credit, False),
    }
    for name, (objective, teacher, one, with_policy_term) in terms.items():
        accumulate(objective, teacher, rollout, one, with_policy_term)
        gradients = [p.grad for p in agent.student.module.parameters() if p.grad is not None]
        agent.logger.record(f"train/{name}_grad_norm", total_norm(gradients).item())
        agent.student.module.zero_grad()


def with_agreement(agent: TextAgent, rollout: Rollout) -> Rollout:
    """The rollout, of which the agreement with the teacher is measured if it is time to."""
    every = agent.config.teacher.agreement_every
    if agent.teacher is None or every == 0 or agent.state.updates % every:
        return rollout
    return dataclasses.replace(rollout, agreement=Agreement(agent.student.end_ids))


def record_agreement(agent: TextAgent, rollout: Rollout) -> None:
    """Record what was measured of the agreement with the teacher, if anything."""
    if rollout.agreement is None:
        return
    group_size = agent.config.sampling.group_size
    found = rollout.agreement.metrics(
        rollout.trajectories, rollout.failed_B() | rollout.untaught_B, group_size=group_size, ranks=agent.ranks
    )
    for name, value in found.items():
        agent.logger.record(name, value)


def record_update(agent: TextAgent, means: Means) -> None:
    """Record alpha, beta, and the shares of texts and tokens for which there is no divergence."""
    rollout, record = agent.rollout, agent.logger.record
    record("train/alpha", agent.objective.alpha)
    if isinstance(agent.teacher, AlignedTeacher):
        record("train/teacher_aligned", rollout.aligned_share())
        if means.unmapped is not None:
            record("train/teacher_unmapped", means.unmapped)
    if agent.teacher is not None and agent.objective.alpha < 1:
        _record_beta(agent)
    # Both are rows of `untaught_B`. They never meet: a teacher that reads siblings takes on-policy texts alone.
    if reads_sibling(agent.config.teacher.teacher_prompt or ""):
        record("train/no_sibling", rollout.untaught_B.float().mean().item())
    if agent.config.sampling.off_policy_from is not None:
        off_policy = [row for row, t in enumerate(agent.trajectories) if t.source in OFF_POLICY]
        if off_policy:
            record("train/off_policy_left_out", rollout.untaught_B[off_policy].float().mean().item())
    if not in_process(agent.teacher):
        record("train/teacher_failed", rollout.failed_B().float().mean().item())


def record_row(agent: TextAgent, iteration: int, *, seconds: float) -> None:
    """Record what belongs to the row of an update that took so many seconds: counters, and means over its texts."""
    agent.logger.record("time/iterations", iteration, exclude="tensorboard")
    agent.logger.record("time/total_timesteps", agent.num_timesteps, exclude="tensorboard")
    texts = [*agent.trajectories, *agent.rollout.discarded]
    tokens = sum(t.length for t in texts)
    agent.logger.record("time/tokens_per_second", tokens / seconds, exclude="csv")
    for name, value in rollout_metrics(texts).items():
        agent.logger.record(name, value)
    if isinstance(agent.teacher, RoutedTeachers):
        for name, value in teacher_metrics(agent.trajectories, agent.teacher.name_of).items():
            agent.logger.record(name, value)
    if agent.config.reward.drop_even_groups == "resample":
        agent.logger.record("rollout/discarded", sum(t.length for t in agent.rollout.discarded) / tokens)


def _record_beta(agent: TextAgent) -> None:
    """Record beta, and warn once if it changes with the length of texts."""
    alpha, ratio = agent.objective.alpha, 1.0
    if agent.config.reward.combination == "in_loss":
        ratio = divergence_per_reward(agent.objective, agent.trajectories, agent.task.max_new_tokens)
    beta = alpha / (1 - alpha) * ratio
    agent.logger.record("train/beta", beta)
    if alpha > 0 and max(ratio, 1 / ratio) > LONG_TEXT:
        agent.watch.warn_once("beta", of_reductions(alpha, beta))
