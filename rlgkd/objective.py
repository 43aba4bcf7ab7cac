"""Eq. 5 of GKD (Agarwal et al., ICLR 2024, arXiv 2306.13649) and its knobs, in one place.

    J(theta) = E_x [ (1-alpha) E_{y~p_S} r(x,y)  -  alpha E_{y~mu} D(p_T || p_S)(y|x) ]

The loss whose gradient estimates -grad J, over the actions n of a batch (`Objective.loss`):

    L = (1-alpha) sum_n w_n * (-A_n log p_S(y_n))  +  alpha sum_n v_n * D_n

A is the advantage of the task reward, w and v the weights of the two reductions (`term_weights` of agents/update.py).
With one `reduction` for both, D_n has beta = alpha / (1-alpha) times the weight of the policy term, however long the
texts are: the beta of E[r] - beta KL, as RLHF, TRL and verl write it. Eq. 5 to the letter has two: `sequence_sum` for
the policy term (the gradient of E[r] sums over a sequence's tokens), `sequence_mean` for the divergence, the paper's
(1/L_y) sum_n D_n, in which 1/L_y is held constant; then beta = alpha / ((1-alpha) L_y).

`estimator` says what stands for D_n, with l = log p_S(y_n) - log p_T(y_n) of the token that was written:

    exact             D_n over the vocabulary, differentiated through the logits
    sampled           of reverse KL, on own texts: -l is an advantage, in the first form; of forward KL, on the texts of
                      the teacher or of data: -log p_S(y_n), the cross-entropy (SFT, SeqKD), also where a teacher is
                      known: of texts that are not its own, log p_T(y_n) - log p_S(y_n) would be no divergence
    sampled_centred   sampled reverse KL with D_n as a baseline: the same mean with less variance (vOPD)
    asymmetric        sampled reverse KL where l < 0, D_n elsewhere (AOPD, arXiv 2605.06387)
    fixed_negative    -1 as an advantage: needs no teacher, and a gate that chooses tokens, since over all of them its
                      expected gradient is 0 (the control of arXiv 2608.31046)
    k2                l^2 / 2, differentiated: in the mean it descends the reverse KL too
    k3                exp(-l) - 1 + l, differentiated: its *value* estimates the reverse KL, its gradient is the forward
                      KL's; the agents warn of it

For a teacher with other tokens the log-probabilities in l are those of the bytes of y_n's span (rlgkd.ops.byte_spans).

Their expected gradients are those of the exact D_n if v_n does not depend on y (`sequence_sum`); under `sequence_mean`
the 1/L_y does, through the stop token. k1, l itself as a loss, has the expected gradient 0 and is refused. (Schulman
2020, "Approximating KL divergence", names k1 to k3.)

`gap` says what stands for -l as the advantage of the sampled estimators (rlgkd.ops.gap). Then the expected gradient is
sum_v p_S(v) gap(v) grad log p_S(v) at each prefix, and what `sampled_centred` subtracts is sum_v p_S(v) gap(v).

mu is a coin for each batch (or each prompt): with probability lambda (`student_fraction`) the student samples it, else
it comes from data or the teacher and has no policy term. That of the student's texts is divided by lambda, so that
alpha weighs what Eq. 5 says.

The choice of y_n also decides which prefixes, and so which D_m, come after it. `horizon` gamma weighs that part: the
future F_n = sum_{m>n} gamma^(m-n) D_m is a cost of y_n, and alpha sum_n v_n F_n log p_S(y_n) joins the loss, F held
constant. 0 is GKD: no gradient through the sampling of the prefixes. 1, under `sequence_sum`, gives the gradient of the
sequence's whole divergence, for reverse KL that of KL(p_S || p_T) over texts (MiniLLM, arXiv 2306.08543, without its
normalisation by length). Texts that the student did not sample have no such part.

`gate` weighs single tokens of the student's texts: g_n the policy term, h_n the divergence (rlgkd.ops.gate), so that
the loss is (1-alpha) sum_n w_n g_n (-A_n log p_S(y_n)) + alpha sum_n v_n h_n D_n, and F_n sums h_m D_m.

Where another engine has sampled, or older weights, importance weights i_n stand before all that is estimated from the
token that was written: the policy term, the sampled estimators, k2, k3 and the horizon's part. D_n itself needs none:
at the prefixes that there are it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, Self

import torch
from annotated_types import Ge, Le
from pydantic import field_validator, model_validator
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops import divergence, gap, gate, policy_loss, top_k_bucket
from rlgkd.ops.byte_spans import KnownSpans
from rlgkd.ops.reduction import Reduction
from rlgkd.ops.top_k_bucket import KnownTokens
from rlgkd.ops.vocabulary_map import MappedTokens
from rlgkd.settings import Registered, Settings, Variant

Estimator = Literal["exact", "sampled", "sampled_centred", "asymmetric", "fixed_negative", "k2", "k3"]
Fraction = Annotated[float, Ge(0), Le(1)]
DIVERGENCE = Registered("divergence", divergence.DIVERGENCES, divergence.get)
POLICY_LOSS = Registered("policy_loss", policy_loss.POLICY_LOSSES, policy_loss.get)
GATE = Registered("gate", gate.GATES, gate.get)
GAP = Registered("gap", gap.GAPS, gap.get)
TeacherLogits = Tensor | KnownTokens | MappedTokens
"""A teacher's logits [N, V], what is known of one that is elsewhere, or those of one with another vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Actions:
    """N actions and what the loss needs to know of each, in the notation of the module's docstring."""

    token_N: Tensor
    """y_n, the chosen tokens."""
    old_logp_N: Tensor
    """Log-probability with which each was sampled, in nats."""
    advantage_N: Tensor
    """A_n, any finite number where the policy term does not apply."""
    policy_weight_N: Tensor
    """w_n, 0 where the policy term does not apply."""
    divergence_weight_N: Tensor
    """v_n, 0 where the divergence does not apply."""
    future_N: Tensor
    """F_n, in nats."""
    policy_gate_N: Tensor
    """g_n, 1 without a gate."""
    divergence_gate_N: Tensor
    """h_n, 1 without a gate."""
    importance_N: Tensor | None = None
    """i_n, by which what is estimated from the written token is weighed where another policy wrote it; None is 1."""

    def __getitem__(self, chunk: slice) -> Actions:
        """A run of the actions."""
        there = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return Actions(**{name: value[chunk] for name, value in there.items()})


class Objective(Settings):
    """The knobs of Eq. 5, and the loss that descends it."""

    owner = "Objective"

    alpha: Fraction = 0.5
    """Weight of the divergence in Eq. 5: 0 is pure reinforcement learning, 1 pure distillation."""
    divergence: Annotated[Variant, DIVERGENCE] = DIVERGENCE("reverse_kl")
    """How the student differs from the teacher (rlgkd list divergences); jsd(0.9) is jsd with beta 0.9."""
    teacher_top_k: Annotated[int, Ge(1)] | None = None
    """How many of the teacher's most probable tokens the divergence sees, the rest as one more; null is all."""
    student_fraction: Fraction = 1.0
    """The paper's lambda: probability that a batch is sampled from the student; else it comes from data."""
    estimator: Estimator = "exact"
    """What stands for the divergence in the loss: itself, or an estimate by the sampled token."""
    gap: Annotated[Variant, GAP] = GAP("log")
    """What the sampled estimators reinforce: log is log p_T - log p_S, clip, power and sigmoid are bounded."""
    horizon: Fraction = 0.0
    """How much of the divergence at later tokens a token answers for, per token of distance (gamma)."""
    policy_loss: Annotated[Variant, POLICY_LOSS] = POLICY_LOSS("reinforce")
    """The policy term; reinforce, clipped and clipped_weight differ where a batch is used again."""
    ratio: Literal["token", "sequence"] = "token"
    """What the clipped losses bound: each token's ratio to the sampling policy, or the sequence's geometric mean."""
    gate: Annotated[Variant, GATE] = GATE("none")
    """How much each token of the student's texts counts in either term (rlgkd list gates); none is 1 everywhere."""
    entropy_bonus: Annotated[float, Ge(0)] = 0.0
    """Weight of the policy's entropy at each of the student's tokens, in reward per nat."""
    reduction: Reduction = "constant"
    """How both terms average over tokens; the reward's weight is then 1 to the divergence's alpha / (1 - alpha)."""
    policy_reduction: Reduction | None = None
    """How the policy term averages over tokens; null is `reduction`."""
    divergence_reduction: Reduction | None = None
    """How the divergence averages over tokens; null is `reduction`."""

    @field_validator("estimator", mode="before")
    @classmethod
    def _refuse_k1(cls, value: object) -> object:
        if value == "k1":
            raise SettingError("estimator", "k1", "as a loss its expected gradient is 0; use sampled, or k2")
        return value

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        sampled_token = self.estimator != "exact" and not self.cross_entropy
        transformed = self.gap.name != "log"
        for name, wrong, remedy in (
            ("estimator", self.cross_entropy and self.student_fraction > 0,
             "for forward_kl it needs off-policy texts; set student_fraction to 0"),
            ("estimator", self.estimator == "fixed_negative" and "divergence" not in gate.terms(self.gate.name),
             "without a gate its expected gradient is 0; set gate to improbable"),
            ("gap", transformed and (self.cross_entropy or self.estimator not in ("sampled", "sampled_centred")),
             "it transforms the sampled log-ratio: set estimator to sampled or sampled_centred"),
            ("gap", transformed and self.horizon > 0,
             "a horizon sums divergences in nats; set horizon to 0, or gap to log"),
            ("estimator", sampled_token and self.divergence.name != "reverse_kl" and not self.any_divergence,
             "it sees the sampled token alone: set divergence to reverse_kl, or use exact"),
            ("estimator", sampled_token and self.student_fraction != 1,
             "it sees the sampled token alone: set student_fraction to 1, or use exact"),
            ("estimator", sampled_token and self.teacher_top_k is not None and self.estimator != "asymmetric",
             "it sees the sampled token alone: set teacher_top_k to None, or use exact"),
            ("student_fraction", self.alpha == 0 and self.student_fraction < 1,
             "alpha is 0, so batches from data would teach nothing; set student_fraction to 1 or alpha above 0"),
            ("alpha", self.alpha < 1 and self.student_fraction == 0,
             "texts from data have no reward term; set it to 1, or sample some"),
            ("horizon", self.horizon > 0 and self.estimator == "fixed_negative",
             "fixed_negative has no divergence of later tokens; set horizon to 0"),
            ("horizon", self.horizon > 0 and self.student_fraction == 0,
             "texts from data were not sampled; set student_fraction above 0"),
            ("ratio", self.ratio != "token" and self.policy_loss.name == "reinforce",
             "reinforce holds no ratio; set policy_loss to clipped"),
        ):  # fmt: skip
            if wrong:
                value = getattr(self, name)
                raise SettingError(name, getattr(value, "name", value), remedy)
        return self

    def pointwise(self, teacher: TeacherLogits, student_logits: Tensor) -> Tensor:
        """D at each position, in nats: [..., V], [..., V] -> [...]; of a teacher known by some tokens, by these.

        Of a teacher with another vocabulary it is 0 where that has no distribution.
        """
        if isinstance(teacher, MappedTokens):
            mapped_N = self.pointwise(*teacher.with_bucket(student_logits))
            return torch.where(teacher.known_n, mapped_N, 0.0)
        if isinstance(teacher, KnownTokens):
            teacher, student_logits = teacher.with_bucket(student_logits, self.teacher_top_k)
        elif self.teacher_top_k is not None:
            teacher, student_logits = top_k_bucket.top_k_with_bucket(teacher, student_logits, self.teacher_top_k)
        divergence_N: Tensor = self.divergence.function(teacher, student_logits)
        return divergence_N

    @property
    def any_divergence(self) -> bool:
        """Whether an estimator by the sampled token works with any divergence: it holds D_n, or nothing of it."""
        return self.estimator in ("asymmetric", "fixed_negative")

    @property
    def needs_teacher(self) -> bool:
        """Whether what is descended at alpha above 0 is formed with the teacher's logits."""
        return not self.cross_entropy and self.estimator != "fixed_negative"

    @property
    def cross_entropy(self) -> bool:
        """Whether D is estimated by the texts alone, so that there need be no teacher."""
        return self.estimator == "sampled" and self.divergence.name == "forward_kl"

    @property
    def reductions(self) -> tuple[Reduction, Reduction]:
        """The reductions of the policy term and of the divergence."""
        return self.policy_reduction or self.reduction, self.divergence_reduction or self.reduction

    @property
    def looks_ahead(self) -> bool:
        """Whether a token's loss depends on what comes later in its sequence, which must then be known first."""
        return (self.horizon > 0 and self.alpha > 0) or self.ratio == "sequence"

    @property
    def weighs_actions(self) -> bool:
        """Whether the loss has a gradient through the log-probability of what was written, not of what might be."""
        return self.alpha < 1 or self.estimator != "exact" or self.horizon > 0

    def surrogate(self, logp_N: Tensor, actions: Actions, advantages_N: Tensor) -> Tensor:
        """[N], i_n times the policy term: -A_n log p_S(y_n), or what stands for it once the policy has moved."""
        loss_N: Tensor = self.policy_loss.function(logp_N, actions.old_logp_N, advantages_N)
        return _weighed(loss_N, actions)

    def loss(
        self,
        student_logits_NV: Tensor,
        teacher: TeacherLogits | None,
        actions: Actions,
        *,
        recorded: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L of the module's docstring, summed over N actions.

        Args:
            student_logits_NV: Logits of the policy, with their gradient.
            teacher: The teacher's logits [N, V], or what is known of it; None if alpha is 0 or the estimator needs no
                teacher.
            actions: What else is known of each action.
            recorded: Whether the policy's log-probability and entropy at these actions are on record from sampling, so
                that they need not be formed for the record.

        Returns the scalar and what to record, each [N] in nats: `logp` and `entropy`, left out if they are on record
        and no term needs them, and `divergence` if it is known.
        """
        logits_NV = student_logits_NV if self.weighs_actions or self.entropy_bonus else student_logits_NV.detach()
        record: dict[str, Tensor] = {}
        if self.entropy_bonus or not recorded:
            record["logp"], record["entropy"] = policy_loss.log_probability_and_entropy(
                logits_NV, actions.token_N, entropy_gradient=self.entropy_bonus > 0
            )
        elif self.weighs_actions:
            record["logp"] = policy_loss.log_probability(logits_NV, actions.token_N)
        student_logp_N = record.get("logp", actions.old_logp_N)  # the latter where no term reads it
        loss = student_logits_NV.new_zeros(())
        if self.entropy_bonus:
            loss = loss - self.entropy_bonus * (actions.policy_weight_N * record["entropy"]).sum()
        if self.alpha < 1:
            policy_N = self.surrogate(student_logp_N, actions, actions.advantage_N)
            loss = loss + (1 - self.alpha) * (actions.policy_weight_N * actions.policy_gate_N * policy_N).sum()
        if teacher is not None or not self.needs_teacher:
            divergence_N, distillation_N = self.distillation(student_logits_NV, teacher, actions, student_logp_N)
            if self.alpha > 0:
                distillation_N = actions.divergence_gate_N * distillation_N
                if self.horizon > 0:
                    distillation_N = distillation_N + self.surrogate(student_logp_N, actions, -actions.future_N)
                loss = loss + self.alpha * (actions.divergence_weight_N * distillation_N).sum()
            if divergence_N is not None:
                record["divergence"] = divergence_N
        return loss, record

    def distillation(
        self,
        student_logits_NV: Tensor,
        teacher: TeacherLogits | None,
        actions: Actions,
        student_logp_N: Tensor,
    ) -> tuple[Tensor | None, Tensor]:
        """Return D_n to be recorded, None if unknown, and what stands for it in the loss: [N] each, in nats.

        Arguments as of `loss`.
        """
        if self.cross_entropy:
            return -student_logp_N.detach(), -student_logp_N
        if self.estimator == "fixed_negative":
            known_N = None if teacher is None else self.pointwise(teacher, student_logits_NV.detach())
            against_N = -torch.ones_like(actions.advantage_N)
            return known_N, self.surrogate(student_logp_N, actions, against_N)
        assert teacher is not None
        if self.estimator == "exact":
            # At alpha 0 the divergence is watched, not descended: an infinite one must not spoil the gradient.
            logits_NV = student_logits_NV if self.alpha > 0 else student_logits_NV.detach()
            divergence_N = self.pointwise(teacher, logits_NV)
            return divergence_N, divergence_N
        teacher_logp_N = _teacher_logp(teacher, actions)
        written_logp_N = student_logp_N
        if isinstance(teacher, KnownSpans):  # a token answers for all of its span
            written_logp_N = student_logp_N + teacher.other_logp_N
        log_ratio_N = written_logp_N - teacher_logp_N
        cost_N = log_ratio_N.detach()
        if isinstance(teacher, KnownSpans):
            cost_N = cost_N / teacher.tokens_N
        if self.estimator == "k2":
            return cost_N, _weighed(0.5 * log_ratio_N.square(), actions)
        if self.estimator == "k3":  # exp beyond 88 is infinite in float32, and its gradient with it
            return cost_N, _weighed(torch.expm1((-log_ratio_N).clamp(max=80.0)) + log_ratio_N, actions)
        gap_N: Tensor = self.gap.function(teacher_logp_N, written_logp_N.detach())
        if self.estimator == "sampled":
            return cost_N, self.surrogate(student_logp_N, actions, gap_N)
        if self.estimator == "asymmetric":
            divergence_N = self.pointwise(teacher, student_logits_NV)
            sampled_N = self.surrogate(student_logp_N, actions, gap_N)
            return divergence_N, torch.where(gap_N > 0, sampled_N, divergence_N)
        divergence_N = self.pointwise(teacher, student_logits_NV.detach())
        mean_N = -divergence_N
        if self.gap.name != "log":
            assert isinstance(teacher, Tensor), "a baseline over all tokens is refused without them"
            mean_N = self.mean_gap(teacher, student_logits_NV)
        return divergence_N, self.surrogate(student_logp_N, actions, gap_N - mean_N)

    @torch.no_grad()
    def mean_gap(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """sum_v p_S(v) gap(v) at each position: [..., V], [..., V] -> [...]."""
        log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
        # What the student cannot write has no part in its mean, but 0 times an infinite gap is NaN.
        mean: Tensor = (log_q.exp() * self.gap.function(log_p, log_q)).nan_to_num(nan=0.0).sum(-1)
        return mean


def _weighed(loss_N: Tensor, actions: Actions) -> Tensor:
    """[N], a loss by the written tokens times their importance weights."""
    return loss_N if actions.importance_N is None else actions.importance_N * loss_N


def _teacher_logp(teacher: TeacherLogits, actions: Actions) -> Tensor:
    """[N], the teacher's log-probability of each action."""
    if isinstance(teacher, KnownTokens):
        return teacher.token_logp_N
    assert isinstance(teacher, Tensor), "only the exact divergence goes through a map"
    return policy_loss.log_probability(teacher, actions.token_N)
