"""The trackers that are known by name, each on its own library, which is imported when it starts.

What a library needs to know besides (address, key, offline mode) is said in its own way, by its environment variables:
WANDB_MODE, WANDB_API_KEY, MLFLOW_TRACKING_URI, TRACKIO_DIR and their like.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlgkd.errors import DependencyError, SettingError, unknown_remedy
from rlgkd.imports import import_object, is_import_path
from rlgkd.scripts.tracking.protocol import TrackedRun, Tracker

TOKENS = "tokens"
"""The axis of all numbers."""
ID_TAG = "rlgkd.id"
"""MLflow's tag by which a run is found again: it gives each run an id of its own."""


class Wandb:
    """Weights & Biases; its files are in the run's folder."""

    def start(self, run: TrackedRun) -> str:
        """Begin, or go on with the run of this id."""
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            config=dict(run.settings),
            dir=str(run.folder),
        )
        self._folder = run.folder
        # Its own steps only grow, and a resumed run goes back to its checkpoint: an axis of our own may do that.
        self._run.define_metric(TOKENS)
        self._run.define_metric("*", step_metric=TOKENS)
        return self._run.url or f"{run.folder / 'wandb'} (offline; `wandb sync` sends it)"

    def numbers(self, values: Mapping[str, float], tokens: int) -> None:
        """Log them in one row."""
        self._run.log({**values, TOKENS: tokens})

    def texts(self, rows: Sequence[Mapping[str, Any]], tokens: int) -> None:
        """Log a wandb.Table."""
        columns = list(rows[0])
        table = self._wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in rows])
        self._run.log({"texts": table, TOKENS: tokens})

    def files(self, paths: Sequence[Path]) -> None:
        """Send them with the run."""
        for path in paths:
            self._run.save(str(path), base_path=str(self._folder), policy="now")

    def end(self, *, whole: bool) -> None:
        """Finish; a run that is not whole is shown as failed."""
        self._run.finish(exit_code=0 if whole else 1)


class Trackio:
    """Hugging Face's trackio: a local database, or a Space that TRACKIO_SPACE_ID names."""

    def start(self, run: TrackedRun) -> str:
        """Begin, or go on with the run of this name, which ends with the id."""
        import trackio

        self._trackio = trackio
        trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._project = run.project
        return f"trackio show --project {run.project}"

    def numbers(self, values: Mapping[str, float], tokens: int) -> None:
        """Log them at the step of these tokens."""
        self._trackio.log(dict(values), step=tokens)

    def texts(self, rows: Sequence[Mapping[str, Any]], tokens: int) -> None:
        """Log a trackio.Table."""
        columns = list(rows[0])
        table = self._trackio.Table(columns=columns, data=[[row[name] for name in columns] for row in rows])
        self._trackio.log({"texts": table}, step=tokens)

    def files(self, paths: Sequence[Path]) -> None:
        """Copy them to the project's files."""
        for path in paths:
            self._trackio.save(str(path), project=self._project)

    def end(self, *, whole: bool) -> None:
        """Finish."""
        self._trackio.finish()


class MLflow:
    """MLflow, through its client, which has no run that is active for the whole process."""

    LONGEST_VALUE = 6000
    """Characters of a parameter's value that MLflow takes."""

    def start(self, run: TrackedRun) -> str:
        """Begin, or go on with the run that has this id as a tag."""
        from mlflow import MlflowClient, entities, get_tracking_uri

        self._client, self._entities = MlflowClient(), entities
        experiment = self._client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        found = self._client.search_runs([number], f"tags.`{ID_TAG}` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
        else:
            self._id = self._client.create_run(number, run_name=run.name, tags={ID_TAG: run.id}).info.run_id
            values = {name: str(value)[: self.LONGEST_VALUE] for name, value in run.settings.items()}
            self._client.log_batch(self._id, params=[entities.Param(name, value) for name, value in values.items()])
        return f"run {self._id} at {get_tracking_uri()}"

    def numbers(self, values: Mapping[str, float], tokens: int) -> None:
        """Log them at the step of these tokens."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, tokens) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def texts(self, rows: Sequence[Mapping[str, Any]], tokens: int) -> None:
        """Append the rows to the table texts.json, with their tokens."""
        table = {TOKENS: [tokens] * len(rows), **{name: [row[name] for row in rows] for name in rows[0]}}
        self._client.log_table(self._id, table, "texts.json")

    def files(self, paths: Sequence[Path]) -> None:
        """Log them as artifacts."""
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def end(self, *, whole: bool) -> None:
        """Finish; a run that is not whole is shown as killed."""
        self._client.set_terminated(self._id, "FINISHED" if whole else "KILLED")


TRACKERS: dict[str, type[Tracker]] = {"wandb": Wandb, "trackio": Trackio, "mlflow": MLflow}


def check_trackers(names: Sequence[str]) -> None:
    """Raise SettingError for a tracker that is not known, DependencyError for one whose library is not installed."""
    for name in names:
        if name not in TRACKERS and not is_import_path(name):
            raise SettingError("trackers", name, f"{unknown_remedy(name, TRACKERS)}, or a class as file.py:Class")
        # Without an origin it is a folder of that name, such as the one in which wandb keeps its files.
        if name in TRACKERS and ((spec := find_spec(name)) is None or spec.origin is None):
            raise DependencyError("trackers", name, f"install its package: pip install 'rlgkd[{name}]'")


def make_tracker(name: str) -> Tracker:
    """Return the tracker of this name or import path.

    Raises: SettingError if it cannot be imported.
    """
    made: Tracker = TRACKERS[name]() if name in TRACKERS else import_object("trackers", name)()
    return made
