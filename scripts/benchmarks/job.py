"""The job that each process of `rlgkd benchmark` is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LORA_RANK = 16
"""Rank of the adapters in `sft`."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkJob:
    """A workload: which step, of which size."""

    student: str
    teacher: str
    """Folders of models, whose end token is one that is hardly ever sampled."""
    prompts: Sequence[str]
    """Taken in order, again and again."""
    kind: str
    """distill, gkd, rl, both, sft, generate, ragged or loss; each runner takes some of them."""
    batch: int
    """Sequences of one step."""
    group: int
    """Sequences for one prompt."""
    new_tokens: int
    """New tokens of every sequence; of `sft` the most of a reference."""
    steps: int
    warmup: int
    """Steps before the timed ones."""
    threads: int
    seed: int
    bounded: bool = True
    """Whether the bound is measured too; it takes as long as some steps."""
    references: Sequence[str] = ()
    """The texts of `sft`, one for each prompt."""
    learning_rate: float = 1e-5
    precision: str = "float32"
    """Precision of training: float32, or bfloat16 for mixed precision."""
    student_share: float = 1.0
    """lambda of GKD: the share of batches that the student samples; the others are references."""
    held_out: Sequence[Mapping[str, str]] = ()
    """Prompts with references on which the student is measured; with them texts end as the student ends them, and the
    reward is ROUGE-L."""
    measure_every: int = 1
    """Updates between two such measurements."""
    longest_prompt: int = 0
    """Tokens of the longest prompt, the held-out ones too; 0 is that of `prompts`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of rlgkd's agent, over those of the workload."""

    @property
    def rows(self) -> Sequence[str] | list[dict[str, str]]:
        """The prompts, with their references where there are some."""
        return rows_of(self.prompts, self.references) if self.references else self.prompts


def rows_of(prompts: Sequence[str], references: Sequence[str]) -> list[dict[str, str]]:
    """Prompts with their references."""
    return [{"prompt": prompt, "reference": reference} for prompt, reference in zip(prompts, references, strict=True)]


def read_job(file: Path) -> BenchmarkJob:
    """Read a job from JSON."""
    return BenchmarkJob(**json.loads(file.read_text(encoding="utf-8")))
