"""Data, tool and reward: word problems whose sums a calculator works out."""

import operator
import random
import re
from collections.abc import Sequence

from rlgkd.envs.tasks.arithmetic import draw_problem
from rlgkd.types import Item

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
SUM = re.compile(r"(\d+) ([-+*/]) (\d+)\s*$")


def draw(rng: random.Random) -> dict[str, str]:
    """Draw a row: a question of one to three steps, and its solution."""
    problem = draw_problem(rng, rng.randint(1, 3))
    return {"question": problem.question, "solution": problem.solution}


def result(item: Item, turns: Sequence[str]) -> str | None:
    """Answer a turn that ends with a sum by its result; any other turn ends the episode."""
    asked = SUM.search(turns[-1])
    if asked is None or (asked[2] == "/" and int(asked[3]) == 0):
        return None
    return f" {SIGNS[asked[2]](int(asked[1]), int(asked[3]))}."


def answer(completions: list[str], references: list[str]) -> list[float]:
    """1 where the last turn's number after `####` is the solution's."""
    return [
        float(said.rpartition("####")[2].strip() == right.rpartition("####")[2].strip())
        for said, right in zip(completions, references, strict=True)
    ]
