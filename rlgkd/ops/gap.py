"""What a sampled token's advantage is, of the teacher's log-probability of it and the student's: the gap.

For the sampled reverse KL it is d = log p_T - log p_S, which has no bound: one token that the teacher would never write
outweighs all others. The other functions here rise with d too, and are bounded. With a gap g the expected gradient of
the sampled estimators at a prefix is that of -sum_v p_S(v) g(v), with g held constant: for `log` alone it is that of
the reverse KL.

To add a gap: write one function (teacher_logp, student_logp) -> gap here, elementwise and of nats, and name it in
`GAPS` at the bottom. Its settings are its keyword-only arguments, each with one sentence in its docstring's `Args`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlgkd.ops._gate import check_range
from rlgkd.ops._registry import Pairwise, bind

SMALLEST_EXPONENT = 1e-6
"""The smallest exponent that `power` takes; its limit at 0 is `log`."""


def log(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """d = log p_T - log p_S: on-policy distillation.

    Examples:
        >>> round(log(torch.tensor(0.5).log(), torch.tensor(0.25).log()).item(), 4)
        0.6931
    """
    return teacher_logp - student_logp


def clip(teacher_logp: Tensor, student_logp: Tensor, *, gap_bound: float = 5.0) -> Tensor:
    """The same between -c and c.

    Args:
        teacher_logp: [...], nats.
        student_logp: [...], nats.
        gap_bound: The bound c in nats, in (0, inf).

    Examples:
        >>> clip(torch.tensor([-9.0, -1.0]), torch.tensor([-1.0, -2.0])).tolist()
        [-5.0, 1.0]
    """
    check_range("gap_bound", gap_bound, SMALLEST_EXPONENT)
    return log(teacher_logp, student_logp).clamp(-gap_bound, gap_bound)


def power(teacher_logp: Tensor, student_logp: Tensor, *, gap_exponent: float = 1.0) -> Tensor:
    """(p_T^a - p_S^a) / a, in [-1/a, 1/a]: `log` as a falls to 0, the difference of probabilities at a = 1.

    Args:
        teacher_logp: [...], nats.
        student_logp: [...], nats.
        gap_exponent: The exponent a, in (0, inf).

    Source: Zhao et al. 2026, arXiv 2606.17199 (PowerOPD): the Box-Cox transform of both probabilities.

    Examples:
        >>> power(torch.tensor([0.5]).log(), torch.tensor([0.25]).log()).tolist()
        [0.25]
    """
    check_range("gap_exponent", gap_exponent, SMALLEST_EXPONENT)
    powers = torch.expm1(gap_exponent * teacher_logp) - torch.expm1(gap_exponent * student_logp)
    return powers / gap_exponent


def sigmoid(teacher_logp: Tensor, student_logp: Tensor, *, gap_sharpness: float = 5.0) -> Tensor:
    """1 / (1 + exp(-b d)), in (0, 1): never against a token, much for one that the teacher likes more than the student.

    `sampled_centred` subtracts its mean, which leaves the expected gradient as it is.

    Args:
        teacher_logp: [...], nats.
        student_logp: [...], nats.
        gap_sharpness: How sharply it rises with d, b per nat, in (0, inf).

    Source: Lu et al. 2026, arXiv 2605.15155 (SDAR), whose term sigmoid(b d) (log p_T - log p_S), differentiated through
    the last factor alone, has the gradient of this advantage.

    Examples:
        >>> [round(gap, 4) for gap in sigmoid(torch.tensor([-1.0, -1.0]), torch.tensor([-1.2, -1.0])).tolist()]
        [0.7311, 0.5]
    """
    check_range("gap_sharpness", gap_sharpness, SMALLEST_EXPONENT)
    return (gap_sharpness * log(teacher_logp, student_logp)).sigmoid()


def get(name: str, **settings: float) -> Pairwise:
    """Return the gap of this name with its settings bound; it can be pickled.

    Raises:
        SettingError: an unknown name, an unknown setting, or a value outside its range.

    Examples:
        >>> get("clip", gap_bound=0.5)(torch.tensor([-1.0]), torch.tensor([-3.0])).tolist()
        [0.5]
    """
    return bind("gap", name, GAPS, settings)


GAPS: dict[str, Callable[..., Tensor]] = {
    "log": log,
    "clip": clip,
    "power": power,
    "sigmoid": sigmoid,
}
