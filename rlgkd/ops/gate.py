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
| `teacher_reward_B1` | mean reward of the teacher's own answers to the prompt, or NaN | these answers, once |
| `divergence_BL` | D_n, as `divergence` and `teacher_top_k` say | a forward pass of the student, both heads once more |

Log-probabilities, entropies and divergences are in nats; outside the mask all of them are 0. A gap of more than
`LARGEST_GAP` in size, where one of the two has probability 0, is cut there.

To add a gate: write one function in gates_by_outcome.py or gates_by_token.py and name it in `GATES` at the bottom of
this file. What it reads are its arguments, its
settings the keyword-only ones, each with one sentence in its docstring's `Args`. `weighs` says which term it weighs,
and whether the mean of the weights stays 1, so that alpha means what it does without it. Other packages bring gates by
entry points in the group `rlgkd.gates`, each of which names such a function.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from rlgkd.errors import RlgkdError, SettingError, one_line, unknown_remedy
from rlgkd.ops._gate import Gate, Term, Weights, weighs
from rlgkd.ops._registry import check_name
from rlgkd.ops.gates_by_outcome import aopd, r2_opd, ra_opd, rg_opd, rlsd, sg_opd, srpo, tgopd
from rlgkd.ops.gates_by_token import improbable, iw_opd, none, prefix, sdar, tip

__all__ = [
    "GATES",
    "INPUTS",
    "LARGEST_GAP",
    "Cost",
    "Gate",
    "Term",
    "Weights",
    "add_plugins",
    "cost",
    "get",
    "keeps_mean",
    "names",
    "reads",
    "terms",
    "weighs",
    "weights_of",
]

_log = logging.getLogger(__name__)
Cost = Literal["nothing", "teacher", "both", "answers"]
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
    "teacher_reward_B1": "answers",
}
"""What a gate may ask for, and whose logits must be formed, or answers sampled, for it before the gradient."""
LARGEST_GAP = 1e4
"""Nats."""
GROUP = "rlgkd.gates"
"""The entry points by which other packages bring gates."""


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
    inputs = {wanted: kinds.get(wanted, one) for wanted in reads(name)}
    weights_of(name, bound, inputs)  # checks the settings' values now
    return bound


def weights_of(name: str, function: Gate, inputs: Mapping[str, Tensor]) -> Weights:
    """Call a gate.

    Raises: SettingError for an exception of it, or anything but two weights.
    """
    try:
        found: Any = function(**inputs)
    except RlgkdError:
        raise
    except Exception as error:  # of a package's own function
        raise SettingError("gate", name, f"it raised {one_line(f'{type(error).__name__}: {error}', 200)}") from error
    if not isinstance(found, tuple) or [isinstance(weight, Tensor | None) for weight in found] != [True, True]:
        remedy = f"it gave a {type(found).__name__}; return the weights of both terms, each a tensor or None"
        raise SettingError("gate", name, remedy)
    policy, divergence = found
    return policy, divergence


def reads(name: str) -> tuple[str, ...]:
    """What the gate of this name asks for."""
    parameters = inspect.signature(GATES[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)


def cost(name: str) -> Cost:
    """What the gate of this name needs before the gradient; of several things the dearest."""
    dearest_last = get_args(Cost)
    found: Cost = max((INPUTS[wanted] for wanted in reads(name)), key=dearest_last.index, default="nothing")
    return found


def terms(name: str) -> tuple[Term, ...]:
    """The terms that the gate of this name weighs; of one that does not say, both."""
    found: tuple[Term, ...] = getattr(GATES[name], "terms", ("policy", "divergence"))
    return found


def keeps_mean(name: str) -> str:
    """Over what the mean of its weights stays 1; "" if over nothing, or if it does not say."""
    return str(getattr(GATES[name], "mean", ""))


GATES: dict[str, Gate] = {
    "none": none,
    "rlsd": rlsd,
    "srpo": srpo,
    "ra_opd": ra_opd,
    "rg_opd": rg_opd,
    "sg_opd": sg_opd,
    "r2_opd": r2_opd,
    "tgopd": tgopd,
    "aopd": aopd,
    "sdar": sdar,
    "iw_opd": iw_opd,
    "tip": tip,
    "prefix": prefix,
    "improbable": improbable,
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
