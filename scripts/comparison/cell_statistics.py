"""Means of cells, paired changes between cells, and probabilities of improvement, each with its interval.

A cell here is an entry of `results.json`: a name and runs, each with its seed and, for each measure, one value for each
prompt. An untrained model (the teacher, the student's start) has the same form, with one run whose seed is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlgkd.scripts.report.metrics import metric_of
from rlgkd.statistics import Interval, improvement, mean_interval


def tables(cell: Mapping[str, Any], seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Return each measure's values [seeds, prompts], over the cell's runs or over those with these seeds."""
    chosen = [run["measures"] for run in cell["runs"] if seeds is None or run["seed"] in seeds]
    names = [name for name in (chosen[0] if chosen else {}) if all(name in measures for measures in chosen)]
    return {name: np.array([measures[name] for measures in chosen], dtype=np.float64) for name in names}


def scores(cell: Mapping[str, Any]) -> dict[str, Interval]:
    """Return each measure's mean with its interval, cut to the measure's range."""
    return {name: mean_interval(values).within(*metric_of(name).range) for name, values in tables(cell).items()}


def paired_change(ours: Mapping[str, Any], theirs: Mapping[str, Any], measure: str) -> Interval:
    """Return ours minus theirs, paired by prompt and by the seeds that both have, cut to the range of a change.

    All NaN if they have no seed in common.
    """
    our_table, their_table = _paired_tables(ours, theirs)
    if measure not in our_table or measure not in their_table:
        return Interval()
    return _change(our_table[measure], their_table[measure], measure)


def against(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    """Return each measure's paired change from theirs to ours, and the probability that ours is greater."""
    our_table, their_table = _paired_tables(ours, theirs)
    return {
        name: {
            "change": _change(values, their_table[name], name),
            "greater": improvement(values, their_table[name]),
        }
        for name, values in our_table.items()
        if name in their_table
    }


def _change(ours_SP: np.ndarray, theirs_SP: np.ndarray, measure: str) -> Interval:
    return mean_interval(ours_SP - theirs_SP).within(*metric_of(measure).change_range)


def _paired_tables(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the tables of both over their common seeds; those of an untrained model have one row for all seeds."""
    if theirs["runs"] and theirs["runs"][0]["seed"] is None:
        return tables(ours), tables(theirs)
    their_seeds = {run["seed"] for run in theirs["runs"]}
    common = [run["seed"] for run in ours["runs"] if run["seed"] in their_seeds]
    return tables(ours, common), tables(theirs, common)
