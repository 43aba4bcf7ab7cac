"""The files of a run that its report reads: each may be missing, damaged or have gaps."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlgkd.scripts._yaml import load_yaml
from rlgkd.scripts.report.lenient import to_float, to_mapping
from rlgkd.scripts.report.progress_csv import read_table
from rlgkd.statistics import Floats


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The content of a run's folder, as far as it can be read."""

    name: str
    """The folder's name."""
    config_text: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    progress: Mapping[str, Floats]
    """Column -> its values, one for each update; NaN where a value is missing or no number."""
    evaluations: Mapping[str, Floats]
    """The same of evaluations.csv, one value for each evaluation; empty if the run has none."""
    problems: list[str]
    """One line for each file that could not be read."""


def read_run(run: Path) -> RunFiles:
    """Read config.yaml, summary.json, progress.csv and evaluations.csv of a run's folder."""
    problems: list[str] = []
    config_text = _text(run / "config.yaml", problems)
    return RunFiles(
        name=run.resolve().name,
        config_text=config_text,
        config=_config(config_text, problems),
        summary=_summary(_text(run / "summary.json", problems), problems),
        progress=_columns("progress.csv", _text(run / "progress.csv", problems), problems),
        evaluations=_evaluations(run / "evaluations.csv", problems),
        problems=problems,
    )


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        problems.append(f"{path.name} is not there (yet)")
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error.strerror}")
    return ""


def _config(text: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        return to_mapping(load_yaml(text))
    except yaml.YAMLError:
        problems.append("config.yaml is not YAML")
        return {}


def _summary(text: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        return to_mapping(json.loads(text)) if text.strip() else {}
    except (json.JSONDecodeError, RecursionError):
        problems.append("summary.json is not JSON")
        return {}


def _evaluations(path: Path, problems: list[str]) -> dict[str, Floats]:
    """Without a word where there is no such file: a run need not evaluate on the way."""
    return _columns(path.name, _text(path, problems), problems) if path.exists() else {}


def _columns(name: str, text: str, problems: list[str]) -> dict[str, Floats]:
    try:
        names, rows = read_table(text)
    except csv.Error:
        problems.append(f"{name} is not CSV")
        return {}
    return {
        name: np.array([to_float(row[number]) for row in rows], dtype=np.float64) for number, name in enumerate(names)
    }
