"""rlgkd/Arithmetic-v0: word problems, answered with a chain of steps and a number that is checked exactly.

A miniature of GSM8K. The reward sees the number behind the last `####` alone; whether the steps are right is measured
beside it, for evaluation.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlgkd.envs.data.procedural import SplitItems
from rlgkd.envs.rewards import numeric
from rlgkd.envs.task import TextTask
from rlgkd.errors import SettingError
from rlgkd.types import Item

TOKENIZER = "embedded:arithmetic-teacher"
NAMES = ("Mara", "Felix", "Ida", "Jonas", "Lena", "Oskar", "Nora", "Emil")
THINGS = ("apples", "books", "coins", "stamps", "marbles", "cards", "shells", "pens")
BOXES = ("boxes", "bags", "packs", "crates")
MARKER = "####"
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\.")


@dataclass(frozen=True)
class Problem:
    """A question, its steps as text, and the answer."""

    question: str
    steps: tuple[str, ...]
    answer: int

    @property
    def solution(self) -> str:
        """Steps and answer, as a reference has them."""
        return " ".join([*self.steps, f"{MARKER} {self.answer}"])


def problem(rng: random.Random, steps: int) -> Problem:
    """A problem of so many steps; every number on the way is a whole one, from 1 to some hundreds."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    have = rng.randint(5, 60)
    told, written = [f"{name} has {have} {thing}"], []

    def step(symbol: str, number: int, result: int) -> None:
        nonlocal have
        written.append(f"{have} {symbol} {number} = {result}.")
        have = result

    while len(written) < steps:
        kinds = ["gains", "loses", "boxes", "doubles", "shares"]
        kind = rng.choice([k for k in kinds if k != "boxes" or len(written) + 2 <= steps])
        if kind == "gains":
            number = rng.randint(2, 40)
            told.append(f"finds {number} more")
            step("+", number, have + number)
        elif kind == "loses" and have > 4:
            number = rng.randint(2, have - 2)
            told.append(f"gives {number} away")
            step("-", number, have - number)
        elif kind == "boxes":
            count, each = rng.randint(2, 9), rng.randint(2, 9)
            told.append(f"buys {count} {rng.choice(BOXES)} of {each}")
            written.append(f"{count} * {each} = {count * each}.")
            step("+", count * each, have + count * each)
        elif kind == "doubles" and have <= 150:
            told.append("wins as many again")
            step("*", 2, have * 2)
        elif kind == "shares":
            parts = [n for n in range(2, 7) if have % n == 0 and have > n]
            if parts:
                number = rng.choice(parts)
                told.append(f"keeps one of {number} shares")
                step("/", number, have // number)
    return Problem(f"{', '.join(told)}. How many {thing} now?", tuple(written), have)


def arithmetic(
    *, steps: int = 3, tokenizer: str = TOKENIZER, max_new_tokens: int = 40, max_prompt_tokens: int = 32
) -> TextTask:
    """Word problems of 1 to `steps` steps, in [1, 8], written out; the reward is for the right answer.

    The limits fit 3 steps: for each one more, give 12 new tokens and 6 of the prompt.

    Raises: SettingError.
    """
    if not 1 <= steps <= 8:
        raise SettingError("steps", steps, "give 1 to 8")

    def draw(rng: random.Random, key: str) -> Item:
        drawn = problem(rng, rng.randint(1, steps))
        return Item(
            key=key, prompt=f" {drawn.question}\nSolution:", reference=drawn.solution, columns={"answer": drawn.answer}
        )

    return TextTask(
        name="Arithmetic", prompts=SplitItems("arithmetic", draw), reward=numeric(marker=MARKER), tokenizer=tokenizer,
        max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens, quality=quality,
    )  # fmt: skip


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """`steps`: share of the written steps whose result is right (0 where there are none); `exact`: as the reference."""
    measures = []
    for item, completion in zip(items, completions, strict=True):
        done = [
            {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else float("nan")}[symbol] == result
            for a, symbol, b, result in (
                (int(a), symbol, int(b), int(result)) for a, symbol, b, result in STEP.findall(completion)
            )
        ]
        right = sum(done) / len(done) if done else 0.0
        measures.append({"steps": right, "exact": float(completion.split() == item.reference.split())})
    return measures
