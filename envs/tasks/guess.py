"""rlgkd/Guess-v0: a game of several turns. The policy guesses a number, is told `higher` or `lower`, and guesses again.

A miniature of tool use: what the environment says stands between the policy's turns and is no action, and whoever
halves the range each time needs the fewest turns.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlgkd.envs.data.procedural import SplitItems
from rlgkd.envs.task import TextTask
from rlgkd.errors import SettingError
from rlgkd.types import Item

TOKENIZER = "embedded:grounded-teacher"
FEWEST = 4
"""Numbers in a range."""


def guess(
    *,
    largest: int = 100,
    guesses: int = 7,
    tokenizer: str = TOKENIZER,
    max_new_tokens: int = 96,
    max_prompt_tokens: int = 48,
) -> TextTask:
    """A game of several turns: guess a number, be told `higher` or `lower`, and guess again.

    The reward is 1 for the right number at once and falls evenly to 1 / guesses for the last guess; 0 for none. Halving
    the range finds any of n numbers in log2(n + 1) guesses, rounded up. Text that is no whole number ends the game.

    Args:
        largest: The prompt gives a range of 4 numbers or more within [1, largest]; 16 or more.
        guesses: Turns; 1 or more.
        tokenizer: A model's name.
        max_new_tokens: Of all turns together, the environment's included.
        max_prompt_tokens: Of the prompt.

    Raises: SettingError.
    """
    if largest < 16:
        raise SettingError("largest", largest, "give 16 or more, for there to be ranges for each split")
    if guesses < 1:
        raise SettingError("guesses", guesses, "give 1 or more")

    def draw(rng: random.Random, key: str) -> Item:
        low = rng.randint(1, largest - FEWEST + 1)
        high = rng.randint(low + FEWEST - 1, largest)
        number = rng.randint(low, high)
        prompt = f" Guess a number from {low} to {high}."
        return Item(key=key, prompt=prompt, reference=str(number), columns={"number": number})

    def reply(item: Item, turns: Sequence[str]) -> str | None:
        given, number = _number(turns[-1]), item.columns["number"]
        if given is None or given == number or len(turns[::2]) >= guesses:
            return None
        return " higher" if given < int(str(number)) else " lower"

    def reward(turns: Sequence[Sequence[str]], number: Sequence[int]) -> list[float]:
        return [
            (guesses - len(said[::2]) + 1) / guesses if _number(said[-1]) == right else 0.0
            for said, right in zip(turns, number, strict=True)
        ]

    return TextTask(
        name="Guess", prompts=SplitItems("guess", draw), reward=reward, reply=reply, tokenizer=tokenizer,
        max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens, quality=quality,
    )  # fmt: skip


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """`found`: 1 where the last guess is right."""
    return [
        {"found": float(_number(text) == item.columns["number"])} for item, text in zip(items, completions, strict=True)
    ]


def _number(text: str) -> int | None:
    return int(text) if text.strip().isascii() and text.strip().isdigit() else None
