"""Mistakes seen in published code, made on purpose: each must be found by a test.

    python tests/mutants.py [NAME ...]

A mutant names a file, a function in it and the expressions that it replaces there, which are found by their syntax
tree: other code may be renamed, moved and reformatted freely, and a mutant whose expression is no longer there fails.
It is applied to a copy of the checkout in which its tests run, and is killed if one of them fails.
`tests/test_mutants.py` runs all mutants.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A mistake."""

    name: str
    file: str
    function: str
    """`function`, `Class.method`, or the name of a module's variable."""
    changes: tuple[tuple[str, str], ...]
    """(expression or statement that occurs once in the function, its replacement)."""
    tests: str


OBJECTIVE, DIVERGENCE, GATES = "tests/test_objective.py", "tests/ops/test_divergence.py", "tests/test_gates.py"
ALIGNED = "tests/teachers/test_aligned.py"

MUTANTS = (
    Mutant(
        name="JSD with its weights swapped",
        file="rlgkd/ops/divergence.py",
        function="jsd",
        changes=(("(beta, 1.0 - beta)", "(1.0 - beta, beta)"),),
        tests=DIVERGENCE,
    ),
    Mutant(
        name="JSD with a geometric mixture",
        file="rlgkd/ops/divergence.py",
        function="jsd",
        changes=(
            ("log_u_V.exp().sub_(1.0).mul_(beta).log1p_()", "log_u_V.mul(beta)"),
            ("log_u_V.neg().exp_().sub_(1.0).mul_(1.0 - beta).log1p_()", "log_u_V.neg().mul(1.0 - beta)"),
        ),
        tests=DIVERGENCE,
    ),
    Mutant(
        name="the teacher's prompt under the student's mask",
        file="rlgkd/lm/own_format.py",
        function="_read",
        changes=(("np.array(actions)", "np.isin(np.arange(len(tokens)), np.flatnonzero(episode.action_mask_T))"),),
        tests="tests/agents/test_teacher_prompt.py -k llama",
    ),
    Mutant(
        name="forward and reverse KL under each other's name",
        file="rlgkd/ops/divergence.py",
        function="DIVERGENCES",
        changes=(("forward_kl", "reverse_kl"), ("reverse_kl", "forward_kl")),
        tests=DIVERGENCE,
    ),
    Mutant(
        name="teacher and student swapped in the objective",
        file="rlgkd/objective.py",
        function="Objective.distillation",
        changes=(("self.pointwise(teacher, logits_NV)", "self.pointwise(logits_NV, teacher)"),),
        tests=OBJECTIVE,
    ),
    Mutant(
        name="lambda inverted",
        file="agents/collect.py",
        function="Collector.collect",
        changes=(
            (
                "self._coins(update, len(items)) < student_fraction",
                "self._coins(update, len(items)) >= student_fraction",
            ),
        ),
        tests="tests/agents/test_learning.py",
    ),
    Mutant(
        name="the prompt in the loss",
        file="rlgkd/rollout.py",
        function="Row.__init__",
        changes=(("[False] * len(prompt)", "[False] + [True] * (len(prompt) - 1)"),),
        tests="tests/test_rollout.py",
    ),
    Mutant(
        name="the end token masked because it is the padding too",
        file="rlgkd/types.py",
        function="Batch.collate",
        changes=(
            (
                "action_mask_BT[row, :length] = t.action_mask_T",
                "action_mask_BT[row, :length] = t.action_mask_T & (t.tokens_T != pad)",
            ),
        ),
        tests=OBJECTIVE,
    ),
    Mutant(
        name="labels not shifted",
        file="rlgkd/lm/model.py",
        function="LanguageModel.states_and_head",
        changes=(("states_BTH[row_N, column_N - 1]", "states_BTH[row_N, column_N]"),),
        tests="tests/lm/test_model.py tests/lm/test_generate.py",
    ),
    Mutant(
        name="means over the micro-batch",
        file="agents/update.py",
        function="accumulate_gradient",
        changes=(("part.per_row(divergence_B)", "part.per_row(divergence_B / divergence_B[part.rows].sum())"),),
        tests=OBJECTIVE,
    ),
    Mutant(
        name="the sampling temperature left out of the log-probabilities",
        file="rlgkd/lm/model.py",
        function="LanguageModel.tempered",
        changes=(("logits / self.temperature", "logits"),),
        tests=OBJECTIVE,
    ),
    Mutant(
        name="gradients of one process of two",
        file="agents/update.py",
        function="accumulate_gradient",
        changes=(("loss.backward()", "(loss / 2).backward()"),),
        tests=OBJECTIVE,
    ),
    Mutant(
        name="the policy term not divided by lambda",
        file="agents/update.py",
        function="term_weights",
        changes=(("policy_B / objective.student_fraction", "policy_B"),),
        tests=OBJECTIVE,
    ),
    Mutant(
        name="a future that counts the present",
        file="agents/update.py",
        function="_futures",
        changes=(
            (
                "discounted_returns(divergence_BT, horizon, part.mask_BT) - divergence_BT",
                "discounted_returns(divergence_BT, horizon, part.mask_BT)",
            ),
        ),
        tests=OBJECTIVE,
    ),
    Mutant(
        name="a baseline that knows its own reward",
        file="rlgkd/ops/returns.py",
        function="leave_one_out",
        changes=(("(count_P1 - 1.0).clamp(min=1.0)", "count_P1"),),
        tests=OBJECTIVE,
    ),
    Mutant(
        name="failed rewards counted in the baseline",
        file="rlgkd/ops/returns.py",
        function="_deviation_times_count",
        changes=(("valid_PG.sum(-1, keepdim=True)", "torch.ones_like(valid_PG).sum(-1, keepdim=True)"),),
        tests="tests/ops/test_returns.py",
    ),
    Mutant(
        name="a change of more than is possible",
        file="scripts/comparison/cell_statistics.py",
        function="_change",
        changes=(
            (
                "mean_interval(ours_SP - theirs_SP).within(*metric_of(measure).change_range)",
                "mean_interval(ours_SP - theirs_SP)",
            ),
        ),
        tests="tests/scripts/comparison/test_cell_statistics.py",
    ),
    Mutant(
        name="a gate on the wrong term",
        file="rlgkd/objective.py",
        function="Objective.loss",
        changes=(
            ("actions.policy_gate_N", "actions.divergence_gate_N"),
            ("actions.divergence_gate_N * distillation_N", "actions.policy_gate_N * distillation_N"),
        ),
        tests=GATES,
    ),
    Mutant(
        name="the sign of the gap",
        file="rlgkd/ops/gap.py",
        function="log",
        changes=(("teacher_logp - student_logp", "student_logp - teacher_logp"),),
        tests=GATES,
    ),
    Mutant(
        name="the sign of the gap that gates read",
        file="agents/gating.py",
        function="_records",
        changes=(
            (
                "logp_N.double() - part.gather(part.batch.logp_BT).to(teacher_NH.device).double()",
                "part.gather(part.batch.logp_BT).to(teacher_NH.device).double() - logp_N.double()",
            ),
        ),
        tests=GATES,
    ),
    Mutant(
        name="RLSD without the sign of the advantage",
        file="rlgkd/ops/gates_by_outcome.py",
        function="rlsd",
        changes=(("advantage_BL.sign() * gap_BL", "gap_BL"),),
        tests=GATES,
    ),
    Mutant(
        name="a token's own gap among those before it",
        file="rlgkd/ops/gates_by_token.py",
        function="iw_opd",
        changes=(("size_BL.cumsum(1) - size_BL", "size_BL.cumsum(1)"),),
        tests=GATES,
    ),
    Mutant(
        name="a gate's weights in the order of micro-batches",
        file="agents/update.py",
        function="accumulate_gradient",
        changes=(("part.per_action(gates_BL[1])", "part.per_action(gates_BL[1].flip(0))"),),
        tests=GATES,
    ),
    Mutant(
        name="a gate on the entropy bonus",
        file="rlgkd/objective.py",
        function="Objective.loss",
        changes=(
            (
                'self.entropy_bonus * (actions.policy_weight_N * record["entropy"]).sum()',
                'self.entropy_bonus * (actions.policy_weight_N * actions.policy_gate_N * record["entropy"]).sum()',
            ),
        ),
        tests=GATES,
    ),
    Mutant(
        name="later divergences by the gate of the earlier token",
        file="agents/update.py",
        function="_with_later_tokens",
        changes=(('actions.divergence_gate_N * records["divergence"]', 'records["divergence"]'),),
        tests=GATES,
    ),
    Mutant(
        name="alignment off by one",
        file="rlgkd/ops/byte_spans.py",
        function="cut_spans",
        changes=(("np.searchsorted(cuts, end_L)", 'np.searchsorted(cuts, end_L, side="right")'),),
        tests=f"tests/ops/test_byte_spans.py {ALIGNED}::test_by_hand",
    ),
    Mutant(
        name="the teacher's distribution one token late",
        file="rlgkd/teachers/aligned.py",
        function="_Alignment.add",
        changes=(("np.searchsorted(other_span_M, span_L)", 'np.searchsorted(other_span_M, span_L, side="right") - 1'),),
        tests=f"{ALIGNED}::test_by_hand",
    ),
    Mutant(
        name="a teacher map transposed",
        file="rlgkd/teachers/map_file.py",
        function="make_map",
        changes=(
            ("torch.tensor([id_ for id_, _ in pairs])", "torch.tensor([id_ for _, id_ in pairs])"),
            ("torch.tensor([id_ for _, id_ in pairs])", "torch.tensor([id_ for id_, _ in pairs])"),
        ),
        tests="tests/teachers/test_map_file.py",
    ),
    Mutant(
        name="a span's log-ratio shared out among its tokens",
        file="rlgkd/objective.py",
        function="Objective.distillation",
        changes=(("student_logp_N + teacher.other_logp_N", "student_logp_N"),),
        tests="tests/ops/test_byte_spans.py",
    ),
)


def mutated(source: str, mutant: Mutant) -> str:
    """Return the source with the mutant's changes, all of which are looked up before any is made.

    Raises:
        ValueError: The function, or one of the expressions within it, is not there exactly once.
    """
    scope = _scope(source, mutant)
    lines = [line.encode() for line in source.splitlines(keepends=True)]  # ast counts columns in bytes
    spans = []
    for old, new in mutant.changes:
        pattern = ast.dump(_pattern(old))
        nodes = [node for node in ast.walk(scope) if ast.dump(node) == pattern]
        if len(nodes) != 1:
            raise ValueError(f"{mutant.name}: {mutant.function} in {mutant.file} holds {len(nodes)} times {old!r}")
        (node,) = nodes
        start, end = _offset(lines, node.lineno, node.col_offset), _offset(lines, node.end_lineno, node.end_col_offset)
        spans.append((start, end, f"({new})" if isinstance(node, ast.expr) else new))
    content = source.encode()
    for start, end, new in sorted(spans, reverse=True):
        content = content[:start] + new.encode() + content[end:]
    return content.decode()


def survives(mutant: Mutant | None, tests: str) -> bool:
    """Whether all tests pass on a copy of the checkout with this mistake, or with none.

    Raises: ValueError as `mutated` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "assets", "docs")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
        if mutant is not None:
            file = copy / mutant.file
            file.write_text(mutated(file.read_text(), mutant))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if result.returncode not in (0, 1):  # 1 is a failed test; every other code is no verdict
            raise RuntimeError(f"pytest could not run {tests}:\n{result.stdout}\n{result.stderr}")
        return result.returncode == 0


def _scope(source: str, mutant: Mutant) -> ast.AST:
    """Return the syntax tree of the mutant's function."""
    scopes: list[ast.AST] = [ast.parse(source)]
    for name in mutant.function.split("."):
        scopes = [node for scope in scopes for node in ast.iter_child_nodes(scope) if name in _names(node)]
    if len(scopes) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} holds {len(scopes)} times {mutant.function}")
    return scopes[0]


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names that a definition or an assignment binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _pattern(code: str) -> ast.AST:
    """Return the expression or the statement."""
    (statement,) = ast.parse(code).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def _offset(lines: list[bytes], line: int, column: int) -> int:
    return sum(map(len, lines[: line - 1])) + column


if __name__ == "__main__":
    chosen = [mutant for mutant in MUTANTS if mutant.name in sys.argv[1:] or len(sys.argv) == 1]
    alive = [mutant.name for mutant in chosen if survives(mutant, mutant.tests)]
    for mutant in chosen:
        print("SURVIVES" if mutant.name in alive else "killed  ", mutant.name)
    sys.exit(bool(alive))
