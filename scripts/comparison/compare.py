"""Compares runs: any recipe, with the values of some settings, times seeds: `rlgkd compare`.

    rlgkd compare [RECIPE|FILE.yaml] --alphas 0,0.25,0.5,1 --seeds 3 [--vary KEY=a,b,c] [--out DIR] [key=value ...]

Each cell and seed is a run's folder under `cells/`, trained in a process of its own; a finished run is never run again,
and a comparison that was stopped continues where it was. `results.json` holds every number and is the same to the bit
for the same comparison; times are in `timing.json`. `results.csv` has a row for each run, `report.html` the findings.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rlgkd import checkpoint
from rlgkd.envs.registry import takes_setting
from rlgkd.errors import CheckpointError, RlgkdError
from rlgkd.scripts._console import say
from rlgkd.scripts.comparison.grid import Cell, Grid
from rlgkd.scripts.comparison.html import write_report
from rlgkd.scripts.comparison.results import (
    RESULTS,
    TABLE,
    TIMING,
    collect,
    csv_table,
    timing,
    tokens_done,
    untrained_models,
)
from rlgkd.scripts.comparison.run_cell import check_same, is_measured, measure_untrained, train_and_measure
from rlgkd.scripts.comparison.terminal import answer_sentences, answer_table
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.folder import CONFIG, check_files, locked
from rlgkd.scripts.runs.stopping import stoppable
from rlgkd.scripts.runs.text_ids import DAY, with_day
from rlgkd.scripts.runs.train import make_env
from rlgkd.scripts.runs.workers import Job, run_jobs


def compare(grid: Grid, out: Path, *, jobs: int = 0, quiet: bool = False) -> tuple[Path, dict[str, str]]:
    """Run what has not been run, and write results and report; return the report's path and the runs that failed.

    Raises: CheckpointError if the folder is in use, or holds other runs, or if nothing could be run.
    """
    console = Console(stderr=True)
    out = out.absolute()
    with checkpoint.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        check_files(out, (RESULTS, TABLE, TIMING))
        grid = on_one_day(grid, out)
        open_jobs, done = _open_jobs(grid, out)
        heading = f"{grid.base.name}: {len(grid.cells)} cells x {len(grid.seeds)} seeds into {out}"
        if done:
            heading += f"; {done} of {done + len(open_jobs)} parts are there already"
        say(console, heading)
        with stoppable(f"the same command, with --out {shlex.quote(str(out))}", console):
            failed = run_jobs(open_jobs, most=jobs or os.cpu_count() or 1, console=console, quiet=quiet)
        results = collect(grid, out)
        if not any(cell["runs"] for cell in results["cells"]):
            name, reason = next(iter(failed.items()))
            raise CheckpointError("out", str(out), f"no run could be finished; {name}: {reason}")
        checkpoint.atomic_write(out / RESULTS, json.dumps(results, indent=1) + "\n")
        checkpoint.atomic_write(out / TABLE, csv_table(results))
        checkpoint.atomic_write(out / TIMING, json.dumps(timing(grid, out), indent=1) + "\n")
        page = write_report(out)
        console.print(answer_table(results))
        for sentence in answer_sentences(results):
            say(console, f"- {sentence}")
        return page, failed


def on_one_day(grid: Grid, out: Path) -> Grid:
    """Return the grid with the day that its chat templates show, if one shows it: that of the runs in the folder.

    Runs of before that have no day keep none, for they could not go on with one.
    """
    begun = [out / cell.run_folder(seed) / CONFIG for cell in grid.cells for seed in grid.seeds]
    first = next((config for config in begun if config.is_file()), None)
    days = _days_shown(grid) if first is None else iter([read(first).env_settings.get(DAY)])
    day = next(days, None)
    if not day:
        return grid

    def dated(cell: Cell) -> Cell:
        return replace(cell, settings=_dated(cell.settings, day))

    cells, baselines = map(dated, grid.cells), map(dated, grid.baselines)
    return replace(grid, base=_dated(grid.base, day), cells=[*cells], baselines=[*baselines])


def _days_shown(grid: Grid) -> Iterator[str]:
    seen = []
    for cell in grid.cells:
        settings = cell.settings
        if not _may_show_a_day(settings) or (texts := (settings.student, settings.env_settings)) in seen:
            continue
        seen.append(texts)
        try:
            task = make_env(settings.env, settings.env_settings, student=settings.student, seed=settings.seed).task
        except RlgkdError:  # its run will say so
            continue
        if day := with_day(settings, task).env_settings.get(DAY):
            yield day


def _may_show_a_day(settings: RunConfig) -> bool:
    given = settings.env_settings
    return bool(given.get("chat")) and not given.get(DAY) and takes_setting(settings.env, DAY)


def _dated(settings: RunConfig, day: str) -> RunConfig:
    if not _may_show_a_day(settings):
        return settings
    return settings.model_copy(update={"env_settings": {**settings.env_settings, DAY: day}})


def _open_jobs(grid: Grid, out: Path) -> tuple[list[Job], int]:
    """Return the jobs that are still to be run, and how many are done.

    Raises: CheckpointError if a folder holds another run.
    """
    jobs = []
    done = 0
    for model in untrained_models(grid):
        folder = out / model.folder
        if is_measured(grid.base, grid.samples, folder):
            done += 1
            continue
        jobs.append(
            Job(
                name=model.name,
                folder=folder,
                function=measure_untrained,
                arguments=(model.settings, grid.base, grid.samples, folder),
                options={"teacher": model.is_teacher},
            )
        )
    for seed in grid.seeds:
        for cell in grid.cells:
            folder = out / cell.run_folder(seed)
            settings = cell.seeded(seed)
            check_same(settings, folder)
            if is_measured(grid.base, grid.samples, folder):
                done += 1
                continue
            jobs.append(
                Job(
                    name=f"{cell.name} seed {seed}",
                    folder=folder,
                    function=train_and_measure,
                    arguments=(settings, grid.base, grid.samples, folder),
                    size=settings.tokens,
                    done=tokens_done,
                )
            )
    return jobs, done
