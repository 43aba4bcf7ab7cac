"""Measures a model on held-out prompts: `rlgkd evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rlgkd.evaluation import evaluate
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.model import LanguageModel, check_same_vocabulary
from rlgkd.scripts.train import make_env


def show(
    model: str, *, env: str, split: str, prompts: int, teacher: str, temperature: float, greedy: bool, seed: int
) -> None:
    """Print a table of the model's scores with their 95% intervals."""
    task = make_env(env, seed=seed).task
    policy = _open(model, temperature)
    check_same_vocabulary(task.tokenizer, policy.tokenizer)
    guide = _open(teacher, 1.0) if teacher else None
    if guide is not None:
        check_same_vocabulary(policy.tokenizer, guide.tokenizer)
    result = evaluate(policy, guide, task, split=split, prompts=prompts, seed=seed, greedy=greedy)
    table = Table("measure", "mean", "95% interval", title=f"{model} on {len(result.trajectories)} {split} prompts")
    for name, score in result.scores().items():
        table.add_row(name, f"{score.mean:.4f}", f"{score.low:.4f} to {score.high:.4f}")
    Console().print(table)


def _open(name: str, temperature: float) -> LanguageModel:
    return language_model(load(name), load_tokenizer(name), temperature=temperature)


def main(arguments: Sequence[str] | None = None) -> None:
    """Same as `rlgkd evaluate`."""
    from rlgkd.scripts.cli import run

    run("evaluate", arguments)


if __name__ == "__main__":
    main()
