"""Runs that such a script makes before its comparison, and models that it measures besides the comparison's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlgkd.devices import best_device
from rlgkd.errors import CheckpointError
from rlgkd.lm import open_by_name
from rlgkd.rollout import share_end_ids
from rlgkd.scripts.comparison.compare import compare
from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.comparison.results import TEACHER, untrained_models
from rlgkd.scripts.comparison.run_cell import is_measured, measure, write
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.folder import CONFIG, MODEL, SUMMARY
from rlgkd.scripts.runs.train import make_env

MEASURED_IN = "measured"
"""Folder of the measures of models that are not the comparison's."""


def trained(recipe: str, out: Path, settings: Mapping[str, Any], *, quiet: bool) -> str:
    """Train a recipe with settings over it, from where its folder stands to its end; return the model's folder.

    Raises: what `rlgkd train` raises.
    """
    if not (out / SUMMARY).is_file():
        if (out / CONFIG).is_file():
            train.resume(out, quiet=quiet)
        else:
            changes = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
            train.start(read(recipe, changes), out, quiet=quiet)
    return str((out / MODEL).resolve())


def measured(
    model: str, base: RunConfig, folder: Path, *, samples: int = 1, temperature: float = 1.0, teacher: bool = True
) -> None:
    """Measure a model as the cells of a comparison are, unless that has been done; the result is in `folder`.

    Args:
        model: Its name or folder.
        base: The comparison's settings.
        folder: Where `measured.json` is, or will be.
        samples: Texts of each prompt.
        temperature: At which it is sampled.
        teacher: Whether the divergence to the comparison's teacher is measured.

    Raises: ModelError for a model that cannot be opened.
    """
    if is_measured(base, samples, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(base.threads)
    task = make_env(base.env, base.env_settings, student=base.student, seed=0).task
    student = open_by_name(model, temperature=temperature, device=best_device())
    share_end_ids(task, student)
    distance_to = open_by_name(str(base.teacher), device=best_device()) if teacher else None
    write(measure(student, distance_to, task, base, samples), base, samples, folder)


def compared(grid: Grid, measures: Path, out: Path, *, start: str, jobs: int, quiet: bool) -> None:
    """Run the cells that have not been run, and print why if none could be.

    The comparison takes the measures of its untrained models from where `measured` has left them: those of the teacher
    from `measures/teacher`, those of the student before training from `measures/{start}`.
    """
    for model in untrained_models(grid):
        own = measures / (TEACHER if model.is_teacher else start)
        shutil.copytree(own, out / model.folder, dirs_exist_ok=True)
    try:
        compare(grid, out, jobs=jobs, quiet=quiet)
    except CheckpointError as error:  # not one cell could be run; the page says so of each
        print(error)
