"""rlgkd/Calculator-v0: arithmetic that is too long for the head, and a tool that does it."""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.data.procedural import ProceduralItems
from rlgkd.envs.rewards.text import NUMBER
from rlgkd.envs.task import TextTask
from rlgkd.envs.tools import call_of
from rlgkd.errors import SettingError
from rlgkd.settings import checked_arguments
from rlgkd.types import Item

OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
MAX_EXPRESSION = 200
"""Characters that the calculator takes, so that no call takes long."""
SYSTEM = "Use the calculator. When you know the result, answer with the number alone."


def calculate(expression: str) -> str:
    """Work out an expression of whole numbers.

    Args:
        expression: Numbers, +, -, * and parentheses, such as "12 * (3 + 4)".
    """
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"more than {MAX_EXPRESSION} characters")
    return str(_value(ast.parse(expression.strip(), mode="eval").body))


@checked_arguments
def calculator(
    *,
    largest: int = 999,
    system: str = SYSTEM,
    tokenizer: str | PreTrainedTokenizerBase = "smollm2-135m",
    max_new_tokens: int = 160,
    max_prompt_tokens: int = 512,
) -> TextTask:
    """A tool in the loop: the student calls a calculator, reads its answer, and says the result.

    Prompt: `What is 317 * 48 - 905?` in the tokenizer's chat template, with the calculator's schema where the template
    shows tools, or else in the system's message. Its reference is the call that finds the result: a first turn to learn
    from.

    Reward: 1 if the last turn holds one number and it is the result, otherwise 0. Its parts count the calls
    (`tool_calls`) and those that failed (`tool_errors`).

    Episode end: The first turn that calls nothing; at the length limit of all turns, the text is scored as it stands.

    Splits: Problems are drawn without end; the hash of the prompt decides the split, 8, 1 and 1 tenths.

    Args:
        largest: The largest number in a problem; 9 or more.
        system: The system's message; empty for none.
        tokenizer: The name of a model with a chat template, or a loaded tokenizer.
        max_new_tokens: Length limit of all turns together, the calculator's included.
        max_prompt_tokens: Length limit of a prompt, the schema included.

    Raises: SettingError, ModelError; DependencyError without the default tokenizer.
    """
    if largest < 9:
        raise SettingError("largest", largest, "give 9 or more, for there to be problems for each split")

    def draw(rng: random.Random, key: str) -> Item:
        a, b, c = (rng.randint(2, largest) for _ in range(3))
        expression = f"{a} * {b} {rng.choice('+-')} {c}"
        result = calculate(expression)
        call = call_of("calculate", {"expression": expression})
        return Item(key=key, prompt=f"What is {expression}?", reference=call, columns={"result": result})

    return TextTask(
        name="Calculator",
        prompts=ProceduralItems("calculator", draw),
        reward=says_the_result,
        tools=[calculate],
        chat=True,
        system=system,
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
    )


def says_the_result(completions: Sequence[str], result: Sequence[str]) -> list[float]:
    """1 for a text that holds one number, and it is the result."""
    numbers = [[number.replace(",", "") for number in re.findall(NUMBER, text)] for text in completions]
    return [float(found == [right]) for found, right in zip(numbers, result, strict=True)]


def _value(node: Any) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only whole numbers, +, -, * and parentheses")
