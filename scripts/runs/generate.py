"""Completes prompts with a model, in the format of its training where it is a run's: `rlgkd generate`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlgkd.devices import best_device
from rlgkd.envs.rewards.constant import no_reward
from rlgkd.envs.task import TextTask
from rlgkd.envs.text.format_string import FormatString
from rlgkd.errors import DataError, SettingError, TooLongError
from rlgkd.lm import LanguageModel, open_by_name
from rlgkd.ops.logit_filters import Filters
from rlgkd.rollout import rollout
from rlgkd.scripts._yaml import load_yaml
from rlgkd.scripts.config.reading import read_without_code
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.folder import BEST, CONFIG, MODEL

OF_TEXTS = ("end_tokens", "skip_special_tokens", "stop", "prompt", "max_new_tokens")
OF_CHATS = ("chat_template", "chat_template_kwargs", "chat_template_date", "system")
"""A run's settings of its environment that hold for what its model writes elsewhere, the latter in a chat."""
COLUMN = "prompt"
"""What TextTask takes for the prompt where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How prompts are written and texts end, and how they are sampled; None leaves it to the run, else the default."""

    chat: bool | None = None
    system: str | None = None
    stop: Sequence[str] | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False
    """Prompts as they are given: no template, no chat, and no stop strings of the run."""


def complete(
    model: str,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    greedy: bool = False,
    filters: Filters | None = None,
    say: Callable[[str], None] = lambda line: None,
    **given: Any,
) -> list[str]:
    """Return one completion for each prompt.

    Of a run, prompts are written and texts end as in training, unless `given`, the fields of `Format`, says otherwise.

    Args:
        model: A model's name or path, or the folder of a run.
        prompts: Texts; where a run's prompts have a template of several columns, rows of JSON.
        seed: That of the samples.
        greedy: Take the likeliest token.
        filters: Which tokens may be sampled.
        say: Takes a line on how prompts are written.
        given: The fields of `Format`.

    Raises: ModelError, SettingError; DataError for an empty prompt or one that exceeds the model's context.
    """
    wanted = Format(**given)
    lm, settings = _opened(model, wanted)
    if settings:
        say(f"as in training: {', '.join(f'{name} {value!r}' for name, value in settings.items())}")
    rows = prompts if "prompt" not in settings else [_row(prompt, settings["prompt"]) for prompt in prompts]
    return _texts(lm, rows, settings, wanted, seed=seed, greedy=greedy, filters=filters)


def talk(
    model: str,
    read_line: Callable[[], str | None],
    write: Callable[[str], None],
    *,
    seed: int = 0,
    greedy: bool = False,
    filters: Filters | None = None,
    say: Callable[[str], None] = lambda line: None,
    **given: Any,
) -> None:
    """Answer each line that `read_line` returns, in one conversation, until it returns None.

    Turns that the model's context has no room for are left out, the oldest first.

    Raises: ModelError; SettingError for a model without a chat template.
    """
    wanted = Format(**{**given, "chat": True})
    lm, settings = _opened(model, wanted)
    settings.pop("prompt", None)
    turns: list[dict[str, str]] = []
    while (line := read_line()) is not None:
        if not line.strip():
            continue
        turns.append({"role": "user", "content": line})
        seed += 1
        while True:
            try:
                (answer,) = _texts(lm, [turns], settings, wanted, seed=seed, greedy=greedy, filters=filters)
                break
            except TooLongError:
                if len(turns) == 1:
                    raise
                del turns[:2]
                say("the oldest turn is left out: the model's context is full")
        turns.append({"role": "assistant", "content": answer})
        write(answer)


def parse_variables(text: str) -> dict[str, Any]:
    """Read variables of the chat template, as YAML.

    Raises: SettingError for anything but names and values.
    """
    try:
        found = load_yaml(text) if text else {}
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise SettingError("chat_template_kwargs", text, "write names and values, such as '{enable_thinking: false}'")
    return found


def run_of(model: str) -> RunConfig | None:
    """Return the settings of the run that this is, or whose model it is; None for any other model."""
    path = Path(model)
    folders = [path, *([path.parent] if path.name in (MODEL, BEST) else [])]
    return next((read_without_code(folder / CONFIG) for folder in folders if os.path.exists(folder / CONFIG)), None)


def _opened(model: str, wanted: Format) -> tuple[LanguageModel, dict[str, Any]]:
    """Return the model, and the settings of texts that its run has and `wanted` leaves to it."""
    run = None if wanted.raw else run_of(model)
    temperature = wanted.temperature
    if temperature is None:
        temperature = run.algorithm.sampling.temperature if run else 1.0
    lm = open_by_name(model, temperature=temperature, device=best_device())
    own = run.env_settings if run else {}
    chat = bool(own.get("chat")) if wanted.chat is None else wanted.chat
    names = ["chat", *OF_TEXTS, *(OF_CHATS if chat else ())]
    given = {"chat": wanted.chat, "system": wanted.system, "stop": wanted.stop, "max_new_tokens": wanted.max_new_tokens}
    return lm, {name: own[name] for name in names if name in own and given.get(name) is None}


def _texts(
    lm: LanguageModel,
    prompts: Sequence[Any],
    of_the_run: Mapping[str, Any],
    wanted: Format,
    *,
    seed: int,
    greedy: bool,
    filters: Filters | None,
) -> list[str]:
    given = {"chat": wanted.chat, "system": wanted.system, "stop": wanted.stop, "max_new_tokens": wanted.max_new_tokens}
    settings = {**of_the_run, **{name: value for name, value in given.items() if value is not None}}
    if wanted.chat_template_kwargs:
        variables = settings.get("chat_template_kwargs") or {}
        settings["chat_template_kwargs"] = {**variables, **wanted.chat_template_kwargs}
    task = TextTask(
        prompts=list(prompts),
        reward=no_reward,
        tokenizer=lm.tokenizer,
        max_prompt_tokens=lm.context,
        **settings,
    )
    items = [task.item("test", seed, index) for index in range(len(prompts))]
    return [t.text for t in rollout(lm, task, items, seed=seed, greedy=greedy, filters=filters)]


def _row(prompt: str, template: str) -> Any:
    """The row that a run's template, or column, of prompts is filled from: JSON, or a text for the only column.

    Raises: DataError for a text where the template has several columns.
    """
    try:
        row = json.loads(prompt)
    except (ValueError, RecursionError):
        row = None
    names = FormatString("prompt", template).names or (template,)
    if isinstance(row, dict) and row.keys() >= {name.partition(".")[0] for name in names}:
        return row
    if len(names) != 1:
        example = json.dumps({name: "..." for name in names})
        raise DataError(
            "prompt", prompt, f"the run's prompts are {template!r}: give a row such as '{example}', or --raw"
        )
    found: Any = prompt
    for part in reversed(names[0].split(".")):
        found = {part: found}
    return found
