"""Draws other prompts for groups whose rewards are all the same, which teach the policy term nothing.

As many prompts are drawn as groups are missing, again and again within a budget, so that nothing is left over: every
text of an update is the present policy's, and the stream of items goes on after the last one that was drawn. The tokens
of what is discarded were generated, and count on the axis of tokens. (DAPO, arXiv 2503.14476, draws whole batches.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from rlgkd.agents.advantages import even_groups
from rlgkd.agents.rollout import Rollout, rows_by_tokens
from rlgkd.types import ON_POLICY, Trajectory


def resampled(
    first: Rollout, collect: Callable[[int], Rollout], *, rounds: int, group_size: int, keeps_even: bool
) -> Rollout:
    """Return a rollout with other groups in the place of even ones, which are among its `discarded` texts.

    Args:
        first: The update's own draw.
        collect: Draws a number of prompts, in the order of the stream, and samples a group for each.
        rounds: How often at most it is called.
        group_size: Samples of each prompt.
        keeps_even: Whether even groups stay, without a policy term, to be distilled; none is discarded then.

    Groups with spread keep the order in which they were drawn. Where none has any, the first draw stays as it is.
    """
    if first.stopped:  # and not scored
        return first
    drawn = [first]
    even = [_even(first, group_size)]
    wanted = len(even[0])
    while True:
        missing = wanted - sum(not is_even for flags in even for is_even in flags)
        if missing == 0 or len(drawn) > rounds:
            break
        drawn.append(more := collect(missing))
        even.append([True] * missing if more.stopped else _even(more, group_size))
        if more.stopped:
            break
    if len(drawn) == 1:
        return first
    kept = [[keeps_even or not is_even for is_even in flags] for flags in even]
    if not any(keep for flags in kept for keep in flags):
        kept[0] = [True] * wanted
    return _joined(drawn, kept, group_size)


def _even(rollout: Rollout, group_size: int) -> list[bool]:
    """Whether the rewards of each group of on-policy texts are all the same."""
    on_policy = rollout.on_policy
    valid_B = torch.tensor([not math.isnan(t.score.reward) for t in on_policy], dtype=torch.bool, device="cpu")
    flags: list[bool] = even_groups(on_policy, valid_B.view(-1, group_size)).tolist() if on_policy else []
    return flags


def _joined(drawn: Sequence[Rollout], kept: Sequence[Sequence[bool]], group_size: int) -> Rollout:
    """The kept groups of several draws as one rollout, with the first one's off-policy texts after them."""
    first = drawn[0]
    chosen: list[tuple[int, int]] = []  # (draw, row in it)
    discarded: list[Trajectory] = []
    for number, flags in enumerate(kept):
        for group, keep in enumerate(flags):
            for row in range(group * group_size, (group + 1) * group_size):
                if keep:
                    chosen.append((number, row))
                elif row < len(drawn[number].trajectories):  # a draw that was stopped may lack texts
                    discarded.append(drawn[number].trajectories[row])
    chosen += [(0, row) for row, t in enumerate(first.trajectories) if t.source not in ON_POLICY]
    new_row = {old: row for row, old in enumerate(chosen)}
    trajectories = [drawn[number].trajectories[row] for number, row in chosen]
    answers, rows = None, None
    if first.answers is not None:  # each process has asked for its own rows
        answers = {
            new_row[number, row]: answer
            for number, rollout in enumerate(drawn)
            for row, answer in (rollout.answers or {}).items()
            if (number, row) in new_row
        }
    if first.rows is not None:
        rows = rows_by_tokens(trajectories, first.ranks) if answers is None else sorted(answers)
    return dataclasses.replace(
        first,
        trajectories=trajectories,
        discarded=discarded,
        micro_batches=[],  # what was computed early was of all texts
        tokens=sum(rollout.tokens for rollout in drawn),
        stopped=drawn[-1].stopped,
        rows=rows,
        answers=answers,
    )
