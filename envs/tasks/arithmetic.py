"""rlgkd/Arithmetic-v0: word problems, answered with a chain of steps and a number that is checked exactly.

A miniature of GSM8K. The reward is for the number after the last `####` alone; whether the steps are right is measured
in evaluation.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.data.procedural import ProceduralItems
from rlgkd.envs.rewards import numeric
from rlgkd.envs.task import TextTask
from rlgkd.errors import SettingError
from rlgkd.settings import checked_arguments
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
        """Steps and answer in the form of a reference."""
        return " ".join([*self.steps, f"{MARKER} {self.answer}"])


def draw_problem(rng: random.Random, steps: int) -> Problem:
    """Draw a problem of so many steps; every intermediate result is a whole number, from 1 to some hundreds."""
    name = rng.choice(NAMES)
    thing = rng.choice(THINGS)
    have = rng.randint(5, 60)
    clauses = [f"{name} has {have} {thing}"]
    solution: list[str] = []

    def step(symbol: str, number: int, result: int) -> None:
        nonlocal have
        solution.append(f"{have} {symbol} {number} = {result}.")
        have = result

    while len(solution) < steps:
        kinds = ["gains", "loses", "boxes", "doubles", "shares"]
        kind = rng.choice([k for k in kinds if k != "boxes" or len(solution) + 2 <= steps])  # boxes take two steps
        if kind == "gains":
            number = rng.randint(2, 40)
            clauses.append(f"finds {number} more")
            step("+", number, have + number)
        elif kind == "loses" and have > 4:
            number = rng.randint(2, have - 2)
            clauses.append(f"gives {number} away")
            step("-", number, have - number)
        elif kind == "boxes":
            count = rng.randint(2, 9)
            each = rng.randint(2, 9)
            clauses.append(f"buys {count} {rng.choice(BOXES)} of {each}")
            solution.append(f"{count} * {each} = {count * each}.")
            step("+", count * each, have + count * each)
        elif kind == "doubles" and have <= 150:
            clauses.append("wins as many again")
            step("*", 2, have * 2)
        elif kind == "shares":
            parts = [n for n in range(2, 7) if have % n == 0 and have > n]
            if parts:
                number = rng.choice(parts)
                clauses.append(f"keeps one of {number} shares")
                step("/", number, have // number)
    return Problem(f"{', '.join(clauses)}. How many {thing} now?", tuple(solution), have)


@checked_arguments
def arithmetic(
    *,
    steps: int = 3,
    tokenizer: str | PreTrainedTokenizerBase = TOKENIZER,
    max_new_tokens: int = 40,
    max_prompt_tokens: int = 32,
) -> TextTask:
    """Word problems of 1 to `steps` steps, in [1, 8], written out; the reward is for the right answer.

    Prompt: A problem in a sentence or two, then `Solution:`.

    Reward: 1 if the number after the last `####`, at the end of the text, is the answer; otherwise 0.

    Episode end: The end token; at the length limit, the text is scored as it stands.

    Splits: Problems are drawn without end; the hash of the prompt decides the split, 8, 1 and 1 tenths.

    Args:
        steps: Steps of the longest problems.
        tokenizer: A model's name or a loaded tokenizer.
        max_new_tokens: Length limit of a completion. The default fits 3 steps; each further one takes 12 more.
        max_prompt_tokens: Length limit of a prompt. The default fits 3 steps; each further one takes 6 more.

    Raises: SettingError.
    """
    if not 1 <= steps <= 8:
        raise SettingError("steps", steps, "give 1 to 8")

    def draw(rng: random.Random, key: str) -> Item:
        problem = draw_problem(rng, rng.randint(1, steps))
        return Item(
            key=key,
            prompt=f" {problem.question}\nSolution:",
            reference=problem.solution,
            columns={"answer": problem.answer},
        )

    return TextTask(
        name="Arithmetic",
        prompts=ProceduralItems("arithmetic", draw),
        reward=numeric(marker=MARKER),
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        quality=quality,
    )


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """`steps`: share of a completion's steps whose result is right (0 if it has none); `exact`: 1 for the reference."""
    measures = []
    for item, completion in zip(items, completions, strict=True):
        right = [_is_right(*step) for step in STEP.findall(completion)]
        exact = completion.split() == item.reference.split()
        measures.append({"steps": sum(right) / len(right) if right else 0.0, "exact": float(exact)})
    return measures


def _is_right(left: str, symbol: str, right: str, result: str) -> bool:
    a = int(left)
    b = int(right)
    results = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else float("nan")}
    return results[symbol] == int(result)
