"""Data and reward: word problems of three steps, the answer, and the steps that lead to it."""

import operator
import random
import re

from rlgkd.envs.tasks.arithmetic import draw_problem

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\.")


def draw(rng: random.Random) -> dict[str, str]:
    """Draw a row: a question of one to three steps, and its solution."""
    problem = draw_problem(rng, rng.randint(1, 3))
    return {"question": problem.question, "solution": problem.solution}


def answer(completions: list[str], references: list[str]) -> list[float]:
    """1 where the number after `####` is the solution's."""
    return [float(last(said) == last(right)) for said, right in zip(completions, references, strict=True)]


def steps(completions: list[str], references: list[str]) -> list[float]:
    """The share of the steps that are right, in [0, 1]; a step that the solution has and the text lacks is wrong."""
    shares = []
    for said, right in zip(completions, references, strict=True):
        written = STEP.findall(said)
        shares.append(sum(map(is_right, written)) / max(len(written), len(STEP.findall(right))))
    return shares


def last(text: str) -> str:
    """What follows `####`."""
    return text.rpartition("####")[2].strip()


def is_right(step: tuple[str, str, str, str]) -> bool:
    """Whether a step's result is its sum's."""
    left, sign, right, result = step
    if sign == "/" and int(right) == 0:
        return False
    return bool(SIGNS[sign](int(left), int(right)) == int(result))
