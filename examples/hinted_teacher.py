"""A student that teaches itself: with the reference in its prompt it is its own teacher (OPSD, arXiv 2601.18734).

    python examples/hinted_teacher.py OUT [SEEDS]

1. The embedded student of GroundedSummary learns to use a hint: cross-entropy on references, in half of the prompts
   with the reference in front. What comes out, saved in OUT, is the student of what follows.
2. With `teacher: self` and `teacher_prompt` it is distilled into itself on its own texts, without a reward.

Printed: what the hint gains the teacher, then reward and truth on held-out prompts before and after, with 95%
intervals, paired by prompt. Without the hint the divergence is 0 from the start, and nothing is learned.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from rlgkd.agents import Distill
from rlgkd.envs import TextGenerationEnv
from rlgkd.evaluation import Evaluation, evaluate
from rlgkd.lm import LanguageModel
from rlgkd.statistics import prompt_interval

ENV, STUDENT = "rlgkd/GroundedSummary-v0", "embedded:grounded-student"
HINT = "{reference}\n{prompt}"
ITEMS, TEACH_TOKENS, TRAIN_TOKENS, PROMPTS = 8000, 120_000, 30_000, 192


def with_hint(student: str, seed: int = 0) -> Distill:
    """The student with itself as a teacher that reads the reference too."""
    return Distill(
        student,
        ENV,
        teacher="self",
        teacher_prompt=HINT,
        divergence="reverse_kl",
        learning_rate=5e-4,
        prompts_per_update=16,
        group_size=2,
        seed=seed,
    )


def taught(folder: Path) -> str:
    """The student that knows what a hint is; made once."""
    if not (folder / "config.json").exists():
        task = with_hint(STUDENT).task
        items = [task.item("train", 1, number) for number in range(ITEMS)]
        rows = [
            {
                "prompt": HINT.format(reference=item.reference, prompt=item.prompt) if number % 2 else item.prompt,
                "reference": item.reference,
            }
            for number, item in enumerate(items)
        ]
        env = TextGenerationEnv(
            prompts=rows, reward="exact", tokenizer=STUDENT, max_prompt_tokens=200, max_new_tokens=task.max_new_tokens
        )
        agent = Distill(
            STUDENT,
            env,
            divergence="forward_kl",
            estimator="sampled",
            student_fraction=0.0,
            learning_rate=1e-3,
            prompts_per_update=64,
            group_size=1,
        )
        agent.learn(TEACH_TOKENS)
        agent.save(folder)
    return str(folder)


def change(name: str, now: Evaluation, before: Evaluation) -> str:
    """A line with the means of reward and truth, and their paired changes."""
    pieces = []
    for measure, gain in now.change_from(before).items():
        if measure in ("reward", "truth"):
            old, new = (evaluation.measures[measure].mean() for evaluation in (before, now))
            interval = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            pieces.append(f"{measure} {old:.3f} -> {new:.3f}, {interval}")
    return f"{name}: {'; '.join(pieces)}"


def main(out: Path, seeds: int) -> None:
    """Run all and print."""
    student = taught(out / "taught")
    agent = with_hint(student)
    before = agent.evaluate(prompts=PROMPTS)
    assert isinstance(agent.teacher, LanguageModel)
    hinted = evaluate(agent.teacher, None, agent.task, prompts=PROMPTS)
    print(change("the hint gains the teacher", hinted, before), flush=True)
    found: list[Evaluation] = []
    for seed in range(seeds):
        agent = with_hint(student, seed)
        agent.learn(TRAIN_TOKENS)
        found.append(agent.evaluate(prompts=PROMPTS))
        print(change(f"seed {seed}", found[-1], before), flush=True)
    for measure in ("reward", "truth"):
        after = np.mean([evaluation.measures[measure] for evaluation in found], axis=0)
        gain = prompt_interval(after - before.measures[measure])
        print(f"{measure}, mean of {seeds} seeds: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
