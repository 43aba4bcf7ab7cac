"""What a run chooses for itself by model and job: the agents' choices (rlgkd.agents.defaults), and its evaluations.

The choices are made once, when a run or a comparison begins, and config.yaml holds the values: a run goes on with them,
also on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from rlgkd.agents.defaults import SMALL, Choice, choices, size_of_student
from rlgkd.devices import best_device
from rlgkd.scripts.config.run import RunConfig

ON_A_PROCESSOR: Final = {"eval_prompts": 64, "eval_every_prompts": 32}
"""Prompts of the evaluations of a larger model without an accelerator."""


def chooser(say: Callable[[str], None]) -> Callable[[RunConfig, frozenset[str]], Mapping[str, Any]]:
    """What `read` takes as `choose`: says each choice with its reason."""

    def choose(config: RunConfig, given: frozenset[str]) -> dict[str, Any]:
        found = [*choices(config.student, config.algorithm, given, config.device), *_of_the_run(config, given)]
        for choice in found:
            say(f"chosen: {choice}")
        return {choice.setting: choice.value for choice in found}

    return choose


def _of_the_run(config: RunConfig, given: frozenset[str]) -> list[Choice]:
    open_names = [name for name in ON_A_PROCESSOR if name not in given]
    if "eval_every" not in given and "eval_every_prompts" in open_names:
        open_names.remove("eval_every_prompts")  # there are no evaluations on the way
    device = torch.device("cpu") if config.device == "cpu" else best_device()
    size = size_of_student(config.student, config.algorithm) if device.type == "cpu" else None
    if size is None:
        return []
    if size.parameters <= SMALL:
        reason = "for a model as small as this, threads cost more waiting for one another than they save"
        return [] if "threads" in given else [Choice("threads", 1, reason)]
    reason = f"for {size.parameters / 1e6:,.0f} million parameters without an accelerator; more give narrower intervals"
    return [Choice(name, ON_A_PROCESSOR[name], reason) for name in open_names]
