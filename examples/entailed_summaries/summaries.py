"""Data and a part of the reward: short news, and how many of their details a summary keeps."""

import random

from rlgkd.envs.tasks.grounded.world import story


def draw(rng: random.Random) -> dict[str, object]:
    """Draw a row: a made-up report of some events, and a sentence about the first of them."""
    drawn = story("train", rng.randrange(2**31), 0)
    event = drawn.events[0]
    return {"passage": drawn.passage, "summary": drawn.reference, "details": [event.amount, event.where, event.when]}


def details(completions: list[str], details: list[list[str]]) -> list[float]:
    """The share of the event's known details (amount, place, time) that a summary holds, in [0, 1]."""
    return [
        sum(detail in completion for detail in wanted if detail) / max(1, sum(map(bool, wanted)))
        for completion, wanted in zip(completions, details, strict=True)
    ]
