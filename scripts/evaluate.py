"""Measures a model on held-out prompts: `rlgkd evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rlgkd.evaluation import evaluate
from rlgkd.lm import check_same_vocabulary, open_by_name
from rlgkd.scripts.train import make_env


def show(
    model: str, *, env: str, split: str, prompts: int, teacher: str, temperature: float, greedy: bool, seed: int
) -> None:
    """Print a table of the model's scores with their 95% intervals."""
    task = make_env(env, seed=seed).task
    policy = open_by_name(model, temperature=temperature)
    check_same_vocabulary(task.tokenizer, policy.tokenizer)
    guide = open_by_name(teacher) if teacher else None
    if guide is not None:
        check_same_vocabulary(policy.tokenizer, guide.tokenizer)
    result = evaluate(policy, guide, task, split=split, prompts=prompts, seed=seed, greedy=greedy)
    table = Table("measure", "mean", "95% interval", title=f"{model} on {len(result.trajectories)} {split} prompts")
    for name, score in result.scores().items():
        table.add_row(name, f"{score.mean:.4f}", f"{score.low:.4f} to {score.high:.4f}")
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Same as `rlgkd evaluate`."""
    from rlgkd.scripts.cli import run

    run("evaluate", arguments)


if __name__ == "__main__":
    main()
