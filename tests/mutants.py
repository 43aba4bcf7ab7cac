"""Mistakes seen in published code, made on purpose: each must be found by a test.

    python tests/mutants.py [NAME ...]

Each mutant is a replacement in one file. It is applied to a copy of the checkout, where the tests named beside it are
run; it is killed if one of them fails. `tests/test_mutants.py` runs them all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """A mistake."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    """(what stands there once, what is put in its place)."""
    tests: str


OBJECTIVE, DIVERGENCE = "tests/test_objective.py", "tests/ops/test_divergence.py"

MUTANTS = (
    Mutant(
        "JSD with its weights swapped", "rlgkd/ops/divergence.py",
        (("if normalized else (beta, 1.0 - beta)", "if normalized else (1.0 - beta, beta)"),), DIVERGENCE,
    ),
    Mutant(
        "JSD with a geometric mixture", "rlgkd/ops/divergence.py",
        (
            ("log_m_q_V = log_u_V.exp().sub_(1.0).mul_(beta).log1p_()", "log_m_q_V = log_u_V.mul(beta)"),
            ("log_m_p_V = log_u_V.neg().exp_().sub_(1.0).mul_(1.0 - beta).log1p_()",
             "log_m_p_V = log_u_V.neg().mul(1.0 - beta)"),
        ), DIVERGENCE,
    ),
    Mutant(
        "forward and reverse KL under each other's name", "rlgkd/ops/divergence.py",
        (
            ('"forward_kl": forward_kl,', '"forward_kl": reverse_kl,'),
            ('"reverse_kl": reverse_kl,', '"reverse_kl": forward_kl,'),
        ),
        DIVERGENCE,
    ),
    Mutant(
        "teacher and student swapped in the objective", "rlgkd/objective.py",
        (("divergence_N = self.pointwise(teacher_logits_NV, logits_NV)",
          "divergence_N = self.pointwise(logits_NV, teacher_logits_NV)"),), OBJECTIVE,
    ),
    Mutant(
        "lambda inverted", "agents/algorithm.py",
        (("own_P = coins < self", "own_P = coins >= self"),),
        "tests/agents/test_learning.py",
    ),
    Mutant(
        "the prompt in the loss", "rlgkd/rollout.py",
        (("list(prompt), [False] * len(prompt)", "list(prompt), [False] + [True] * (len(prompt) - 1)"),),
        "tests/test_rollout.py",
    ),
    Mutant(
        "the end token masked because it is the padding too", "rlgkd/types.py",
        (("action[row, :n], logp[row, :n] = t.action_mask_T, t.logp_T",
          "action[row, :n], logp[row, :n] = t.action_mask_T & (t.tokens_T != pad), t.logp_T"),), OBJECTIVE,
    ),
    Mutant(
        "labels not shifted", "rlgkd/lm/model.py",
        (("states_BTH[:, :-1][batch.action_mask_BT[:, 1:]]", "states_BTH[:, 1:][batch.action_mask_BT[:, 1:]]"),),
        "tests/lm/test_model.py tests/lm/test_generate.py",
    ),
    Mutant(
        "means over the micro-batch", "agents/update.py",
        (("(policy_B, divergence_B, own_B)",
          "(policy_B, divergence_B / divergence_B[rows].sum(), own_B)"),), OBJECTIVE,
    ),
    Mutant(
        "the sampling temperature left out of the log-probabilities", "rlgkd/lm/model.py",
        (("return logits if self.temperature == 1.0 else logits / self.temperature", "return logits"),), OBJECTIVE,
    ),
    Mutant(
        "gradients of one process of two", "agents/update.py", (("backward(loss)", "backward(loss / 2)"),), OBJECTIVE,
    ),
    Mutant(
        "the policy term not divided by lambda", "agents/update.py",
        (("policy_B = policy_B / objective.student_fraction", "pass"),), OBJECTIVE,
    ),
    Mutant(
        "a future that counts the present", "agents/update.py",
        (("(discounted_returns(divergence_BT, horizon, mask_BT) - divergence_BT)[mask_BT]",
          "discounted_returns(divergence_BT, horizon, mask_BT)[mask_BT]"),), OBJECTIVE,
    ),
    Mutant(
        "a baseline that knows its own reward", "rlgkd/ops/returns.py",
        (("return excess_PG / (count_P1 - 1.0).clamp(min=1.0)", "return excess_PG / count_P1"),), OBJECTIVE,
    ),
    Mutant(
        "a change of more than is possible", "scripts/comparison/cell_statistics.py",
        ((".within(*metric_of(measure).change_range)", ""),), "tests/scripts/comparison/test_cell_statistics.py",
    ),
)  # fmt: skip


def survives(mutant: Mutant) -> bool:
    """Whether all of its tests pass on a checkout with this mistake.

    Raises: ValueError if the code that it changes is not there once: then the mutant must follow the code.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "assets", "docs")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
        file = copy / mutant.file
        text = file.read_text()
        for old, new in mutant.changes:
            if text.count(old) != 1:
                raise ValueError(f"{mutant.name}: {mutant.file} holds {text.count(old)} times {old!r}")
            text = text.replace(old, new)
        file.write_text(text)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests.split()]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if result.returncode not in (0, 1):  # 1 is a test that failed; all else is no verdict
            raise RuntimeError(f"{mutant.name}: pytest could not run:\n{result.stdout}\n{result.stderr}")
        return result.returncode == 0


if __name__ == "__main__":
    chosen = [mutant for mutant in MUTANTS if mutant.name in sys.argv[1:] or len(sys.argv) == 1]
    alive = [mutant.name for mutant in chosen if survives(mutant)]
    for mutant in chosen:
        print("SURVIVES" if mutant.name in alive else "killed  ", mutant.name)
    sys.exit(bool(alive))
