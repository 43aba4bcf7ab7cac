"""Settings that an agent chooses by its model and job where they are not given, each with its reason.

Up to SMALL parameters nothing is chosen: the defaults of `config.py` are those of the embedded tasks, which have such
models. Where the numbers come from, and what was not measured, is in docs/defaults.md.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from rlgkd.agents.config import AlgorithmConfig
from rlgkd.devices import best_device, multiplies_bfloat16
from rlgkd.lm.size import ModelSize, model_size
from rlgkd.settings import span

CHOSEN: Final = ("learning_rate", "group_size", "token_budget", "precision")
SMALL: Final = 60_000_000
"""Parameters up to which defaults are not chosen."""
LARGE: Final = 500_000_000
"""Parameters from which on the smallest learning rates are taken."""
FULL_RATES: Final = {"rewards": (1e-5, 1e-6), "distillation": (5e-5, 1e-5)}
"""Learning rates of training all weights: up to LARGE parameters, and above."""
OF_ADAPTERS: Final = 10.0
"""How many times as large that of LoRA is (Schulman et al. 2025, "LoRA Without Regret")."""
BYTES_OF_A_TOKEN: Final = {"float32": 133, "bfloat16": 81}
"""What the backward pass keeps of a token, times layers and hidden size: measured of Qwen2.5-1.5B."""
LEAST_BUDGET: Final = 1024


@dataclass(frozen=True)
class Choice:
    """A setting, its value, and why."""

    setting: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Return `learning_rate: 1e-05, for ...`."""
        return f"{self.setting}: {self.value}, {self.reason}"


def choices(
    policy: Any, config: AlgorithmConfig, given: Collection[str], device: str = "auto", *, longest: int = 0
) -> list[Choice]:
    """What is chosen of the settings that are not given, for a student that may not be opened yet.

    Args:
        policy: As agents take it.
        config: The settings with the usual defaults.
        given: The names of those that are given.
        device: As agents take it.
        longest: Tokens of the longest text with its prompt, if that is known.
    """
    open_names = [name for name in CHOSEN if name not in given and name not in config.fixed_names()]
    if not open_names or (size := size_of_student(policy, config)) is None or size.parameters <= SMALL:
        return []
    return [choice for choice in _all(size, config, given, device, longest) if choice.setting in open_names]


def size_of_student(policy: Any, config: AlgorithmConfig) -> ModelSize | None:
    """The size of the student, of which the settings may keep some layers alone."""
    kept = config.model.student_layers
    number = kept if isinstance(kept, int) else len(kept) or None
    return model_size(policy, number)


def _all(size: ModelSize, config: AlgorithmConfig, given: Collection[str], device: str, longest: int) -> list[Choice]:
    where = torch.device("cpu") if device == "cpu" else best_device()
    millions = f"{size.parameters / 1e6:,.0f} million parameters"
    job = "distillation" if span(config.alpha)[0] == 1 and config.reward.combination == "in_loss" else "rewards"
    rate = FULL_RATES[job][size.parameters > LARGE]
    adapters = config.model.lora_rank > 0
    trained = "LoRA on" if adapters else "all of"
    found = [
        Choice(
            "learning_rate",
            rate * OF_ADAPTERS if adapters else rate,
            f"for {job} and {trained} {millions}",
        )
    ]
    if job == "rewards" and where.type != "cpu":
        found.append(Choice("group_size", 8, "samples of a prompt are cheap on an accelerator and steady the baseline"))
    if job == "distillation":
        found.append(Choice("group_size", 1, "no reward compares a prompt's samples, so more prompts teach more"))
    precision = config.optimizer.precision
    if "precision" not in given and config.model.dtype == "float32" and multiplies_bfloat16(where):
        precision = "bfloat16"
        found.append(Choice("precision", precision, f"which {where.type} multiplies many times as fast as float32"))
    budget = token_budget(size, memory_of(where), precision, config, longest)
    if budget < config.optimizer.token_budget:
        reason = f"for {millions} in {memory_of(where) / 2**30:.0f} GiB of {where.type} memory"
        found.append(Choice("token_budget", budget, reason))
    return found


def token_budget(size: ModelSize, memory: int, precision: str, config: AlgorithmConfig, longest: int = 0) -> int:
    """Tokens of a micro-batch whose backward pass takes half of what weights and optimizer leave of the memory.

    A multiple of 256, at least LEAST_BUDGET and one text, at most the usual budget.
    """
    weights = size.parameters * (6 if config.model.lora_rank else 18)  # with gradient and AdamW; and a teacher's share
    layers = 2 if config.model.gradient_checkpointing else size.layers
    a_token = BYTES_OF_A_TOKEN[precision] * size.hidden * layers + 4 * size.hidden * size.layers
    fits = (memory - weights) // 2 // max(1, a_token)
    return min(config.optimizer.token_budget, max(LEAST_BUDGET, longest, 256 * (fits // 256)))


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory; of the host as much as this process may have."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no limit, or not Linux
        return whole


def with_choices(given: Mapping[str, Any], found: Collection[Choice]) -> dict[str, Any]:
    """Settings as they were given, without those left to be chosen, and with what was chosen."""
    kept = {name: value for name, value in given.items() if not (name in CHOSEN and value in ("auto", None))}
    return {**kept, **{choice.setting: choice.value for choice in found}}
