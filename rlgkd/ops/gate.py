"""Gates: where, in which text, and how much to distil. Two weights for each of the student's actions.

A gate is a function of what is known at the actions, by which it names them, to (weight of the policy term, weight of
the divergence term), each [B, L], [B, 1] or None for 1. Weights are 0 or more and constant in the gradient: they come
from the policy that sampled, once for a rollout, as advantages do. Off-policy texts always have 1 and 1.

B is the student's texts of the whole update, whatever the micro-batches and processes, L the actions of the longest.
What a gate may ask for, in the table `INPUTS`:

| argument | what it is | costs |
| --- | --- | --- |
| `mask_BL` | bool: whether the text has so many actions | |
| `advantage_BL` | of the task's reward | |
| `reward_B1` | the task's own; NaN if it failed | |
| `group_B1` | number of the prompt, the same for its samples | |
| `logp_BL` | log p_S(y_n) | |
| `entropy_BL` | of the student | |
| `gap_BL` | d_n = log p_T(y_n) - log p_S(y_n) | the teacher's head once more |
| `teacher_entropy_BL` | of the teacher | the teacher's head once more |
| `divergence_BL` | D_n, as `divergence` and `teacher_top_k` say | a forward pass of the student, both heads once more |

Log-probabilities, entropies and divergences are in nats; outside the mask all of them are 0. A gap of more than
`LARGEST_GAP` in size, where one of the two has probability 0, is cut there.

To add a gate: write one function here and name it in `GATES` at the bottom. What it reads are its arguments, its
settings the keyword-only ones, each with one sentence in its docstring's `Args`. `weighs` says which term it weighs,
and whether the mean of the weights stays 1, so that alpha means what it does without it. Other packages bring gates by
entry points in the group `rlgkd.gates`, each of which names such a function.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Literal, TypeVar

import torch
from torch import Tensor

from rlgkd.errors import SettingError, one_line, unknown_remedy
from rlgkd.ops._registry import check_name

_log = logging.getLogger(__name__)
Term = Literal["policy", "divergence"]
Weights = tuple[Tensor | None, Tensor | None]
"""Of the policy term and of the divergence term."""
Gate = Callable[..., Weights]
G = TypeVar("G", bound=Gate)
Cost = Literal["nothing", "teacher", "both"]
INPUTS: Final[dict[str, Cost]] = {
    "mask_BL": "nothing",
    "advantage_BL": "nothing",
    "reward_B1": "nothing",
    "group_B1": "nothing",
    "logp_BL": "nothing",
    "entropy_BL": "nothing",
    "gap_BL": "teacher",
    "teacher_entropy_BL": "teacher",
    "divergence_BL": "both",
}
"""What a gate may ask for, and which models' logits must be formed for it before the gradient."""
LARGEST_GAP = 1e4
"""Nats."""
GROUP = "rlgkd.gates"
"""The entry points by which other packages bring gates."""


def weighs(*terms: Term, mean: str = "") -> Callable[[G], G]:
    """Decorate a gate with the terms that it weighs and over what the mean of these weights stays 1; "" is nothing."""

    def mark(function: G) -> G:
        function.terms = terms  # type: ignore[attr-defined]
        function.mean = mean  # type: ignore[attr-defined]
        return function

    return mark


@weighs(mean="each action")
def none() -> Weights:
    """1 and 1: Eq. 5 as it is.

    Examples:
        >>> none()
        (None, None)
    """
    return None, None


@weighs("policy")
def rlsd(advantage_BL: Tensor, gap_BL: Tensor, *, reweighting: float = 0.5, reweighting_clip: float = 0.2) -> Weights:
    """Policy term times 1 - l + l clip(exp(sign(A) d), 1-e, 1+e): the reward gives the sign, the teacher the size.

    The mean weight is not kept, but stays in [1 - l e, 1 + l e]. At l = 0 all weights are 1.

    Args:
        advantage_BL: [B, L].
        gap_BL: [B, L], nats.
        reweighting: How much the teacher says of a token's share, l in [0, 1]; 0 is the policy term alone.
        reweighting_clip: How far the teacher's ratio may lie from 1, e in [0, 1].

    Source: Yang et al. 2026, arXiv 2604.03128 (RLSD), Eq. 13 to 15; there d is to the student that reads the answer
    too, and l falls to 0 over the first 50 steps.

    Examples:
        >>> advantage, gap = torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[0.1, -2.0, -2.0]])
        >>> [round(weight, 4) for weight in rlsd(advantage, gap)[0][0].tolist()]
        [1.0526, 0.9, 1.1]
    """
    _check("reweighting", reweighting, 0.0, 1.0)
    _check("reweighting_clip", reweighting_clip, 0.0, 1.0)
    ratio_BL = (advantage_BL.sign() * gap_BL).exp().clamp(1.0 - reweighting_clip, 1.0 + reweighting_clip)
    return 1.0 - reweighting + reweighting * ratio_BL, None


@weighs("divergence")
def iw_opd(gap_BL: Tensor, mask_BL: Tensor, *, prefix_gain: float = 0.5) -> Weights:
    """Divergence times 1 + g (1 - F_n), F_n the share of a text's |d| before n: most where the teacher would be too.

    The mean weight lies in [1, 1 + g]. At g = 0 all weights are 1.

    Args:
        gap_BL: [B, L], nats.
        mask_BL: [B, L], bool.
        prefix_gain: The gain g of a text's first token, 0 or more.

    Source: Xie et al. 2026, arXiv 2606.22600 (IW-OPD), as its public code has it.

    Examples:
        >>> iw_opd(torch.tensor([[-1.0, 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))[1].tolist()
        [[1.5, 1.375, 1.125]]
    """
    _check("prefix_gain", prefix_gain, 0.0)
    size_BL = gap_BL.abs() * mask_BL
    before_BL = size_BL.cumsum(1) - size_BL
    total_B1 = size_BL.sum(1, keepdim=True)
    share_BL = torch.where(total_B1 > 0, before_BL / total_B1, 0.0)
    return None, 1.0 + prefix_gain * (1.0 - share_BL)


def names() -> tuple[str, ...]:
    """Return the names that `get` knows, sorted."""
    return tuple(sorted(GATES))


def get(name: str, **settings: float | bool) -> Gate:
    """Return the gate of this name with its settings bound; it takes what it reads by keyword.

    Raises:
        SettingError: an unknown name or setting, a value out of range, or a gate that reads what is not in `INPUTS`.

    Examples:
        >>> get("iw_opd", prefix_gain=0.0)(gap_BL=torch.ones(1, 2), mask_BL=torch.ones(1, 2, dtype=torch.bool))[1]
        tensor([[1., 1.]])
    """
    function = GATES[check_name("gate", name, GATES)]
    known = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for field, value in settings.items():
        if field not in known:
            raise SettingError(field, value, f"{name} does not take it; {unknown_remedy(field, known)}")
    for wanted in reads(name):
        if wanted not in INPUTS:
            raise SettingError("gate", name, f"it reads {wanted}; {unknown_remedy(wanted, INPUTS)}")
    bound = functools.partial(function, **settings)
    one = torch.zeros(1, 1, dtype=torch.float64)
    kinds = {"mask_BL": one == 0, "group_B1": one.long()}
    bound(**{wanted: kinds.get(wanted, one) for wanted in reads(name)})  # checks the settings' values now
    return bound


def reads(name: str) -> tuple[str, ...]:
    """What the gate of this name asks for."""
    parameters = inspect.signature(GATES[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)


def cost(name: str) -> Cost:
    """Whose logits the gate of this name needs before the gradient."""
    costs = {INPUTS[wanted] for wanted in reads(name)}
    return "both" if "both" in costs else "teacher" if "teacher" in costs else "nothing"


def terms(name: str) -> tuple[Term, ...]:
    """The terms that the gate of this name weighs; of one that does not say, both."""
    found: tuple[Term, ...] = getattr(GATES[name], "terms", ("policy", "divergence"))
    return found


def keeps_mean(name: str) -> str:
    """Over what the mean of its weights stays 1; "" if over nothing, or if it does not say."""
    return str(getattr(GATES[name], "mean", ""))


def _check(field: str, value: float, least: float, most: float = float("inf")) -> None:
    if not least <= value <= most:  # refuses NaN too
        remedy = f"give {least:g} or more" if most == float("inf") else f"give a number in [{least:g}, {most:g}]"
        raise SettingError(field, value, remedy)


GATES: dict[str, Gate] = {
    "none": none,
    "rlsd": rlsd,
    "iw_opd": iw_opd,
}


def add_plugins(found: Iterable[EntryPoint]) -> None:
    """Add the gates of other packages; one that cannot be imported, or has a name that is taken, is left out."""
    for entry in found:
        package = entry.dist.name if entry.dist else entry.value
        if entry.name in GATES:
            _log.warning("gate %r of %s is left out: there is one of that name", entry.name, package)
            continue
        try:
            GATES[entry.name] = entry.load()
        except Exception as error:  # whatever a package raises, rlgkd works without it
            reason = one_line(f"{type(error).__name__}: {error}")
            _log.warning("gate %r of %s is left out: %s", entry.name, package, reason)


add_plugins(entry_points(group=GROUP))
