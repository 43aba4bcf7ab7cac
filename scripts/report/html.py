"""A run's report: one HTML file that opens anywhere, without a network, and the same numbers for the terminal.

Reads `config.yaml`, `progress.csv` and `summary.json` of a run's folder; each may be missing, damaged or have gaps, and
the report then shows what there is. Whatever a model wrote is hostile: the template escapes all text, and the page's
content security policy runs no script but its own. The same input gives the same bytes.

Left out on purpose: what would have to be fetched (fonts, plotting libraries), and evaluations during training.
"""

from __future__ import annotations

import base64
import csv
import difflib
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.table import Table
from rich.text import Text

from rlgkd.errors import CheckpointError
from rlgkd.scripts.report.metrics import MARKS, METRICS, Floats, Row, compact, mapping, rows, to_float, visible
from rlgkd.scripts.report.plots import curves, dumbbells

HEADLINES: Final = ("truth", "reward", "rouge2", "reverse_kl")
"""What the headline tells, the first that there is first: the oracle, which cannot be exploited, before the reward."""

DIVERGENCES: Final = {
    "reverse_kl": "reverse KL", "forward_kl": "forward KL", "jsd": "Jensen-Shannon divergence",
    "skew_forward_kl": "skew forward KL", "skew_reverse_kl": "skew reverse KL", "jeffreys": "Jeffreys divergence",
    "adaptive_kl": "adaptive KL",
}  # fmt: skip


def write_report(run: Path) -> Path:
    """Write `report.html` into the folder of a run, from what the folder holds, and return its path.

    Raises: CheckpointError where the folder does not exist.
    """
    run = Path(run)
    if not run.is_dir():
        raise CheckpointError("run", str(run), "name the folder that a training wrote")
    problems: list[str] = []
    config_text = _read(run / "config.yaml", problems)
    config = _config(config_text, problems)
    summary = _summary(_read(run / "summary.json", problems), problems)
    progress = _progress(_read(run / "progress.csv", problems), problems)
    found = rows(summary)
    examples = [_example(entry) for entry in _list(summary.get("examples")) if isinstance(entry, Mapping)]
    page = environment().get_template("report.html").render(
        title=str(summary.get("name") or config.get("name") or run.resolve().name),
        facts=_facts(summary, config, progress),
        rows=found,
        headlines=_headlines(found, summary),
        exploited=_exploited(found),
        remarks=remarks(summary),
        marks=MARKS,
        curves=curves(progress),
        dumbbells=dumbbells(found),
        examples=examples,
        judge="truth" if any(example["judge"] == "truth" for example in examples) else "reward",
        config=config_text,
        problems=problems,
    )  # fmt: skip
    path = run / "report.html"
    partial = path.with_name(f".report.html.{os.getpid()}")
    partial.write_bytes(page.encode("utf-8", errors="replace"))  # a lone surrogate in a model's text
    partial.replace(path)
    return path


def table(summary: Mapping[str, Any]) -> Table:
    """The before/after/teacher table of a `summary.json`, for the terminal."""
    found = rows(summary)
    teacher = any(math.isfinite(row.teacher.mean) for row in found)
    out = Table(title=_title(summary), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.caption = "Changes are paired by prompt; not clear: their 95% interval holds 0"
    out.add_column("Measure")
    for name in ("Before", "After", *(["Teacher"] if teacher else []), "Change", "95% interval"):
        out.add_column(name, justify="right")
    out.add_column("Verdict")
    styles = {"better": "green", "worse": "red", "changed": "cyan"}
    for row in found:
        scores = [row.before, row.after, *([row.teacher] if teacher else [])]
        unit = f" ({row.metric.unit})" if row.metric.unit else ""
        out.add_row(
            Text(visible(row.metric.label) + unit),
            *(Text(row.metric.value(score.mean)) for score in scores),
            Text(row.change_text),
            Text(row.metric.bounds(row.change.low, row.change.high, between=" to ")),
            Text(MARKS[row.mark], style=styles.get(row.mark, "dim")),
        )
    return out


def _read(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        problems.append(f"{path.name} is not there (yet)")
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error.strerror}")
    return ""


def _config(text: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        return mapping(yaml.safe_load(text))
    except yaml.YAMLError:
        problems.append("config.yaml is not YAML")
        return {}


def _summary(text: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        return mapping(json.loads(text)) if text.strip() else {}
    except (json.JSONDecodeError, RecursionError):
        problems.append("summary.json is not JSON")
        return {}


def _progress(text: str, problems: list[str]) -> dict[str, Floats]:
    try:
        lines = list(csv.reader(io.StringIO(text.replace("\0", ""))))
    except csv.Error:
        problems.append("progress.csv is not CSV")
        return {}
    header, *body = lines or [[]]
    return {
        name: np.array([to_float(line[column]) if column < len(line) else math.nan for line in body], dtype=np.float64)
        for column, name in enumerate(header)
    }


def _facts(
    summary: Mapping[str, Any], config: Mapping[str, Any], progress: Mapping[str, Floats]
) -> dict[str, str | float | None]:
    """What was trained, how: the summary's word, else the config's, else the progress'. None where nobody knows."""

    def told(key: str) -> str | None:
        for value in (summary.get(key), config.get(key)):
            value = (value.get("name") or value.get("id")) if isinstance(value, Mapping) else value
            if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value):
                return str(value)
        return None

    def count(key: str, column: str) -> str | None:
        values = progress.get(column, np.empty(0))
        reached = float(np.nanmax(values)) if np.isfinite(values).any() else math.nan
        number = to_float(summary.get(key))
        number = number if math.isfinite(number) else reached
        return f"{number:,.0f}" if math.isfinite(number) else None

    alpha, alpha_end = to_float(told("alpha")), to_float(summary.get("alpha_end"))
    divergence = told("divergence")
    seconds, asked = to_float(summary.get("seconds")), to_float(config.get("tokens"))
    beta = told("beta") if divergence == "jsd" else None
    return {
        **{key: told(key) for key in ("env", "student", "teacher", "agent", "split")},
        "alpha": alpha if math.isfinite(alpha) else None,
        "alpha_end": alpha_end if math.isfinite(alpha_end) else alpha,
        "divergence": DIVERGENCES.get(divergence, divergence.replace("_", " ")) if divergence else None,
        "beta": beta,
        "updates": count("updates", "time/iterations"),
        "tokens": count("tokens", "time/total_timesteps"),
        "asked": f"{asked:,.0f}" if math.isfinite(asked) else None,
        "prompts": count("prompts", ""),
        "time": _duration(seconds) if math.isfinite(seconds) else None,
    }


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What must be said of the reward while training: that it never differed, that it failed; a sentence each."""
    told = mapping(summary.get("rewards"))
    always, scored, failed = (to_float(told.get(name)) for name in ("always", "scored", "failed"))
    out = []
    if math.isfinite(always):
        out.append(
            f"The reward was the same, {always:.3f}, for all samples: nothing to learn from; look at rollouts.jsonl."
        )
    if failed > 0:
        why = str(told.get("first_failure") or "it returned NaN")
        out.append(f"The reward failed for {failed:,.0f} of {scored:,.0f} samples, which were left out. First: {why}")
    return out


def _headlines(found: list[Row], summary: Mapping[str, Any]) -> list[Row]:
    known = {row.metric.key: row for row in found if math.isfinite(row.after.mean)}
    if math.isfinite(to_float(mapping(summary.get("rewards")).get("always"))):
        known.pop("reward", None)  # nothing was learnt from it, whatever it is now
    return [known[key] for key in HEADLINES if key in known]


def _exploited(found: list[Row]) -> list[str]:
    """The measures that clearly fell while the reward clearly rose: what the reward does not see."""
    marks = {row.metric.key: row.mark for row in found}
    if marks.get("reward") != "better":
        return []
    return [METRICS[key].label for key in ("truth", "parsable", "coverage", "rouge2") if marks.get(key) == "worse"]


def _example(entry: Mapping[str, Any]) -> dict[str, Any]:
    before, after, teacher = (mapping(entry.get(name)) for name in ("before", "after", "teacher"))
    judge, step = _step(before, after)
    old, new = _difference(str(before.get("text") or ""), str(after.get("text") or ""))
    writers = [("before", "Student before", before, old), ("after", "Student after", after, new)]
    writers.append(("teacher", "Teacher", teacher, [(str(teacher.get("text") or ""), False)]))
    return {
        "key": str(entry.get("key") or ""),
        "prompt": str(entry.get("prompt") or "").strip(),
        "reference": str(entry.get("reference") or "").strip(),
        "verdict": "improved" if step > 0 else "worse" if step < 0 else "same",
        "judge": judge,
        "texts": [
            {"kind": kind, "label": label, "spans": spans, **_judged(written)}
            for kind, label, written, spans in writers
            if written
        ],
    }


def _step(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, float]:
    """Who says whether a text improved, and by how much: the oracle's truth where there is one, else the reward."""
    step = to_float(mapping(after.get("quality")).get("truth")) - to_float(mapping(before.get("quality")).get("truth"))
    if math.isfinite(step):
        return "truth", step
    step = to_float(after.get("reward")) - to_float(before.get("reward"))
    return "reward", step if math.isfinite(step) else 0.0


def _judged(written: Mapping[str, Any]) -> dict[str, Any]:
    """The reward, its parts and other measures as (name, value), and the oracle's verdict as (class, text) badges."""
    badges, chips = [], []
    for key, value in mapping(written.get("quality")).items():
        x = to_float(value)
        if not math.isfinite(x):
            continue
        if key in ("truth", "parsable"):
            yes, no = ("true", "not true") if key == "truth" else ("parsable", "unparsable")
            if x in (0, 1):
                badges.append(("good", f"\N{CHECK MARK} {yes}") if x else ("bad", f"\N{BALLOT X} {no}"))
            else:
                badges.append(("partly", f"{yes} {METRICS[key].value(x)}"))
        elif key == "coverage":
            badges.append(("good" if x >= 1 else "bad" if x <= 0 else "partly", f"coverage {100 * x:.0f}%"))
        else:
            known = METRICS.get(str(key))
            chips.append((known.label if known else str(key), known.value(x) if known else f"{x:.4g}"))
    parts = [(str(name), f"{to_float(x):.3f}") for name, x in mapping(written.get("parts")).items()]
    if written.get("stop") == "length":
        chips.append(("cut", "at the limit"))
    return {
        "reward": METRICS["reward"].value(to_float(written.get("reward"))),
        "parts": parts + chips,
        "badges": badges,
    }


def _difference(old: str, new: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Two texts as (piece, differs from the other text); texts with little in common, or long, come unmarked."""
    words = [re.findall(r"\S+|\s+", text) for text in (old, new)]
    matcher = difflib.SequenceMatcher(a=words[0], b=words[1], autojunk=False)
    if max(map(len, words)) > 800 or matcher.ratio() < 0.4:
        return [(old, False)], [(new, False)]
    sides: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        for side, piece in zip(sides, (words[0][a0:a1], words[1][b0:b1]), strict=True):
            if piece:
                side.append(("".join(piece), kind != "equal"))
    return sides


def environment() -> Environment:
    """Of the templates: all is escaped, and what is undefined is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["compact"] = compact
    return environment


def _csp_hash(script: str) -> str:
    """The source expression by which a content security policy allows this very script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _title(summary: Mapping[str, Any]) -> Text | None:
    name, prompts = summary.get("name"), summary.get("prompts")
    told = [visible(str(name))] if name else []
    told += [f"{prompts} {summary.get('split', '')} prompts".replace("  ", " ")] if prompts else []
    return Text(", ".join(told)) if told else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < 1 else f"{hours:.1f} h"
