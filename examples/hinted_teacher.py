"""A student that teaches itself: with the solution in its prompt it is its own teacher (OPSD, arXiv 2601.18734).

    python examples/hinted_teacher.py OUT [SEEDS]

1. The embedded student of Arithmetic learns to use a hint: cross-entropy on references, half of the prompts with the
   solution in front. What comes out is the student of what follows.
2. With `teacher: self` and `teacher_prompt` it is distilled into itself on its own texts, without a reward. The control is
   the same run on the same number of tokens in which the teacher sees no hint: `teacher_prompt` then adds nothing.

Printed: what the hint gains the teacher, then the accuracy on held-out problems before and after, with 95% intervals.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rlgkd.agents import Distill
from rlgkd.envs import TextGenerationEnv
from rlgkd.envs.tasks.arithmetic import draw_problem
from rlgkd.evaluation import Evaluation
from rlgkd.statistics import prompt_interval

STUDENT = "embedded:arithmetic-student"
HINT = " Known: {reference}{prompt}"
TEACH_TOKENS, TRAIN_TOKENS, PROMPTS = 400_000, 150_000, 512


def row(rng: random.Random) -> dict[str, str]:
    """A problem, half of the time with its solution in front."""
    problem = draw_problem(rng, rng.randint(1, 3))
    plain = f" {problem.question}\nSolution:"
    hinted = HINT.format(reference=problem.solution, prompt=plain)
    return {"prompt": hinted if rng.random() < 0.5 else plain, "reference": problem.solution}


def taught(folder: Path) -> str:
    """The student that knows what a hint is; made once."""
    if not (folder / "config.json").exists():
        env = TextGenerationEnv(prompts=row, reward="exact", tokenizer=STUDENT, max_prompt_tokens=80, max_new_tokens=40)
        agent = Distill(
            STUDENT, env, divergence="forward_kl", estimator="sampled", student_fraction=0.0, learning_rate=1e-3,
            prompts_per_update=64, group_size=1, seed=0,
        )  # fmt: skip
        agent.learn(TEACH_TOKENS)
        agent.save(folder)
    return str(folder)


def change(name: str, now: Evaluation, before: Evaluation) -> str:
    """A line with both means and the paired change."""
    means = [evaluation.measures["reward"].mean() for evaluation in (before, now)]
    gain = now.change_from(before)["reward"]
    return f"{name}: {means[0]:.3f} -> {means[1]:.3f}, {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def main(out: Path, seeds: int) -> None:
    """Run all and print."""
    student = taught(out / "taught")
    after: dict[str, list[np.ndarray[Any, Any]]] = {"with the hint": [], "without": []}
    before = None
    for seed in range(seeds):
        for name, prompt in (("with the hint", HINT), ("without", "{prompt}")):
            agent = Distill(
                student, "rlgkd/Arithmetic-v0", teacher="self", teacher_prompt=prompt, divergence="reverse_kl",
                learning_rate=5e-4, prompts_per_update=32, group_size=2, seed=seed,
            )  # fmt: skip
            if before is None:
                before = agent.evaluate(prompts=PROMPTS)
                from rlgkd.evaluation import evaluate

                hinted = evaluate(agent.teacher, None, agent.task, prompts=PROMPTS)
                print(change("the hint gains the teacher", hinted, before), flush=True)
            agent.learn(TRAIN_TOKENS)
            now = agent.evaluate(prompts=PROMPTS)
            print(change(f"seed {seed}, {name}", now, before), flush=True)
            after[name].append(now.measures["reward"])
    assert before is not None
    for name, values in after.items():
        gain = prompt_interval(np.mean(values, axis=0) - before.measures["reward"])
        print(f"{name}, {seeds} seeds: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
