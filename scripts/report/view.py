"""The data that the page of a run shows: facts, measures, headlines, remarks, plots, examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from rlgkd.scripts.report.agreement import agreement_panels
from rlgkd.scripts.report.examples import Example, read_example
from rlgkd.scripts.report.formatting import duration, whole
from rlgkd.scripts.report.lenient import to_float, to_list, to_mapping
from rlgkd.scripts.report.metrics import DIVERGENCE_LABELS, MARKS, METRICS, MeasureRow
from rlgkd.scripts.report.plots import dumbbells, held_out_curves, training_curves
from rlgkd.scripts.report.remarks import judged_rows, remarks
from rlgkd.scripts.report.run_files import RunFiles
from rlgkd.statistics import Floats

HEADLINES: Final = ("truth", "reward", "rouge2", "reverse_kl")
"""Measures of the headline, the first that is known first: the oracle, which cannot be exploited, before the reward."""
UNSEEN_BY_REWARD: Final = ("truth", "parsable", "coverage", "rouge2")
"""Measures whose fall, while the reward rises, says that the reward is exploited."""


def run_view(files: RunFiles) -> dict[str, Any]:
    """Return what the template `report.html` shows of a run."""
    summary = files.summary
    rows = judged_rows(summary)
    examples = read_examples(summary)
    return {
        "title": str(summary.get("name") or files.config.get("name") or files.name),
        "facts": facts(summary, files.config, files.progress),
        "rows": rows,
        "headlines": headlines(rows, summary),
        "exploited": exploited(rows),
        "remarks": remarks(summary),
        "warnings": warnings(summary),
        "marks": MARKS,
        "curves": training_curves(files.progress, stage_beginnings(summary), off_policy=off_policy(files.config)),
        "agreement": agreement_panels(files.progress, stage_beginnings(summary)),
        "held_out": held_out(files),
        "stages": stages(summary),
        "dumbbells": dumbbells(rows),
        "examples": examples,
        "judged_by": "truth" if any(example.judged_by == "truth" for example in examples) else "reward",
        "config": files.config_text,
        "problems": files.problems,
    }


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """Return what guards said while the run trained (docs/guards.md)."""
    return [message for message in to_list(summary.get("warnings")) if isinstance(message, str)]


def stage_beginnings(summary: Mapping[str, Any]) -> list[float]:
    """Return the tokens at which each stage began; none if one of them is not known, or they do not ascend."""
    begins = [to_float(to_mapping(stage).get("tokens")) for stage in to_list(summary.get("stages"))]
    known = all(math.isfinite(tokens) for tokens in begins) and begins == sorted(begins)
    return begins if known else []


def stages(summary: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Return of each stage its name and the tokens from and to which it went."""
    found = [to_mapping(stage) for stage in to_list(summary.get("stages"))]
    return [
        {
            "name": str(stage.get("name") or ""),
            "begin": whole(to_float(stage.get("tokens"))),
            "end": whole(to_float(stage.get("end"))),
        }
        for stage in found
    ]


def held_out(files: RunFiles) -> dict[str, Any]:
    """Return the panels of the evaluations on the way, on which prompts they were, and whether a model was chosen."""
    known = to_mapping(files.summary.get("held_out"))
    watched = str(known.get("keep_best") or files.config.get("keep_best") or "").lstrip("+-")
    best = to_mapping(known.get("best"))
    measures = [*([watched] if watched else []), *HEADLINES, "ended"]
    return {
        "curves": held_out_curves(
            files.evaluations,
            measures,
            stages=stage_beginnings(files.summary),
            watched=watched,
            best=to_float(best.get("tokens")),
        ),
        "prompts": whole(to_float(known.get("prompts"))),
        "split": str(known.get("split") or ""),
        "best": whole(to_float(best.get("tokens"))),
    }


def read_examples(summary: Mapping[str, Any]) -> list[Example]:
    """Return the examples of a `summary.json`; entries that are none are left out."""
    return [read_example(entry) for entry in to_list(summary.get("examples")) if isinstance(entry, Mapping)]


def facts(
    summary: Mapping[str, Any], config: Mapping[str, Any], progress: Mapping[str, Floats]
) -> dict[str, str | float | None]:
    """Say what was trained and how, from the summary, else the config, else the progress; None if unknown."""

    def text(key: str) -> str | None:
        for source in (summary, config):
            value = source.get(key)
            if isinstance(value, Mapping):
                value = value.get("name") or value.get("id")
            if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value):
                return str(value)
        return None

    def count(key: str, column: str = "") -> str | None:
        number = to_float(summary.get(key))
        if not math.isfinite(number):
            values = progress.get(column, np.empty(0))
            number = float(np.nanmax(values)) if np.isfinite(values).any() else math.nan
        return whole(number)

    alpha = to_float(text("alpha"))
    alpha_end = to_float(summary.get("alpha_end"))
    divergence = text("divergence")
    seconds = to_float(summary.get("seconds"))
    return {
        **{key: text(key) for key in ("env", "student", "teacher", "agent", "split")},
        "alpha": alpha if math.isfinite(alpha) else None,
        "alpha_end": alpha_end if math.isfinite(alpha_end) else alpha,
        "divergence": DIVERGENCE_LABELS.get(divergence, divergence.replace("_", " ")) if divergence else None,
        "beta": text("beta") if divergence == "jsd" else None,
        "updates": count("updates", "time/iterations"),
        "tokens": count("tokens", "time/total_timesteps"),
        "tokens_requested": whole(to_float(config.get("tokens"))),
        "prompts": count("prompts"),
        "time": duration(seconds) if math.isfinite(seconds) else None,
    }


def off_policy(config: Mapping[str, Any]) -> bool:
    """Whether no text of the training was the student's, as in SFT: the reward while training is then no result."""
    return to_float(config.get("student_fraction")) == 0 and not to_float(config.get("student_fraction_end")) > 0


def headlines(rows: Sequence[MeasureRow], summary: Mapping[str, Any]) -> list[MeasureRow]:
    """Return the rows of the headline: those of HEADLINES whose value after training is known."""
    known = {row.metric.key: row for row in rows if math.isfinite(row.after.mean)}
    if math.isfinite(to_float(to_mapping(summary.get("rewards")).get("always"))):
        known.pop("reward", None)  # a constant reward taught nothing, so a change of it is no result
    return [known[key] for key in HEADLINES if key in known]


def exploited(rows: Sequence[MeasureRow]) -> list[str]:
    """Return the labels of the measures that clearly fell while the reward clearly rose."""
    marks = {row.metric.key: row.mark for row in rows}
    if marks.get("reward") != "better":
        return []
    return [METRICS[key].label for key in UNSEEN_BY_REWARD if marks.get(key) == "worse"]
