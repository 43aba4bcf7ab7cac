"""A synthetic run for the tests of its report: passages of GroundedSummary, damaged completions, seeded numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from rlgkd.envs.tasks.grounded.oracle import judge
from rlgkd.envs.tasks.grounded.world import story

CONFIG = """name: Grounded summaries, reward and teacher
env: rlgkd/GroundedSummary-v0
agent: Reinforce
student: embedded:grounded-student
teacher: embedded:grounded-teacher
tokens: 268800
alpha: 0.25
divergence: reverse_kl
beta: null
student_fraction: 1.0
estimator: exact
learning_rate: 0.0001
seed: 0
"""
# Mean and half the width of the 95% interval.
BEFORE = {
    "reward": (0.641, 0.021),
    "truth": (0.621, 0.030),
    "parsable": (0.934, 0.016),
    "coverage": (0.508, 0.027),
    "rouge2": (0.412, 0.019),
    "reverse_kl": (0.612, 0.031),
    "forward_kl": (0.701, 0.038),
    "length": (13.2, 0.3),
    "ended": (0.982, 0.008),
    "entropy": (0.497, 0.020),
    "distinct2": (0.431, 0.009),
    "my_judge": (0.550, 0.040),
}
AFTER = {
    "reward": (0.902, 0.014),
    "truth": (0.880, 0.020),
    "parsable": (0.981, 0.009),
    "coverage": (0.741, 0.022),
    "rouge2": (0.521, 0.018),
    "reverse_kl": (0.252, 0.016),
    "forward_kl": (0.344, 0.025),
    "length": (13.9, 0.3),
    "ended": (0.990, 0.007),
    "entropy": (0.268, 0.014),
    "distinct2": (0.424, 0.009),
    "my_judge": (0.570, 0.041),
}
TEACHER = {
    "reward": (0.944, 0.010),
    "truth": (0.931, 0.015),
    "parsable": (0.996, 0.004),
    "coverage": (0.772, 0.021),
    "rouge2": (0.566, 0.018),
    "length": (14.1, 0.3),
    "ended": (1.0, 0.0),
    "entropy": (0.301, 0.012),
    "distinct2": (0.436, 0.009),
}


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary() -> dict[str, Any]:
    """Return what summary.json would hold."""
    change = {}
    for key, (before, half) in BEFORE.items():
        change[key] = interval(AFTER[key][0] - before, 0.039 if key == "truth" else 1.2 * half)
    return {
        "name": "Grounded summaries, reward and teacher",
        "env": "rlgkd/GroundedSummary-v0",
        "agent": "Reinforce",
        "student": "embedded:grounded-student",
        "teacher": "embedded:grounded-teacher",
        "alpha": 0.25,
        "divergence": "reverse_kl",
        "updates": 300,
        "tokens": 268_800,
        "seconds": 742.0,
        "prompts": 512,
        "split": "test",
        "before": {key: interval(*value) for key, value in BEFORE.items()},
        "after": {key: interval(*value) for key, value in AFTER.items()},
        "teacher_scores": {key: interval(*value) for key, value in TEACHER.items()},
        "change": change,
        "examples": examples(random.Random(0)),
    }


def examples(rng: random.Random, count: int = 20) -> list[dict[str, Any]]:
    """Return examples of which most improved, some got worse and some stayed as they were."""
    found = []
    for index in range(count):
        item = story("test", 0, index)
        wrong_name = story("test", 0, index + 100).reference.split()[0]
        words = item.reference.split()
        words[rng.randrange(2)] = wrong_name
        if index % 4 == 0:
            broken = " ".join(words[: len(words) // 2] + ["for", "for", "the"] * 3)
            bad = _completion(broken, item, 0.04, stop="length")
        else:
            bad = _completion(" ".join(words), item, 0.21)
        good = _completion(item.reference, item, rng.uniform(0.8, 0.99))
        before, after = {0: (good, bad), 1: (good, good)}.get(index % 6, (bad, good))
        found.append(
            {
                "key": f"test/0/{index}",
                "prompt": f" {item.passage}\nSummary:",
                "reference": item.reference,
                "before": before,
                "after": after,
                "teacher": good,
            }
        )
    return found


def _completion(text: str, item: Any, reward: float, *, stop: str = "end") -> dict[str, Any]:
    verdict = judge(text, item.events)
    reference = item.reference.split()
    quality = {
        "truth": float(verdict.true),
        "parsable": float(verdict.parsable),
        "coverage": verdict.coverage,
        "rouge2": len(set(text.split()) & set(reference)) / len(reference),
    }
    return {"text": text, "reward": reward, "parts": {"entailment": reward}, "quality": quality, "stop": stop}


def progress(rng: random.Random, updates: int = 300) -> str:
    """Return a progress.csv in which some values are missing or NaN."""
    columns = [
        "rollout/ended",
        "rollout/ep_len_mean",
        "rollout/ep_rew_mean",
        "rollout/student",
        "time/iterations",
        "time/total_timesteps",
        "train/alpha",
        "train/divergence",
        "train/entropy",
        "train/grad_norm",
        "train/loss",
    ]
    lines = [",".join(columns)]
    for step in range(1, updates + 1):
        done = 1 - math.exp(-3 * step / updates)
        divergence = 0.62 - 0.36 * done + rng.gauss(0, 0.03)
        values = [
            "0.98",
            f"{13.1 + done + rng.gauss(0, 0.35):.4f}",
            f"{0.64 + 0.27 * done + rng.gauss(0, 0.035):.4f}",
            "1.0",
            str(step),
            str(step * 896),
            "0.25",
            "nan" if step % 50 == 0 else str(divergence),
            f"{0.5 - 0.24 * done + rng.gauss(0, 0.02):.4f}",
            f"{rng.uniform(0.5, 1.5):.4f}",
            "" if step == 1 else str(rng.gauss(0, 1)),
        ]
        lines.append(",".join(values))
    return "\n".join(lines) + "\n"


def make_run(folder: Path, given: dict[str, Any] | None = None) -> Path:
    """Write a run's folder, with this summary or the usual one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "progress.csv").write_text(progress(random.Random(1)))
    (folder / "summary.json").write_text(json.dumps(summary() if given is None else given))
    return folder
