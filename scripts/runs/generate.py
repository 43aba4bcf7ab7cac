"""Completes prompts with a model: `rlgkd generate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlgkd.devices import best_device
from rlgkd.envs.rewards.constant import no_reward
from rlgkd.envs.task import TextTask
from rlgkd.errors import SettingError
from rlgkd.lm import open_by_name
from rlgkd.ops.logit_filters import Filters
from rlgkd.rollout import rollout
from rlgkd.scripts._yaml import load_yaml
from rlgkd.scripts.config.run import read
from rlgkd.scripts.runs.folder import CONFIG

OF_TEXTS = ("end_tokens", "skip_special_tokens")
OF_CHATS = ("chat_template", "chat_template_kwargs", "chat_template_date")
"""A run's settings of its environment that hold for what its model writes elsewhere, the latter in a chat."""


def complete(
    model: str,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    greedy: bool,
    chat: bool,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    seed: int,
    stop: Sequence[str],
    filters: Filters,
) -> list[str]:
    """Return one completion for each prompt.

    Of a run, texts begin and end as in training: with its end tokens and, in a chat, its chat template and variables.

    Raises: ModelError, SettingError; DataError for an empty prompt or one that exceeds the model's context.
    """
    lm = open_by_name(model, temperature=temperature, device=best_device())
    run = read(Path(model) / CONFIG) if os.path.exists(Path(model) / CONFIG) else None
    names = [*OF_TEXTS, *(OF_CHATS if chat else ())]
    settings = {name: run.env_settings[name] for name in names if run and name in run.env_settings}
    if chat_template_kwargs:
        settings["chat_template_kwargs"] = {**(settings.get("chat_template_kwargs") or {}), **chat_template_kwargs}
    task = TextTask(
        prompts=list(prompts),
        reward=no_reward,
        tokenizer=lm.tokenizer,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=lm.context,
        chat=chat,
        stop=stop,
        **settings,
    )
    items = [task.item("test", seed, index) for index in range(len(prompts))]
    return [t.text for t in rollout(lm, task, items, seed=seed, greedy=greedy, filters=filters)]


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
