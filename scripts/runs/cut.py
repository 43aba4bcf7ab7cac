"""Cuts a student out of a model by measuring which layers it can do without: `rlgkd cut`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlgkd import checkpoint
from rlgkd.cutting import cuts, jeffreys
from rlgkd.devices import best_device
from rlgkd.errors import CheckpointError
from rlgkd.lm import check_same_vocabulary, load, open_by_name, save
from rlgkd.rollout import share_end_ids
from rlgkd.scripts._console import say
from rlgkd.scripts.config.reading import override
from rlgkd.scripts.runs.train import make_env


def cut(model: str, layers: int, env: str, overrides: Sequence[str], out: Path, *, prompts: int) -> None:
    """Print what each block of layers costs when it is left out, and save the model without the cheapest.

    Raises: CheckpointError for a folder that exists; SettingError for a number of layers that the model cannot be cut
    to; what opening model and environment raises.
    """
    if out.exists():
        raise CheckpointError("out", str(out), "it exists; give a new folder")
    chosen = override({"env": env, "env_settings": {}}, [f"env_settings.{given}" for given in overrides])
    whole = open_by_name(model, device=best_device())
    task = make_env(env, chosen["env_settings"], student=model, seed=0, called="model").task
    check_same_vocabulary(task.tokenizer, whole.tokenizer, field="model", owner=f"environment {env}", name=model)
    share_end_ids(task, whole)
    table = Table(
        "left out", "KL(whole || cut)", "KL(cut || whole)", title="nats per token, at the whole model's texts"
    )
    found = []
    for one in cuts(whole, task, layers, prompts=prompts):
        found.append(one)
        table.add_row(_named(one.left_out), f"{one.forward_kl:.3f}", f"{one.reverse_kl:.3f}")
    best = min(found, key=jeffreys)
    student = load(whole.module, layers=best.kept, dtype=None)
    with checkpoint.writing(out):
        save(student, whole.tokenizer, out)
    Console().print(table)
    parameters, before = (sum(p.numel() for p in module.parameters()) / 1e6 for module in (student, whole.module))
    say(
        Console(),
        f"layers {_named(best.left_out)} left out: {parameters:.3g} of {before:.3g} million parameters, in {out}",
    )


def _named(layers: range) -> str:
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
