"""Measures a model on held-out prompts: `rlgkd evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlgkd import checkpoint
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.teachers import open_outside_teacher, relabelled
from rlgkd.devices import best_device
from rlgkd.errors import SettingError, shown
from rlgkd.evaluation import evaluate
from rlgkd.lm import check_same_vocabulary, load_tokenizer, open_by_name, shared_vocabulary
from rlgkd.lm.own_format import read_in_own_format
from rlgkd.rollout import share_end_ids
from rlgkd.scripts._console import say
from rlgkd.scripts.config.reading import override, read
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.folder import BEST, CONFIG, MODEL
from rlgkd.scripts.runs.recorder import strict_json
from rlgkd.scripts.runs.train import make_env
from rlgkd.teachers import Teacher
from rlgkd.teachers.names import is_outside, is_teacher_file

KNOWN_TOKENS = 64
"""Tokens that a served teacher is asked for where the run does not say how many."""


def show(
    model: str,
    overrides: Sequence[str] = (),
    *,
    file: str = "",
    env: str,
    split: str,
    prompts: int,
    teacher: str,
    temperature: float | None,
    greedy: bool,
    seed: int,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    samples: int = 1,
    out: Path | None = None,
) -> None:
    """Print a table of the model's scores with their 95% intervals; with `out`, write them and the texts as JSON.

    The environment and the temperature are those of `file`, the settings of a run in YAML, or those of the run that
    `model` is, or is a model of, where no others are given.

    Raises: SettingError, for a file as teacher too; ModelError for a model whose vocabulary is not the environment's;
        what the environment raises.
    """
    folder = Path(model).parent if Path(model).name in (MODEL, BEST) else Path(model)
    settings = Path(file) if file else folder / CONFIG
    run = read(settings) if file or settings.exists() else None
    if temperature is None:
        temperature = run.algorithm.sampling.temperature if run else 1.0
    env, env_settings = environment(run, [*([f"env={env}"] if env else []), *overrides])
    policy = open_by_name(model, temperature=temperature, device=best_device())
    task = make_env(env, env_settings, student=model, seed=seed, called="model").task
    check_same_vocabulary(task.tokenizer, policy.tokenizer, field="model", owner=f"environment {env}", name=model)
    share_end_ids(task, policy)
    teacher_model: Teacher | None = None
    if is_teacher_file(teacher):
        remedy = "it has log-probabilities of other texts than those that are sampled here; give a live teacher"
        raise SettingError("teacher", teacher, remedy)
    if is_outside(teacher):
        algorithm = run.algorithm if run else AlgorithmConfig()
        known = algorithm.known_tokens or KNOWN_TOKENS
        teacher_model = open_outside_teacher(task, algorithm, teacher, policy.tokenizer, known_tokens=known)
    elif teacher:
        with relabelled("teacher"):
            shared = shared_vocabulary(policy.tokenizer, load_tokenizer(teacher), owner="model", name=teacher)
            opened = teacher_model = open_by_name(teacher, vocabulary=shared, device=best_device())
        if teacher != model:
            read_in_own_format(task, opened, policy, owner="model", name=teacher)
    evaluation = evaluate(
        policy,
        teacher_model,
        task,
        split=split,
        prompts=prompts,
        seed=seed,
        greedy=greedy,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        group=samples,
    )
    table = Table("measure", "mean", "95% interval")
    for name, score in evaluation.scores().items():
        table.add_row(Text(shown(name)), f"{score.mean:.4f}", f"{score.low:.4f} to {score.high:.4f}")
    task_name = env if task.name in env else f"{env} ({task.name})"
    heading = f"{model} on {len(evaluation.trajectories)} {split} prompts of {task_name}"
    say(Console(), heading)
    Console().print(table)
    if out is not None:
        texts = [
            {
                "key": t.item.key,
                "prompt": t.item.prompt,
                "text": t.transcript,
                "reward": t.score.reward,
                "stop": str(t.stop),
            }
            for t in evaluation.trajectories
        ]
        scores = {name: asdict(score) for name, score in evaluation.scores().items()}
        content = {"model": model, "env": env, "split": split, "seed": seed, "scores": scores, "texts": texts}
        checkpoint.atomic_write(out, strict_json(content, indent=1) + "\n")


def environment(run: RunConfig | None, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the environment's id and settings: the run's or the default, with the overrides applied.

    The run's settings of the environment are dropped if the overrides name another environment.

    Raises: SettingError for any other override.
    """
    own_env = run.env if run else str(RunConfig.model_fields["env"].default)
    chosen = override({"env": own_env, "env_settings": {}}, overrides)
    for key in chosen.keys() - {"env", "env_settings"}:
        raise SettingError("argument", key, "only env and env_settings.NAME are set so; see rlgkd evaluate --help")
    if run and chosen["env"] == own_env:
        chosen = override({"env": own_env, "env_settings": run.env_settings}, overrides)
    if not isinstance(chosen["env_settings"], dict):
        raise SettingError("env_settings", chosen["env_settings"], "write env_settings.NAME=value")
    return str(chosen["env"]), chosen["env_settings"]
