"""A user's functions besides rewards: an exception or an exit is one line, and settings of the process are put back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import no_reward, tokenizer

from rlgkd.envs import TextTask
from rlgkd.envs.task_makers import build_task
from rlgkd.errors import SettingError
from rlgkd.imports import import_object
from rlgkd.types import Item

Break = Callable[[], None]


def state() -> tuple[Any, ...]:
    modes = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())
    return (*modes, torch.get_num_threads(), os.getcwd())


def changes_all() -> None:
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(torch.get_num_threads() + 1)
    os.chdir("/")


def made(**settings: Any) -> TextTask:
    given = {"prompts": ["Q"], "reward": no_reward, "tokenizer": tokenizer(), "max_prompt_tokens": 500, **settings}
    return TextTask(**given)


def function_of_rng(breaks: Break) -> Any:
    def draw(rng: object) -> str:
        breaks()
        return "Q"

    return made(prompts=draw, split_shares=None).item("test", 0, 0)


def source(breaks: Break) -> Any:
    class Source:
        def size(self, split: str) -> int:
            return 1

        def item(self, split: str, seed: int, index: int) -> Item:
            breaks()
            return Item(key="a", prompt="Q")

    return made(prompts=Source()).item("test", 0, 0)


def quality(breaks: Break) -> Any:
    def measured(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        breaks()
        return [{} for _ in items]

    task = made(quality=measured)
    return task.quality([task.item("test", 0, 0)], [""])


def reply(breaks: Break) -> Any:
    def replies(item: Item, turns: Sequence[str]) -> None:
        breaks()

    task = made(reply=replies)
    return task.reply(task.item("test", 0, 0), [""])


def maker(breaks: Break) -> Any:
    def make() -> TextTask:
        breaks()
        return made()

    return build_task(make, TextTask)


def tool(breaks: Break) -> Any:
    def called(x: str) -> str:
        """Do it.

        Args:
            x: What.
        """
        breaks()
        return x

    task = made(tools=[called], chat=True)
    return task.reply(task.item("test", 0, 0), ['{"name": "called", "arguments": {"x": "a"}}'])


CALLS = {"prompts": function_of_rng, "quality": quality, "reply": reply, "task": maker}


@pytest.mark.parametrize("call", [*CALLS.values(), source, tool])
def test_what_a_function_changes_for_the_whole_process_is_put_back(call: Callable[[Break], Any]) -> None:
    before = state()
    call(changes_all)
    assert state() == before


@pytest.mark.parametrize("field", CALLS)
@pytest.mark.parametrize(
    ("breaks", "what"), [(lambda: sys.exit("why"), "SystemExit: why"), (lambda: {}[3], "KeyError: 3")]
)
def test_an_exit_or_an_exception_is_one_line_that_says_where(field: str, breaks: Break, what: str) -> None:
    with pytest.raises(SettingError, match=rf"{field}: .* it raised {what} \({__file__}:\d+, in ") as raised:
        CALLS[field](breaks)
    assert "\n" not in str(raised.value)


def test_a_module_leaves_torch_as_it_was_and_what_it_raises_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sets_modes.py").write_text(
        "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\none = 1\n"
    )
    (tmp_path / "divides.py").write_text("\n1 / 0\n")
    before = state()
    assert import_object("reward", f"{tmp_path}/sets_modes.py:one") == 1 and state() == before
    with pytest.raises(SettingError, match=r"could not be imported: ZeroDivisionError: .* \(.*divides.py:2\)"):
        import_object("reward", f"{tmp_path}/divides.py:one")
