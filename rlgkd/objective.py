"""Eq. 5 of GKD (Agarwal et al., ICLR 2024, arXiv 2306.13649) and its knobs, in one place.

    J(theta) = E_x [ (1-alpha) E_{y~p_S} r(x,y)  -  alpha E_{y~mu} D(p_T || p_S)(y|x) ]

The loss whose gradient estimates -grad J, over the actions n of a batch:

    L = (1-alpha) sum_n w_n * (-A_n log p_S(y_n))  +  alpha sum_n v_n * D_n

A is the advantage of the task reward, w and v the weights of the two reductions: `sequence_sum` for the policy term
(the gradient of E[r] sums over a sequence's tokens), `sequence_mean` for the divergence, the paper's
(1/L_y) sum_n D_n, in which 1/L_y is held constant.

`estimator` says what stands for D_n, with l = log p_S(y_n) - log p_T(y_n) of the token that was written:

    exact             D_n over the vocabulary, differentiated through the logits
    sampled           of reverse KL, on own texts: -l is an advantage, in the first form; of forward KL, on the texts of
                      the teacher or of data: -log p_S(y_n), the cross-entropy (SFT, SeqKD), which needs no teacher
    sampled_centred   sampled reverse KL with D_n as a baseline: the same mean with less variance (vOPD)
    k2                l^2 / 2, differentiated: in the mean it descends the reverse KL too
    k3                exp(-l) - 1 + l, differentiated: its *value* estimates the reverse KL, its gradient is the forward
                      KL's; the agents warn of it

Their expected gradients are those of the exact D_n if v_n does not depend on y (`sequence_sum`); under `sequence_mean`
the 1/L_y does, through the stop token. k1, l itself as a loss, has the expected gradient 0 and is refused. (Schulman
2020, "Approximating KL divergence", names k1 to k3.)

mu is a coin for each batch (or each prompt): with probability lambda (`student_fraction`) the student samples it, else
it comes from data or the teacher and has no policy term. That of the student's texts is divided by lambda, so that
alpha weighs what Eq. 5 says.

The choice of y_n also decides which prefixes, and so which D_m, come after it. `horizon` gamma weighs that part: the
future F_n = sum_{m>n} gamma^(m-n) D_m is a cost of y_n, and alpha sum_n v_n F_n log p_S(y_n) joins the loss, F held
constant. 0 is GKD: no gradient through the sampling of the prefixes. 1, under `sequence_sum`, gives the gradient of the
sequence's whole divergence, for reverse KL that of KL(p_S || p_T) over texts (MiniLLM, arXiv 2306.08543, without its
normalisation by length). Texts that the student did not sample have no such part.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops import divergence, policy_loss, reduction, top_k_bucket
from rlgkd.ops.divergence import Divergence

ESTIMATORS = ("exact", "sampled", "sampled_centred", "k2", "k3")
RATIOS = ("token", "sequence")
POLICY_LOSSES = ("reinforce", "clipped", "clipped_weight")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The knobs of Eq. 5."""

    alpha: float = 0.5
    """Weight of the divergence, in [0, 1]: 0 is pure reinforcement learning, 1 pure distillation."""
    divergence: str = "reverse_kl"
    """D, by its name in rlgkd.ops.divergence."""
    beta: float | None = None
    """JSD's beta in (0, 1), or [0, 1] if normalized; only for divergences that take it."""
    normalized: bool = False
    """Divide JSD by beta (1 - beta), so that its scale does not depend on beta."""
    skew: float | None = None
    """Of the skew KLs, in [0, 1)."""
    teacher_top_k: int | None = None
    """D over the teacher's k most probable tokens and a bucket for all others; None is over all (ops/truncation)."""
    student_fraction: float = 1.0
    """The paper's lambda, in [0, 1]: probability that a batch is sampled from the student; else it comes from data."""
    estimator: str = "exact"
    """What stands for D, by its name in the module's docstring."""
    horizon: float = 0.0
    """gamma in [0, 1]: how much of the divergence at later tokens a token answers for."""
    policy_loss: str = "reinforce"
    """The policy term, by its name in rlgkd.ops.policy_loss; the others differ from it where a batch is used again."""
    clip_low: float | None = None
    """Of `clipped`: how far below 1 the ratio to the sampling policy still has a gradient; None: 0.2."""
    clip_high: float | None = None
    """Of `clipped` and `clipped_weight`: how far above 1; None: 0.2 and 4."""
    ratio: str = "token"
    """What `clipped` and `clipped_weight` hold: each token's ratio to the sampling policy, or the geometric mean of a
    sequence's (`sequence`: Zheng et al. 2025, arXiv 2507.18071, GSPO)."""
    entropy_bonus: float = 0.0
    """Added to J: this times the entropy at each of the student's tokens, in nats, averaged as the policy term is."""
    policy_reduction: str = "sequence_sum"
    """How the policy term averages over tokens, by its name in rlgkd.ops.reduction."""
    divergence_reduction: str = "sequence_mean"
    """How the divergence averages over tokens."""

    def __post_init__(self) -> None:
        """Refuse settings out of range or in contradiction."""
        for name in ("alpha", "student_fraction", "horizon"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1):
                raise SettingError(name, value, "give a number in [0, 1]")
        if self.estimator == "k1":
            raise SettingError("estimator", "k1", "as a loss its expected gradient is 0; use sampled, or k2")
        if self.estimator not in ESTIMATORS:
            raise SettingError("estimator", self.estimator, f"choose one of {', '.join(ESTIMATORS)}")
        if not (math.isfinite(self.entropy_bonus) and self.entropy_bonus >= 0):
            raise SettingError("entropy_bonus", self.entropy_bonus, "give a number of 0 or more")
        if self.cross_entropy and self.student_fraction > 0:
            raise SettingError(
                "estimator", self.estimator, "for forward_kl it needs others' texts; set student_fraction to 0"
            )
        if self.estimator != "exact" and not self.cross_entropy:
            for field, needed in (("divergence", "reverse_kl"), ("student_fraction", 1), ("teacher_top_k", None)):
                if getattr(self, field) != needed:
                    remedy = f"it sees the student's own token alone: set {field} to {needed}, or use exact"
                    raise SettingError("estimator", self.estimator, remedy)
        if self.alpha == 0 and self.student_fraction < 1:
            raise SettingError(
                "student_fraction", self.student_fraction,
                "alpha is 0, so batches from data would teach nothing; set student_fraction to 1 or alpha above 0",
            )  # fmt: skip
        for field in ("policy_reduction", "divergence_reduction"):
            if getattr(self, field) not in reduction.REDUCTIONS:
                raise SettingError(field, getattr(self, field), f"choose one of {', '.join(reduction.REDUCTIONS)}")
        if self.alpha < 1 and self.student_fraction == 0:
            raise SettingError("alpha", self.alpha, "texts from data have no reward term; set it to 1, or sample some")
        if self.horizon > 0 and self.student_fraction == 0:
            raise SettingError(
                "horizon", self.horizon, "texts from data were not sampled; set student_fraction above 0"
            )
        if self.teacher_top_k is not None and self.teacher_top_k < 1:
            raise SettingError("teacher_top_k", self.teacher_top_k, "give 1 or more, or None for all tokens")
        if self.policy_loss not in POLICY_LOSSES:
            raise SettingError("policy_loss", self.policy_loss, f"choose one of {', '.join(POLICY_LOSSES)}")
        if self.ratio not in RATIOS:
            raise SettingError("ratio", self.ratio, f"choose one of {', '.join(RATIOS)}")
        if self.ratio != "token" and self.policy_loss == "reinforce":
            raise SettingError("ratio", self.ratio, "reinforce holds no ratio; set policy_loss to clipped")
        for field, takers, most in (("clip_low", POLICY_LOSSES[1:2], 1.0), ("clip_high", POLICY_LOSSES[1:], math.inf)):
            value = getattr(self, field)
            if value is not None and self.policy_loss not in takers:
                raise SettingError(field, value, f"{self.policy_loss} does not take it; {' and '.join(takers)} would")
            if value is not None and not 0 <= value <= most:
                raise SettingError(field, value, "give a number of 0 or more" + (", at most 1" if most == 1 else ""))
        _ = self.pointwise  # its settings are checked now

    @functools.cached_property
    def pointwise(self) -> Divergence:
        """D as a function (teacher_logits, student_logits) -> nats; built once, for it is called for every chunk."""
        settings = {"beta": self.beta, "skew": self.skew, "normalized": self.normalized or None}
        whole = divergence.get(self.divergence, **{k: value for k, value in settings.items() if value is not None})
        if self.teacher_top_k is None:
            return whole
        k = self.teacher_top_k
        return lambda teacher_logits, student_logits: whole(
            *top_k_bucket.top_k_with_bucket(teacher_logits, student_logits, k)
        )

    @property
    def cross_entropy(self) -> bool:
        """Whether D is estimated by the texts alone, so that there need be no teacher."""
        return self.estimator == "sampled" and self.divergence == "forward_kl"

    @property
    def looks_ahead(self) -> bool:
        """Whether a token's loss depends on what comes later in its sequence, which must then be known first."""
        return (self.horizon > 0 and self.alpha > 0) or self.ratio == "sequence"

    @property
    def weighs_actions(self) -> bool:
        """Whether the loss has a gradient through the log-probability of what was written, not of what might be."""
        return self.alpha < 1 or self.estimator != "exact" or self.horizon > 0

    def surrogate(self, logp_N: Tensor, old_logp_N: Tensor, advantages_N: Tensor) -> Tensor:
        """[N], the policy term: -A_n log p_S(y_n), or what stands for it once the policy has moved."""
        if self.policy_loss == "reinforce":
            return policy_loss.reinforce(logp_N, advantages_N)
        loss = policy_loss.clipped if self.policy_loss == "clipped" else policy_loss.clipped_weight
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        return loss(logp_N, old_logp_N, advantages_N, **{k: clip for k, clip in clips.items() if clip is not None})

    def loss(
        self,
        student_logits_NV: Tensor,
        teacher_logits_NV: Tensor | None,
        actions_N: Tensor,
        old_logp_N: Tensor,
        advantages_N: Tensor,
        policy_weights_N: Tensor,
        divergence_weights_N: Tensor,
        futures_N: Tensor,
        *,
        sampled: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L of the module's docstring, summed over N actions; weights are zero where a term does not apply.

        `old_logp_N` is the log-probability that each action was sampled with, `futures_N` the F_n of the module's
        docstring, both in nats.

        Returns the scalar and what to record, each [N] in nats: `logp`, `entropy` and, if it is known, `divergence`.
        Of actions that the student has `sampled`, the first two are known and left out where no term needs them.
        """
        logits_NV = student_logits_NV if self.weighs_actions or self.entropy_bonus else student_logits_NV.detach()
        record: dict[str, Tensor] = {}
        if self.entropy_bonus or not sampled:
            record["logp"], record["entropy"] = policy_loss.log_probability_and_entropy(
                logits_NV, actions_N, entropy_gradient=self.entropy_bonus > 0
            )
        elif self.weighs_actions:
            record["logp"] = policy_loss.log_probability(logits_NV, actions_N)
        student_logp_N = record.get("logp", old_logp_N)  # the latter where no term reads it
        loss = student_logits_NV.new_zeros(())
        if self.entropy_bonus:
            loss = loss - self.entropy_bonus * (policy_weights_N * record["entropy"]).sum()
        if self.alpha < 1:
            policy_N = self.surrogate(student_logp_N, old_logp_N, advantages_N)
            loss = loss + (1 - self.alpha) * (policy_weights_N * policy_N).sum()
        if teacher_logits_NV is not None or self.cross_entropy:
            divergence_N, distillation_N = self.distillation(
                teacher_logits_NV, student_logits_NV, student_logp_N, actions_N, old_logp_N
            )
            if self.alpha > 0:
                if self.horizon > 0:
                    distillation_N = distillation_N + self.surrogate(student_logp_N, old_logp_N, -futures_N)
                loss = loss + self.alpha * (divergence_weights_N * distillation_N).sum()
            record["divergence"] = divergence_N
        return loss, record

    def distillation(
        self,
        teacher_logits_NV: Tensor | None,
        student_logits_NV: Tensor,
        student_logp_N: Tensor,
        actions_N: Tensor,
        old_logp_N: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return D_n to be recorded, and what stands for it in the loss: two [N], in nats; arguments as of `loss`."""
        if self.cross_entropy:  # without a teacher, less the entropy of whoever wrote the texts
            cross_N = -student_logp_N
            if teacher_logits_NV is not None:
                cross_N = policy_loss.log_probability(teacher_logits_NV, actions_N) - student_logp_N
            return cross_N.detach(), cross_N
        assert teacher_logits_NV is not None
        if self.estimator == "exact":
            # At alpha 0 the divergence is watched, not descended: an infinite one must not spoil the gradient.
            logits_NV = student_logits_NV if self.alpha > 0 else student_logits_NV.detach()
            divergence_N = self.pointwise(teacher_logits_NV, logits_NV)
            return divergence_N, divergence_N
        log_ratio_N = student_logp_N - policy_loss.log_probability(teacher_logits_NV, actions_N)
        cost_N = log_ratio_N.detach()
        if self.estimator == "k2":
            return cost_N, 0.5 * log_ratio_N.square()
        if self.estimator == "k3":
            return cost_N, torch.expm1((-log_ratio_N).clamp(max=80.0)) + log_ratio_N
        if self.estimator == "sampled":
            return cost_N, self.surrogate(student_logp_N, old_logp_N, -cost_N)
        divergence_N = self.pointwise(teacher_logits_NV, student_logits_NV.detach())
        return divergence_N, self.surrogate(student_logp_N, old_logp_N, divergence_N - cost_N)
