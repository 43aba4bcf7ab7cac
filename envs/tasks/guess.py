"""rlgkd/Guess-v0: a game of several turns. The policy guesses a number until the hints lead it to the right one.

A miniature of tool use: the environment's replies stand between the policy's turns and are no actions, and a policy
that halves the range each time needs the fewest turns.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.data.procedural import ProceduralItems
from rlgkd.envs.task import TextTask
from rlgkd.errors import SettingError
from rlgkd.settings import checked_arguments
from rlgkd.types import Item

TOKENIZER = "embedded:grounded-teacher"
MIN_RANGE = 4
"""The fewest numbers in a range."""


@checked_arguments
def guess(
    *,
    largest: int = 100,
    guesses: int = 7,
    tokenizer: str | PreTrainedTokenizerBase = TOKENIZER,
    max_new_tokens: int = 96,
    max_prompt_tokens: int = 48,
) -> TextTask:
    """A game of several turns: guess a number, get `higher` or `lower` as a reply, and guess again.

    Prompt: A range of 4 or more numbers. Each wrong guess is answered with `higher` or `lower`.

    Reward: 1 for the right number at once, falling evenly to 1 / guesses for the last guess; 0 if it is not found.
    Halving the range finds any of n numbers in log2(n + 1) guesses, rounded up.

    Episode end: The right number, the last guess, or a turn that is no whole number; at the length limit of all turns,
    the game is scored as it stands.

    Splits: Games are drawn without end; the hash of the prompt decides the split, 8, 1 and 1 tenths.

    Args:
        largest: The ranges lie within [1, largest]; 16 or more.
        guesses: The most guesses; 1 or more.
        tokenizer: A model's name or a loaded tokenizer.
        max_new_tokens: Length limit of all turns together, the environment's included.
        max_prompt_tokens: Length limit of a prompt.

    Raises: SettingError.
    """
    if largest < 16:
        raise SettingError("largest", largest, "give 16 or more, for there to be ranges for each split")
    if guesses < 1:
        raise SettingError("guesses", guesses, "give 1 or more")

    def draw(rng: random.Random, key: str) -> Item:
        low = rng.randint(1, largest - MIN_RANGE + 1)
        high = rng.randint(low + MIN_RANGE - 1, largest)
        number = rng.randint(low, high)
        prompt = f" Guess a number from {low} to {high}."
        return Item(key=key, prompt=prompt, reference=str(number), columns={"number": number})

    def reply(item: Item, turns: Sequence[str]) -> str | None:
        guessed = _whole_number(turns[-1])
        number = item.columns["number"]
        if guessed is None or guessed == number or len(turns[::2]) >= guesses:
            return None
        return " higher" if guessed < int(str(number)) else " lower"

    def reward(turns: Sequence[Sequence[str]], number: Sequence[int]) -> list[float]:
        return [
            (guesses - len(game[::2]) + 1) / guesses if _whole_number(game[-1]) == right else 0.0
            for game, right in zip(turns, number, strict=True)
        ]

    return TextTask(
        name="Guess",
        prompts=ProceduralItems("guess", draw),
        reward=reward,
        reply=reply,
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        quality=quality,
    )


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """`found`: 1 if the last guess is right."""
    return [
        {"found": float(_whole_number(text) == item.columns["number"])}
        for item, text in zip(items, completions, strict=True)
    ]


def _whole_number(text: str) -> int | None:
    # isdigit() alone is also true for digits that int() refuses, such as superscripts.
    return int(text) if text.strip().isascii() and text.strip().isdigit() else None
