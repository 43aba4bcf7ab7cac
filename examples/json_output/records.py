"""Data and reward: reports of an event, and the record that is to be read out of them."""

import json
import random
from typing import Any

from rlgkd.envs.tasks.grounded.world import story

FIELDS = ("who", "what", "where", "when")


def draw(rng: random.Random) -> dict[str, str]:
    """Draw a row: a made-up report, and its first event as JSON."""
    drawn = story("train", rng.randrange(2**31), 0)
    event = drawn.events[0]
    record = dict(zip(FIELDS, (event.actor, event.object, event.where, event.when), strict=True))
    return {"passage": drawn.passage, "record": json.dumps(record)}


def read(text: str) -> dict[str, Any] | None:
    """The record in a text, or None where it is no JSON object of these fields alone."""
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) and set(record) == set(FIELDS) else None


def right_fields(completions: list[str], references: list[str]) -> list[float]:
    """The share of fields that are right, in [0, 1]; 0 for what is no record."""
    rewards = []
    for completion, reference in zip(completions, references, strict=True):
        record, right = read(completion), json.loads(reference)
        rewards.append(sum(record[field] == right[field] for field in FIELDS) / len(FIELDS) if record else 0.0)
    return rewards


def parses(completions: list[str]) -> list[float]:
    """1 where a completion is a record."""
    return [float(read(completion) is not None) for completion in completions]
