"""Texts of earlier updates that are learned from again.

For the exact divergence they need no correction: Eq. 5 takes D at given prefixes, of whatever origin, so that a text of
an older student is a text of another mixture mu. In the policy term their tokens have the ratio p_S / p_old, which the
clipped losses form from the log-probabilities with which they were sampled, and their groups keep their rewards.

What is kept is part of the training state, as JSON values: token ids, numbers, and each prompt's index in the stream of
items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlgkd.agents.rollout import Rollout, rows_by_tokens
from rlgkd.agents.text_json import from_json, to_json
from rlgkd.ops.sampling import uniforms
from rlgkd.types import ON_POLICY, Item, Score, Source, Trajectory

Group = list[dict[str, Any]]
"""The samples of a prompt, as JSON values."""


def drawn(groups: Sequence[Group], number: int, *, seed: int, update: int) -> list[Group]:
    """So many of the groups, without repetition, in the order in which they are kept; fewer if there are fewer."""
    order: list[int] = np.argsort(uniforms(seed, "replay", update, len(groups)), kind="stable").tolist()
    return [groups[row] for row in sorted(order[:number])]


def kept(
    groups: Sequence[Group], rollout: Rollout, index_of: Mapping[str, int], group_size: int, size: int
) -> list[Group]:
    """The groups with those that a rollout has sampled after them: the newest `size` of them."""
    own = rollout.on_policy
    rows = [
        [_to_json(t, index_of[t.item.key]) for t in own[start : start + group_size]]
        for start in range(0, len(own), group_size)
    ]
    return [*groups, *rows][-size:]


def replayed(
    rollout: Rollout, groups: Sequence[Group], item: Callable[[int], Item], *, in_policy_term: bool
) -> Rollout:
    """A rollout with texts of earlier updates among its own: on-policy for the policy term, else to be distilled alone.

    Args:
        rollout: That of an update; a teacher outside of the process has not been asked for anything.
        groups: The texts.
        item: The item at an index of the stream.
        in_policy_term: Whether they have one.
    """
    source = Source.STUDENT if in_policy_term else Source.REPLAY
    texts = [_from_json(sample, item(sample["index"]), source) for group in groups for sample in group]
    on_policy = rollout.on_policy
    others = [t for t in rollout.trajectories if t.source not in ON_POLICY]
    trajectories = [*on_policy, *texts, *others] if in_policy_term else [*on_policy, *others, *texts]
    first = len(on_policy) if in_policy_term else len(on_policy) + len(others)
    return dataclasses.replace(
        rollout,
        trajectories=trajectories,
        replayed=range(first, first + len(texts)),
        micro_batches=[],
        rows=None if rollout.rows is None else rows_by_tokens(trajectories, rollout.ranks),
    )


def _to_json(t: Trajectory, index: int) -> dict[str, Any]:
    return {
        "index": index,
        **to_json(t),
        "entropy": t.entropy_T[t.action_mask_T].tolist(),
        "reward": None if np.isnan(t.score.reward) else t.score.reward,
        "steps": None if t.score.steps is None else list(t.score.steps),
    }


def _from_json(sample: Mapping[str, Any], item: Item, source: Source) -> Trajectory:
    reward = np.nan if sample["reward"] is None else sample["reward"]
    steps = None if sample["steps"] is None else tuple(sample["steps"])
    return from_json(sample, item, source).scored(Score(reward=reward, steps=steps))
