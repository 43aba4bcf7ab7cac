"""A whole step of each agent on a device that is not the CPU: nothing is on the wrong side, and little waits for it.

The device is pretended (tests/pretended_device.py), so the steps run in a process of their own: this file, executed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FEW = {"prompts_per_update": 2, "group_size": 2, "learning_rate": 1e-3, "gradient_norms_every": 0}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "REINFORCE with a divergence": ("Reinforce", "llama", {"alpha": 0.5}),
    "sampled estimator, in the reward": (
        "Reinforce",
        "llama",
        {"alpha": 0.5, "estimator": "sampled", "combination": "in_reward"},
    ),
    "a ratio of sequences, twice": ("GRPO", "llama", {"alpha": 0.5, "epochs": 2, "ratio": "sequence"}),
    "answering for later tokens": ("GRPO", "llama", {"alpha": 0.5, "horizon": 1.0, "teacher_top_k": 2}),
    "a value head": ("PPO", "llama", {"alpha": 0.5, "epochs": 2}),
    "texts of the teacher": ("Distill", "llama", {"student_fraction": 0.0, "off_policy": "teacher"}),
    "adapters, checkpointed": ("Reinforce", "llama", {"alpha": 0.5, "lora_rank": 2, "gradient_checkpointing": True}),
    "a teacher that follows": ("Distill", "llama", {"teacher_decay": 0.9}),
    "a gate of the whole batch": ("Reinforce", "llama", {"alpha": 0.5, "gate": "tip"}),
    "a gate, a teacher elsewhere": ("GRPO", "llama", {"alpha": 0.5, "gate": "srpo", "teacher_device": "cpu"}),
    "a model's own forward pass": ("GRPO", "gemma", {"alpha": 0.5}),
    "an encoder": ("Reinforce", "t5", {"alpha": 0.5}),
    "a teacher elsewhere": ("Distill", "llama", {"teacher_device": "cpu", "epochs": 2}),
    "a teacher elsewhere, who writes": (
        "Distill",
        "gemma",
        {"teacher_device": "cpu", "student_fraction": 0.0, "off_policy": "teacher"},
    ),
    "a teacher elsewhere, in the reward": (
        "GRPO",
        "llama",
        {"alpha": 0.5, "teacher_device": "cpu", "estimator": "sampled", "combination": "in_reward"},
    ),
    "a teacher elsewhere, who writes along": (
        "Distill",
        "llama",
        {"teacher_device": "cpu", "behaviour": "teacher_mixed"},
    ),
    "an encoder, a teacher elsewhere": ("Reinforce", "t5", {"alpha": 0.5, "teacher_device": "cpu"}),
}


HERE = [case for case in CASES if "elsewhere" not in case]
"""Cases in which nothing has to wait: a teacher elsewhere sends its states."""


def main() -> None:
    """Train in each case with micro-batches of one row and of all, and print what waited in an update as JSON."""
    from pretended_device import pretended

    with pretended() as device:
        import tiny

        from rlgkd import agents
        from rlgkd.envs.sb3 import TextVecEnv

        tokenizer = tiny.word_tokenizer("A", "B", "C")

        def model(kind: str, seed: int) -> Any:
            known = kind in ("llama", "t5")
            return tiny.model(kind, vocabulary=4, layers=1, seed=seed) if known else tiny.family(kind, tokenizer).module

        def updated(name: str, kind: str, **settings: Any) -> dict[str, Any]:
            task = tiny.WordTask(tokenizer, lambda text: float(text.startswith("B")), max_new_tokens=6)
            student, teacher = model(kind, 0), model(kind, 1)
            agent = getattr(agents, name)(student, TextVecEnv(task), teacher=teacher, **FEW, **settings)
            agent.learn(1)
            device.waits.clear()
            agent.learn(1)
            return {
                "device": str(agent.student.device),
                "waits": {f"{what} {line}": count for (what, line), count in device.waits.items()},
                "tokens": [t.length for t in agent.trajectories],
                "finite": all(bool(p.isfinite().all()) for p in agent.student.module.parameters()),
            }

        found = {
            case: [
                updated(name, kind, token_budget=budget, **settings)
                for budget in ((1, 10**6) if case in HERE else (10**6,))
            ]
            for case, (name, kind, settings) in CASES.items()
        }
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found() -> dict[str, list[dict[str, Any]]]:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_an_update_never_mixes_devices(found, case):
    for run in found[case]:
        assert run["device"] == "pretended:0" and run["finite"] and sum(run["tokens"]) > 0


@pytest.mark.parametrize("case", HERE)
def test_no_micro_batch_waits_for_the_device(found, case):
    by_row, at_once = found[case]
    assert by_row["tokens"] == at_once["tokens"]
    assert waits(by_row) == waits(at_once)


@pytest.mark.parametrize("case", HERE)
def test_a_decoded_token_waits_once_and_an_update_a_few_times(found, case):
    for run in found[case]:
        decoding = {line: count for line, count in waits(run).items() if "generate.py" in line}
        assert sum(decoding.values()) == max(run["tokens"]) + 2  # in the end log-probabilities and entropies
        assert sum(waits(run).values()) - sum(decoding.values()) <= 14


def waits(run: dict[str, Any]) -> dict[str, int]:
    """But those of transformers, which looks once a forward pass whether a mask or the positions hide anything."""
    return {line: count for line, count in run["waits"].items() if "lm/model.py" not in line}


if __name__ == "__main__":
    main()
