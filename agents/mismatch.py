"""How far the log-probabilities of a sampler elsewhere are from the student's, and the weights that correct for it.

A server runs other kernels, in another precision maybe, and so samples from another policy mu than the student pi, and
from an older one still where the next texts are sampled while this update trains. The student runs once over what was
sampled: log w = log pi(y_n) - log mu(y_n). E_pi[f] = E_mu[w f] at each prefix; w is bounded against its variance,

    truncate    min(w, C)                           Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
                                                    Off-Policy RL Training"
    mask        w where 1/C <= w <= C, else 0       Ling team 2025, arXiv 2510.18855 (IcePop)

and the ratio of a clipped loss is then that to pi as it was when the texts came. With `none` there are no weights, and
that ratio is the one to mu. Tokens are weighed, not whole texts, whose weights' variance grows with the length.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from rlgkd.agents.rollout import Rollout
from rlgkd.agents.sampler_settings import SamplerSettings
from rlgkd.errors import SamplerError
from rlgkd.lm.fused_loss import TeacherAt, fused_sum
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.policy_loss import log_probability_and_entropy
from rlgkd.teachers import Teacher
from rlgkd.types import Source


def corrected(
    rollout: Rollout,
    student: LanguageModel,
    teacher: Teacher | None,
    settings: SamplerSettings,
    *,
    token_budget: int,
) -> tuple[Rollout, dict[str, float]]:
    """A served rollout with the student's entropies, its weights, and the log-probabilities that ratios are to.

    Args:
        rollout: Its on-policy texts were sampled elsewhere.
        student: The model that they were to be sampled with.
        teacher: As `Rollout.split` takes it.
        settings: How it is corrected.
        token_budget: Tokens of one micro-batch.

    Returns it, and what to log.

    Raises: SamplerError if the mismatch is above `max_mismatch`.
    """
    rollout = rollout.split(student, token_budget, teacher)
    logp_BL, entropy_BL = _student_values(rollout, student)
    rows = [row for row, t in enumerate(rollout.trajectories) if t.source is Source.STUDENT]
    log_w_BL = torch.zeros_like(logp_BL)
    for row in rows:
        t = rollout.trajectories[row]
        log_w_BL[row, : t.length] = logp_BL[row, : t.length] - torch.from_numpy(t.logp_T[t.action_mask_T])
    log_w_N = np.concatenate(
        [log_w_BL[row, : rollout.trajectories[row].length].numpy() for row in rows] or [np.zeros(1)]
    )
    size_N = np.abs(log_w_N)
    metrics = {
        "train/mismatch": float(size_N.mean()),
        "train/mismatch_p99": float(np.quantile(size_N, 0.99)),
        "train/sampler_failed": rollout.sampler_failed,
    }
    if not metrics["train/mismatch"] <= settings.max_mismatch:  # NaN is not
        raise SamplerError(
            "max_mismatch",
            settings.max_mismatch,
            f"{', '.join(settings.sampler)}: the log-probabilities of what was sampled differ from the student's by "
            f"{metrics['train/mismatch']:.3g} nats a token in the mean (99% by less than "
            f"{metrics['train/mismatch_p99']:.3g}): serve in a finer precision, lower learning_rate if staleness is 1, "
            "or raise max_mismatch; the weights are as before the update",
        )
    if settings.importance == "none":
        return rollout.with_log_probabilities(None, student, entropy_BL=entropy_BL, rows=rows), metrics
    # Clamped so that a weight is finite in float32, in which the loss has it.
    w_BL, log_cap = log_w_BL.clamp(max=80.0).exp(), float(np.log(settings.importance_cap))
    if settings.importance == "truncate":
        cut_N = log_w_N > log_cap
        w_BL = w_BL.clamp(max=settings.importance_cap)
    else:
        cut_N = size_N > log_cap
        w_BL = w_BL * (log_w_BL.abs() <= log_cap)
    metrics["train/mismatch_cut"] = float(cut_N.mean())
    rollout = rollout.with_log_probabilities(logp_BL, student, entropy_BL=entropy_BL, rows=rows)
    return dataclasses.replace(rollout, importance_BL=w_BL), metrics


@torch.no_grad()
def _student_values(rollout: Rollout, student: LanguageModel) -> tuple[Tensor, Tensor]:
    """[B, L] each: the student's log-probability of each action and its entropy there, in nats, on the host."""
    values = [
        torch.zeros(len(rollout.trajectories), rollout.longest, dtype=torch.float64, device="cpu") for _ in range(2)
    ]
    for part in rollout.micro_batches:
        token_N = student.actions(part.batch)

        def of_student(  # token_N as a default binds this part's: a closure would see the loop's latest
            student_NV: Tensor, _: TeacherAt, chunk: slice, token_N: Tensor = token_N
        ) -> tuple[Tensor, dict[str, Tensor]]:
            logp_N, entropy_N = log_probability_and_entropy(student_NV, token_N[chunk])
            return student_NV.new_zeros(()), {"logp": logp_N, "entropy": entropy_N}

        _, records = fused_sum(student, student.states(part.batch), of_student)
        for values_BL, name in zip(values, ("logp", "entropy"), strict=True):
            part.write(values_BL, records[name])
    logp_BL, entropy_BL = (rollout.ranks.sum(values_BL) for values_BL in values)
    return logp_BL, entropy_BL
