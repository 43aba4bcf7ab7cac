"""Does the correction matter where texts are sampled in bfloat16 and trained on in float32? Prints a table.

    PYTHONPATH=.:tests python tests/samplers/sixteen_bit_sampling.py [SEEDS] [TOKENS]

A copy of the student in bfloat16 samples each update's texts, as a server of that precision would, by our own decoder;
the rest is a run's: GRPO on the embedded task, at a learning rate at which it learns within these tokens.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Sequence

import numpy as np
import tiny
import torch
from scipy import stats
from stable_baselines3.common.logger import Logger

from rlgkd.agents import GRPO
from rlgkd.agents.sampler_settings import SamplerSettings
from rlgkd.agents.served_texts import ServedTexts
from rlgkd.lm import LanguageModel
from rlgkd.rollout import sample_episodes
from rlgkd.samplers.texts import Texts

CASES = (("float32", "none"), ("bfloat16", "none"), ("bfloat16", "truncate"))


class CopiedSampler(ServedTexts):
    """Samples with a copy of the student in another precision, in this process."""

    def __init__(self, agent: GRPO, dtype: torch.dtype) -> None:
        self.agent, self.dtype = agent, dtype

    def push(self) -> None:
        module = copy.deepcopy(self.agent.student.module).requires_grad_(False).to(self.dtype)
        self.lm = LanguageModel(module, self.agent.student.tokenizer)

    def sample(self, items: Sequence, stream_indices: Sequence[int], group: int, on_step) -> Texts:
        task, seed = self.agent.task, self.agent.seed
        episodes = sample_episodes(
            self.lm, task, items, group=group, seed=seed, stream_indices=stream_indices, on_step=on_step
        )
        return Texts(episodes=episodes, indices=[index for index in range(len(items)) for _ in range(group)])

    def resolve_next(self, state) -> None:
        pass


def trained(precision: str, importance: str, seed: int, tokens: int) -> dict[str, float]:
    """Scores on held-out prompts, and the mismatch while training."""
    agent = GRPO(
        "embedded:grounded-student",
        "rlgkd/GroundedSummary-v0",
        teacher="embedded:grounded-teacher",
        device="cpu",
        seed=seed,
        alpha=0.2,
        learning_rate=1e-3,
        prompts_per_update=16,
        group_size=4,
        gradient_norms_every=0,
    )
    agent.served_texts = agent.collector.served = CopiedSampler(agent, getattr(torch, precision))
    agent.config = agent.config.model_copy(
        update={"served": SamplerSettings(sampler=["http://here"], importance=importance, max_mismatch=10.0)}
    )
    rows = tiny.Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(tokens)
    scores = agent.evaluate(prompts=128).measures
    found = {name: float(np.nanmean(scores[name])) for name in ("reward", "truth", "reverse_kl")}
    for name in ("mismatch", "mismatch_p99", "mismatch_cut"):
        found[name] = float(np.mean([row.get(f"train/{name}", 0.0) for row in rows.rows]))
    return found


def main(seeds: int = 5, tokens: int = 8_000) -> None:
    """Train each case with each seed, and print means with their intervals."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in CASES}
    for seed in range(seeds):
        for case in CASES:
            found[case].append(trained(*case, seed, tokens))
            print(seed, *case, {name: round(value, 5) for name, value in found[case][-1].items()}, flush=True)
    for case, runs in found.items():
        print(*case, *(f"{name} {np.mean([run[name] for run in runs]):.5g}" for name in runs[0]))
    pairs = [(case, other) for number, case in enumerate(CASES) for other in CASES[:number]]
    for (case, other), name in itertools.product(pairs, ("reward", "reverse_kl")):
        paired = [run[name] - plain[name] for run, plain in zip(found[case], found[other], strict=True)]
        low, high = stats.t.interval(0.95, len(paired) - 1, loc=np.mean(paired), scale=stats.sem(paired))
        print(*case, "less", *other, f"{name} {np.mean(paired):+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
