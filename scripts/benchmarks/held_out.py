"""A student on held-out prompts between two updates, measured alike for all trainers of `rlgkd benchmark quality`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from rlgkd.envs import TextGenerationEnv
from rlgkd.envs.rewards import rouge
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel, open_by_name
from rlgkd.scripts.benchmarks.job import BenchmarkJob

MEASURES = ("reverse_kl", "reward", "ended")
"""KL(student || teacher) on the student's own prefixes in nats per token; ROUGE-L against references, in [0, 1]; the
share of texts that end by themselves."""


@contextmanager
def own_forward(module: nn.Module) -> Iterator[None]:
    """Have a model without what a trainer has put around its forward pass: autocast, where it trains in bfloat16."""
    around = module.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if around is not None:
            module.__dict__["forward"] = around


class HeldOut:
    """The curve of one run: what it measures takes no part in the run's seconds."""

    def __init__(self, job: BenchmarkJob) -> None:
        """Open the teacher and the held-out prompts."""
        env = TextGenerationEnv(
            prompts=[dict(row) for row in job.held_out],
            reward=rouge("rougeL"),
            tokenizer=job.student,
            max_prompt_tokens=job.longest_prompt,
            max_new_tokens=job.new_tokens,
            split_shares=None,
        )
        self.task = env.task
        self.teacher = open_by_name(job.teacher)
        self.every = job.measure_every
        self.curve: list[dict[str, float]] = []

    def measure(self, update: int, seconds: float, student: LanguageModel) -> None:
        """Add a point to the curve, where one is due."""
        if update % self.every:
            return
        prompts = self.task.size("train")
        found = evaluate(student, self.teacher, self.task, split="train", prompts=prompts, batch_size=16)
        scores = {name: round(float(found.measures[name].mean()), 5) for name in MEASURES}
        self.curve.append({"update": update, "seconds": round(seconds, 3), **scores})


def reward_of(rows: Sequence[dict[str, str]]) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """Return ROUGE-L as a function of prompts and completions, for a trainer that knows no references."""
    reference = {row["prompt"]: row["reference"] for row in rows}
    score = rouge("rougeL")
    return lambda prompts, completions: score(
        completions=completions, references=[reference[prompt] for prompt in prompts]
    )
