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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.table import Table
from rich.text import Text

from rlgkd.errors import CheckpointError

if TYPE_CHECKING:  # matplotlib is imported where it draws: `table` does without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = np.ndarray[Any, np.dtype[np.float64]]

MINUS: Final = "\N{MINUS SIGN}"
DASH: Final = "\N{EN DASH}"
ARROW: Final = "\N{RIGHTWARDS ARROW}"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a measure is called, written and judged."""

    key: str
    label: str
    better: int = 0
    """+1 more is better, -1 less is better, 0 neither."""
    share: bool = False
    """A share in [0, 1], written in percent; its changes in percentage points."""
    digits: int = 3
    """Digits behind the point."""
    unit: str = ""
    relative: bool = False
    """Write a change in percent of the start, too."""
    note: str = ""

    def value(self, x: float) -> str:
        """A value as text: `62.1%`, `0.412`."""
        if not math.isfinite(x):
            return DASH
        return _signed(f"{100 * x:.1f}%" if self.share else f"{x:.{self.digits}f}")

    def bounds(self, low: float, high: float, *, between: str = f" {DASH} ") -> str:
        """An interval as text, without a unit; empty where a bound is missing."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return ""
        factor, digits = (100, 1) if self.share else (1, self.digits)
        return between.join(_signed(f"{factor * bound:.{digits}f}") for bound in (low, high))

    def change(self, x: float, start: float = math.nan) -> str:
        """A change as text: `+25.9 points`, or `-0.360 (-59%)` where the metric is relative and `start` is known."""
        if not math.isfinite(x):
            return DASH
        text = f"{100 * x:+.1f} points" if self.share else f"{x:+.{self.digits}f}"
        if self.relative and math.isfinite(start) and start != 0:
            text += f" ({100 * x / abs(start):+.0f}%)"
        return _signed(text)


METRICS: Final = {
    metric.key: metric
    for metric in (
        Metric(key="reward", label="Reward", better=1, note="what training maximises"),
        Metric(key="truth", label="Truth", better=1, share=True, note="judged true by the exact oracle"),
        Metric(key="parsable", label="Parsable", better=1, share=True, note="the oracle can read it"),
        Metric(key="coverage", label="Coverage", better=1, share=True, note="share of the main facts told"),
        Metric(key="rouge2", label="ROUGE-2", better=1, note="overlap with the reference, 0 to 1"),
        Metric(
            key="reverse_kl", label="Reverse KL", better=-1, unit="nats/token", relative=True,
            note="student to teacher, on the student's texts",
        ),
        Metric(
            key="forward_kl", label="Forward KL", better=-1, unit="nats/token", relative=True,
            note="teacher to student",
        ),
        Metric(key="length", label="Length", digits=1, unit="tokens", note="of a text, its end included"),
        Metric(key="ended", label="Ended", better=1, share=True, note="stopped by itself, not at the limit"),
        Metric(key="entropy", label="Entropy", unit="nats", note="of the next token; low is certain"),
        Metric(key="distinct2", label="Distinct-2", note="share of different word pairs; low is uniform"),
    )
}  # fmt: skip
"""The measures that have a name here, in the order of the report; others are shown under the name they come with."""

HEADLINES: Final = ("truth", "reward", "rouge2", "reverse_kl")
"""What the headline tells, the first that there is first: the oracle, which cannot be exploited, before the reward."""

MARKS: Final = {
    "better": "\N{BLACK UP-POINTING TRIANGLE} better",
    "worse": "\N{BLACK DOWN-POINTING TRIANGLE} worse",
    "changed": "\N{BLACK DIAMOND} changed",
    "unclear": "\N{WHITE CIRCLE} not clear",
    "": DASH,
}
"""A change's mark. The first three: its 95% interval excludes zero. `changed` is for measures without a direction."""

DIVERGENCES: Final = {"reverse_kl": "reverse KL", "forward_kl": "forward KL", "jsd": "Jensen-Shannon divergence"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean with its 95% interval; NaN where it is not known."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @staticmethod
    def of(entry: object) -> Score:
        """From summary.json's {"mean", "low", "high"}, or from a bare number."""
        if isinstance(entry, Mapping):
            return Score(mean=_float(entry.get("mean")), low=_float(entry.get("low")), high=_float(entry.get("high")))
        return Score(mean=_float(entry))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure before and after training, the teacher's, and the change with its mark (a key of `MARKS`)."""

    metric: Metric
    before: Score
    after: Score
    teacher: Score
    change: Score
    mark: str

    @property
    def change_text(self) -> str:
        """The change's mean."""
        return self.metric.change(self.change.mean, self.before.mean)

    @property
    def sentence(self) -> str:
        """`from 62.1% to 88.0% (+25.9 points, 95% interval 22.0 to 29.8)`, as far as it is known."""
        unit = f" {self.metric.unit}" if self.metric.unit else ""
        if not math.isfinite(self.before.mean) or not math.isfinite(self.after.mean):
            return self.metric.value(self.after.mean) + unit
        told = [self.change_text.replace(" (", ", ").removesuffix(")")]
        if bounds := self.metric.bounds(self.change.low, self.change.high, between=" to "):
            told.append(f"95% interval {bounds}")
        way = f"from {self.metric.value(self.before.mean)} to {self.metric.value(self.after.mean)}{unit}"
        return f"{way} ({', '.join(told)})"


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
    page = _environment().get_template("report.html").render(
        title=str(summary.get("name") or config.get("name") or run.resolve().name),
        facts=_facts(summary, config, progress),
        rows=found,
        headlines=_headlines(found),
        exploited=_exploited(found),
        marks=MARKS,
        curves=_curves(progress),
        dumbbells=_dumbbells(found),
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
            Text(_visible(row.metric.label) + unit),
            *(Text(row.metric.value(score.mean)) for score in scores),
            Text(row.change_text),
            Text(row.metric.bounds(row.change.low, row.change.high, between=" to ")),
            Text(MARKS[row.mark], style=styles.get(row.mark, "dim")),
        )
    return out


def rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row for each measure of a `summary.json`: the known ones in the order of `METRICS`, then the others."""
    groups = [_mapping(summary.get(name)) for name in ("before", "after", "teacher_scores", "change")]
    keys = dict.fromkeys(str(key) for group in groups for key in group)
    found = []
    for key in sorted(keys, key=lambda key: list(METRICS).index(key) if key in METRICS else len(METRICS)):
        metric = METRICS.get(key) or Metric(key=key, label=key.replace("_", " "))
        before, after, teacher, change = (Score.of(group.get(key)) for group in groups)
        if not math.isfinite(change.mean):
            change = Score(mean=after.mean - before.mean)
        if any(math.isfinite(score.mean) for score in (before, after, teacher)):
            mark = _mark(metric, change)
            found.append(Row(metric=metric, before=before, after=after, teacher=teacher, change=change, mark=mark))
    return found


# What a folder holds, as far as it can be read.


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
        return _mapping(yaml.safe_load(text))
    except yaml.YAMLError:
        problems.append("config.yaml is not YAML")
        return {}


def _summary(text: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(text)) if text.strip() else {}
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
        name: np.array([_float(line[column]) if column < len(line) else math.nan for line in body], dtype=np.float64)
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
        number = _float(summary.get(key))
        number = number if math.isfinite(number) else reached
        return f"{number:,.0f}" if math.isfinite(number) else None

    alpha = _float(told("alpha"))
    divergence = told("divergence")
    seconds = _float(summary.get("seconds"))
    beta = told("beta") if divergence == "jsd" else None
    return {
        **{key: told(key) for key in ("env", "student", "teacher", "agent", "split")},
        "alpha": alpha if math.isfinite(alpha) else None,
        "divergence": DIVERGENCES.get(divergence, divergence.replace("_", " ")) if divergence else None,
        "beta": beta,
        "updates": count("updates", "time/iterations"),
        "tokens": count("tokens", "time/total_timesteps"),
        "prompts": count("prompts", ""),
        "time": _duration(seconds) if math.isfinite(seconds) else None,
    }


def _mark(metric: Metric, change: Score) -> str:
    if not (math.isfinite(change.low) and math.isfinite(change.high)):
        return ""
    if change.low <= 0 <= change.high:
        return "unclear"
    if not metric.better:
        return "changed"
    return "better" if (change.low > 0) == (metric.better > 0) else "worse"


def _headlines(found: list[Row]) -> list[Row]:
    known = {row.metric.key: row for row in found if math.isfinite(row.after.mean)}
    return [known[key] for key in HEADLINES if key in known]


def _exploited(found: list[Row]) -> list[str]:
    """The measures that clearly fell while the reward clearly rose: what the reward does not see."""
    marks = {row.metric.key: row.mark for row in found}
    if marks.get("reward") != "better":
        return []
    return [METRICS[key].label for key in ("truth", "parsable", "coverage", "rouge2") if marks.get(key) == "worse"]


# Examples.


def _example(entry: Mapping[str, Any]) -> dict[str, Any]:
    before, after, teacher = (_mapping(entry.get(name)) for name in ("before", "after", "teacher"))
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
    step = _float(_mapping(after.get("quality")).get("truth")) - _float(_mapping(before.get("quality")).get("truth"))
    if math.isfinite(step):
        return "truth", step
    step = _float(after.get("reward")) - _float(before.get("reward"))
    return "reward", step if math.isfinite(step) else 0.0


def _judged(written: Mapping[str, Any]) -> dict[str, Any]:
    """The reward, its parts and other measures as (name, value), and the oracle's verdict as (class, text) badges."""
    badges, chips = [], []
    for key, value in _mapping(written.get("quality")).items():
        x = _float(value)
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
    parts = [(str(name), f"{_float(x):.3f}") for name, x in _mapping(written.get("parts")).items()]
    if written.get("stop") == "length":
        chips.append(("cut", "at the limit"))
    return {"reward": METRICS["reward"].value(_float(written.get("reward"))), "parts": parts + chips, "badges": badges}


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


# Plots. Colours are stand-ins that become the page's CSS variables, so that one drawing serves light and dark.

_ROLES: Final = ("ink", "muted", "line", "before", "after", "teacher", "card")
_COLOURS: Final = {role: f"#0a0b{number:02x}" for number, role in enumerate(_ROLES)}

_PANELS: Final = (
    ("rollout/ep_rew_mean", "Reward", "per text"),
    ("train/divergence", "Divergence to the teacher", "nats/token"),
    ("rollout/ep_len_mean", "Length", "tokens per text"),
    ("train/entropy", "Entropy", "nats"),
    ("train/alpha", "Alpha", "weight of the divergence"),
)


def _curves(progress: Mapping[str, Floats]) -> list[dict[str, object]]:
    """Small multiples over the generated tokens; alpha among them only where it moved."""
    axis, x = "tokens", progress.get("time/total_timesteps", np.empty(0))
    if not np.isfinite(x).any():
        axis, x = "updates", progress.get("time/iterations", np.empty(0))
    if not np.isfinite(x).any():
        x = np.arange(1.0, 1 + max((len(column) for column in progress.values()), default=0))
    panels: list[dict[str, object]] = []
    for column, label, unit in _PANELS:
        y = progress.get(column, np.full(len(x), math.nan))
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any() or (column == "train/alpha" and np.ptp(y[known]) == 0):
            continue
        smooth = _smoothed(y[known])
        ends = f"{_three(smooth[0])} {ARROW} {_three(smooth[-1])}"
        alt = f"{label} ({unit}) over {_thousands(x[known][-1])} {axis}: smoothed, from {_compact(smooth[0])} to "
        alt += f"{_compact(smooth[-1])}; raw values between {_compact(y[known].min())} and {_compact(y[known].max())}."
        with _style():
            svg = _svg(_panel(x[known], y[known], smooth, axis), f"curve{len(panels)}", alt)
        panels.append({"label": label, "unit": unit, "ends": ends, "svg": svg})
    return panels


def _panel(x: Floats, y: Floats, smooth: Floats, axis: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(400 / 72, 210 / 72))
    axes = figure.add_axes((0.115, 0.19, 0.865, 0.77))
    _bare(axes)
    axes.grid(axis="y", color=_COLOURS["line"], linewidth=0.8)
    axes.plot(x, y, color=_COLOURS["after"], alpha=0.3, linewidth=0.9)
    axes.plot(x, smooth, color=_COLOURS["after"], linewidth=2.2)
    axes.plot(x[-1:], smooth[-1:], "o", color=_COLOURS["after"], markersize=5)
    axes.set_xlabel(axis, color=_COLOURS["muted"], labelpad=3)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _compact(value)))
    return figure


def _dumbbells(found: list[Row]) -> list[dict[str, object]]:
    """Before, after and teacher on one scale, for what lies in [0, 1]; drawn for wide pages and for phones."""
    shown = [row for row in found if (row.metric.share or not row.metric.unit) and _within_one(row)]
    if not shown:
        return []
    told = [f"{_visible(row.metric.label)} {row.sentence}" for row in shown]
    alt = f"Before, after and teacher on a scale from 0 to 1. {'; '.join(told)}."
    with _style():
        return [
            {"kind": kind, "svg": _svg(_dumbbell(shown, width), f"dumbbell-{kind}", alt)}
            for kind, width in (("wide", 1030), ("narrow", 330))
        ]


def _within_one(row: Row) -> bool:
    means = [score.mean for score in (row.before, row.after, row.teacher) if math.isfinite(score.mean)]
    return bool(means) and all(0 <= mean <= 1 for mean in means)


def _dumbbell(shown: list[Row], width: int) -> Figure:
    """One line for each measure. On a wide page its name stands left of it and its values right, else above it."""
    from matplotlib.figure import Figure

    narrow = width < 600
    step, up, foot = (52, 15, 26) if narrow else (36, -4, 26)
    height = step * len(shown) + foot
    left, right = (8, 8) if narrow else (150, 140)
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((left / width, foot / height, 1 - (left + right) / width, 1 - foot / height))
    _bare(axes)
    axes.set(xlim=(0, 1), ylim=(step * len(shown), 0), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", color=_COLOURS["line"], linewidth=0.8)
    pixel = 1 / (width - left - right)
    for line, row in enumerate(shown):
        y, label = line * step + (35 if narrow else step / 2), _visible(row.metric.label)[: 26 if narrow else 20]
        before, after, teacher = row.before, row.after, row.teacher
        way = f" {ARROW} ".join(row.metric.value(s.mean) for s in (before, after) if math.isfinite(s.mean))
        ends = (0.0, 1.0) if narrow else (-left * pixel, 1 + right * pixel)
        boxed: dict[str, Any] = {
            "bbox": {"facecolor": _COLOURS["card"], "edgecolor": "none", "pad": 1.5},
            "parse_math": False,
        }
        axes.text(ends[0], y - up, label, color=_COLOURS["ink"], va="baseline", **boxed)
        axes.text(ends[1], y - up, way, color=_COLOURS["muted"], ha="right", va="baseline", **boxed)
        bar: dict[str, Any] = {"clip_on": False, "solid_capstyle": "round"}
        axes.plot([0, 1], [y, y], color=_COLOURS["line"], linewidth=1.2)
        axes.plot([before.mean, after.mean], [y, y], color=_COLOURS["after"], alpha=0.4, linewidth=6, **bar)
        for score, colour in ((before, "before"), (teacher, "teacher"), (after, "after")):
            edges = np.clip([score.low, score.high], 0, 1)
            axes.plot(edges, [y, y], color=_COLOURS[colour], linewidth=1.6, marker="|", markersize=10, **bar)
        ring: dict[str, Any] = {"color": _COLOURS["card"], "clip_on": False, "zorder": 3}
        axes.plot([teacher.mean], [y], "D", mec=_COLOURS["teacher"], mew=2, markersize=7.5, **ring)
        axes.plot([before.mean], [y], "o", mec=_COLOURS["before"], mew=2.2, markersize=9, **ring)
        axes.plot(
            [after.mean], [y], "o", mec=_COLOURS["after"], mew=1, markersize=10, **ring | {"color": _COLOURS["after"]}
        )
    axes.xaxis.set_major_formatter(lambda value, _: _compact(value))
    return figure


def _bare(axes: Axes) -> None:
    """No frame, no ticks, no ground: the page's own shows through."""
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=_COLOURS["muted"], pad=4)
    axes.set_axisbelow(True)
    axes.figure.patch.set_visible(False)


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's defaults whatever a matplotlibrc says, text that stays text, ids that repeat; then as it was."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rlgkd", "font.size": 11})
        yield


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an inline <svg>: its colours and fonts the page's, its ids its own, no date, `alt` as its label."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(style|metadata)\b.*?</\1>", "", text, flags=re.DOTALL)  # a style would reach the whole page
    used = set(re.findall(r"#([\w.-]+)(?=[\")])", text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r"font(-size|-family)?: [^;\"]*;? ?", "", text)
    for colour, stand_in in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{colour})")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = Markup('<svg {} role="img" aria-label="{}" xmlns:xlink="http://www.w3.org/1999/xlink">')
    body = re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]).replace("<defs>\n</defs>\n", "")
    return head.format(Markup(view[0]), alt) + Markup(body)


def _smoothed(y: Floats) -> Floats:
    """A Gaussian mean around each point, of a width that is a fraction of the run: no lag, and flat where y is flat."""
    sigma = len(y) / 40
    if sigma < 0.3:
        return y
    reach = min(math.ceil(3 * sigma), (len(y) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    smooth: Floats = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
    return smooth


# Small things.


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["compact"] = _compact
    return environment


def _csp_hash(script: str) -> str:
    """The source expression by which a content security policy allows this very script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _title(summary: Mapping[str, Any]) -> Text | None:
    name, prompts = summary.get("name"), summary.get("prompts")
    told = [_visible(str(name))] if name else []
    told += [f"{prompts} {summary.get('split', '')} prompts".replace("  ", " ")] if prompts else []
    return Text(", ".join(told)) if told else None


def _float(value: object) -> float:
    """A number, or NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _signed(text: str) -> str:
    """With a proper minus sign; and what rounds to zero has no sign of less than zero."""
    text = re.sub(r"^-(0(?:\.0+)?)(?![\d.])", r"\1", text)
    return text.replace("-", MINUS)


def _compact(x: float) -> str:
    """Three significant digits."""
    if not math.isfinite(x):
        return DASH
    return _signed(f"{x:.3g}") if abs(x) < 1000 else _thousands(x)


def _three(x: float) -> str:
    """Three significant digits, zeros among them."""
    return _signed(f"{x:#.3g}".rstrip(".")) if 1e-3 <= abs(x) < 1000 else _compact(x)


def _thousands(x: float) -> str:
    """250k, 1.2M."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return _signed(f"{x / size:.3g}{name}")
    return _signed(f"{x:.3g}")


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < 1 else f"{hours:.1f} h"


def _visible(text: str) -> str:
    """Printable ASCII alone: for the plots' fonts and the terminal, which obeys control characters."""
    return re.sub(r"[^ -~]+", "?", text)
