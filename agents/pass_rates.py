"""Draws prompts by how often the student's texts are right: those that always or never are, teach little.

A prompt's pass rate is the running share of its right texts; when it comes again, it is drawn with probability
max(floor, 4 p (1 - p)), and otherwise passed over (PACED, arXiv 2603.11178, weighs by p (1 - p)). One of which no text
has been seen is always drawn. So E_x of Eq. 5 is over other prompts than those of the data, by the student's own doing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from rlgkd.ops.sampling import uniforms
from rlgkd.types import Trajectory

LATEST = 0.5
"""Share of the newest texts in a running pass rate."""


def chance(rate: float | None, floor: float) -> float:
    """The probability with which a prompt of this pass rate is drawn.

    Args:
        rate: In [0, 1]; None if it is not known.
        floor: The least probability, in [0.01, 1].

    Examples:
        >>> [chance(rate, 0.1) for rate in (None, 0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.1, 0.75, 1.0, 0.1]
    """
    return 1.0 if rate is None else max(floor, 4 * rate * (1 - rate))


def drawn(
    rates: Mapping[str, float], key: Callable[[int], str], first: int, number: int, *, floor: float, seed: int
) -> list[int]:
    """The stream indices of the next `number` prompts, from `first` on; some are passed over.

    Args:
        rates: Pass rates by the prompts' keys.
        key: The key of the prompt at a stream index.
        first: Where the stream goes on.
        number: How many are wanted.
        floor: As `chance` takes it.
        seed: Orders the coins, one for each stream index.
    """
    indices: list[int] = []
    while len(indices) < number:  # ends with probability 1, since each has the chance `floor`
        # A coin of the stream index, not of a generator's state: a run that is resumed throws the same ones again.
        if uniforms(seed, "prompts_by", first, 1)[0] < chance(rates.get(key(first)), floor):
            indices.append(first)
        first += 1
    return indices


def updated(rates: Mapping[str, float], texts: Sequence[Trajectory], *, passed_from: float) -> dict[str, float]:
    """The pass rates after an update.

    Args:
        rates: Those before.
        texts: What the student has written now; those whose reward failed do not count.
        passed_from: The reward from which a text is right.
    """
    found = dict(rates)
    passed: dict[str, list[bool]] = {}
    for t in texts:
        if not math.isnan(t.score.reward):
            passed.setdefault(t.item.key, []).append(t.score.reward >= passed_from)
    for key, rights in passed.items():
        share = sum(rights) / len(rights)
        found[key] = share if key not in found else (1 - LATEST) * found[key] + LATEST * share
    return found
