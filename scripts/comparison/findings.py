"""What a comparison says, in sentences: which cell is best on what, which beats both ends, who exploits the reward.

A claim rests on a paired 95% interval that excludes zero, and gives it. The intervals are 95% one by one, not jointly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rlgkd.scripts.report.metrics import metric_of
from rlgkd.statistics import Interval, mean_interval

UNSEEN: Final = ("truth", "exact", "coverage", "rouge2", "chrf", "steps")
"""Measures of quality that training never sees."""
DISTANCE: Final = "reverse_kl"
JUDGED: Final = ("reward", *UNSEEN, DISTANCE)


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence, with what to read first."""

    strong: str
    text: str

    def __str__(self) -> str:
        """As plain text."""
        return f"{self.strong} {self.text}"


def answer(results: Mapping[str, Any]) -> list[Sentence]:
    """The sentences, the most telling first."""
    cells = [cell for cell in results["cells"] if cell["runs"]]
    sentences = [*_exploiting(cells), *_dominating(results, cells), *_trading(cells)]
    sentences += [_best(cells, name) for name in _common(cells)]
    return sentences


def title(name: str) -> str:
    """A cell's name for a reader."""
    return name.replace("alpha=", "\N{GREEK SMALL LETTER ALPHA} = ").replace("beta=", "\N{GREEK SMALL LETTER BETA} = ")


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], measure: str) -> Interval:
    """Ours minus theirs, paired by seed and prompt, over the seeds that both have; cut to what it can be."""
    by_seed = [{run["seed"]: run["measures"][measure] for run in cell["runs"]} for cell in (ours, theirs)]
    common = [seed for seed in by_seed[0] if seed in by_seed[1]]
    mine, other = (np.array([seeds[seed] for seed in common], dtype=np.float64) for seeds in by_seed)
    found = mean_interval(mine - other) if common else mean_interval(np.zeros((0, 0)))
    return found.within(*metric_of(measure).change_range)


def clearly_best(cells: Sequence[Mapping[str, Any]], name: str) -> str:
    """The cell that is clearly better than every other on a measure that has a direction; empty where none is."""
    scored = [cell for cell in cells if (cell["scores"].get(name) or {}).get("mean") is not None]
    better = metric_of(name).better
    if not better or len(scored) < 2:
        return ""
    best, others = _leading(scored, name)
    return best["name"] if all(difference(best, other, name).sign == better for other in others) else ""


def _leading(cells: Sequence[Mapping[str, Any]], name: str) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The cell with the best mean, and the others, the next first."""
    better = metric_of(name).better
    best, *others = sorted(cells, key=lambda cell: -better * cell["scores"][name]["mean"])
    return best, others


def _best(cells: Sequence[Mapping[str, Any]], name: str) -> Sentence:
    """Which cell is best on a measure, if it clearly beats all others; else which come first, and whom that beats."""
    metric = metric_of(name)
    best, others = _leading(cells, name)
    changes = [(cell, difference(best, cell, name)) for cell in others]
    clear = [(cell, change) for cell, change in changes if change.sign == metric.better]
    level = [cell for cell, change in changes if change.sign != metric.better]
    word, label = "lowest" if metric.better < 0 else "best", _label(name)
    told = "; ".join(f"{title(cell['name'])} by {_size(name, change)}" for cell, change in clear)
    if not level:
        text = f"{_scored(best, name)}." + (f" Clearly better than {told}." if told else "")
        return Sentence(strong=f"{word.capitalize()} {label}: {title(best['name'])},", text=text)
    near = ", ".join(f"{title(cell['name'])} ({metric.value(cell['scores'][name]['mean'])})" for cell in level)
    text = f"{title(best['name'])} has {_scored(best, name)}, not clearly better than {near}"
    text += f"; clearly better than {told}." if told else "."
    return Sentence(strong=f"{word.capitalize()} {label}: none is clearly {word}.", text=text)


def _scored(cell: Mapping[str, Any], name: str) -> str:
    """Its mean with unit and interval."""
    metric, score = metric_of(name), cell["scores"][name]
    unit = f" {metric.unit}" if metric.unit else ""
    bounds = metric.bounds(score["low"], score["high"], between=" to ")
    return f"{metric.value(score['mean'])}{unit} (95% interval {bounds})"


def _dominating(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> Iterator[Sentence]:
    """Which cells beat both ends on a pair of axes; the strictest form that holds."""
    ends = [cell for cell in cells if cell["name"] in results["baselines"]]
    inner = [cell for cell in cells if cell not in ends]
    if len(ends) < 2 or not inner:
        return
    axes = _common(cells)
    pairs = list(itertools.combinations(axes, 2))
    changes = {
        (cell["name"], end["name"], name): _toward(cell, end, name)
        for cell, end, name in itertools.product(inner, ends, axes)
    }
    where = " and ".join(title(end["name"]) for end in ends)

    def clear(cell: Mapping[str, Any], pair: Sequence[str]) -> list[bool]:
        return [changes[cell["name"], end["name"], name].sign > 0 for end in ends for name in pair]

    def level(cell: Mapping[str, Any], pair: Sequence[str]) -> bool:
        return all(changes[cell["name"], end["name"], name].mean >= 0 for end in ends for name in pair) and all(
            any(changes[cell["name"], end["name"], name].sign > 0 for name in pair) for end in ends
        )

    strict = [(cell, pair) for cell in inner for pair in pairs if all(clear(cell, pair))]
    weak = [(cell, pair) for cell in inner for pair in pairs if level(cell, pair) and not all(clear(cell, pair))]
    for cell in inner:
        told = [pair for found, pair in strict if found is cell]
        if told:
            named = "; ".join(f"{_label(a)} and {_label(b)}" for a, b in told)
            names = list(dict.fromkeys(name for pair in told for name in pair))
            sizes = "; ".join(
                f"{_label(name)} {_size(name, difference(cell, end, name))} against {title(end['name'])}"
                for name, end in itertools.product(names, ends)
            )
            yield Sentence(
                strong=f"{title(cell['name'])} beats both {where}",
                text=f"on both axes of each of these pairs, every interval clear of zero: {named}. {_upper(sizes)}.",
            )
    if not strict and weak:
        for cell in inner:
            told = [pair for found, pair in weak if found is cell]
            if told:
                named = "; ".join(f"{_label(a)} and {_label(b)}" for a, b in told)
                yield Sentence(
                    strong=f"{title(cell['name'])} is at least level with both {where}",
                    text=f"on both axes, and clearly better on one against each, on these pairs: {named}.",
                )
    if not strict and not weak:
        yield Sentence(
            strong="No cell in between beats both ends:",
            text=f"none is at least level with {where} on two axes and clearly better on one of them against each.",
        )


def _exploiting(cells: Sequence[Mapping[str, Any]]) -> Iterator[Sentence]:
    """Where the reward rose since the start and what it does not see fell."""
    for cell in cells:
        for other, changes in cell["against"].items():
            if not other.startswith("start") or not _sign(changes, "reward") > 0:
                continue
            if fell := [name for name in UNSEEN if _sign(changes, name) < 0]:
                told = "; ".join(f"{_label(name)} {_written(name, changes[name]['change'])}" for name in fell)
                rose = _written("reward", changes["reward"]["change"])
                yield Sentence(
                    strong=f"{title(cell['name'])} exploits the reward:",
                    text=f"since the start it rose by {rose}, while what it does not see fell: {told}.",
                )


def _trading(cells: Sequence[Mapping[str, Any]]) -> Iterator[Sentence]:
    """Which cells earn more of the reward than others, and are worse by what it does not see."""
    for high in cells:
        told = []
        for low in cells:
            if low is high or difference(high, low, "reward").sign <= 0:
                continue
            changes = {name: difference(high, low, name) for name in UNSEEN if name in high["scores"]}
            lost = [f"{_label(name)} {_size(name, change)}" for name, change in changes.items() if change.sign < 0]
            if lost:
                told.append(f"against {title(low['name'])} {', '.join(lost)}")
        if told:
            yield Sentence(
                strong=f"{title(high['name'])} earns more reward than others and is worse by what it does not see:",
                text=f"{'; '.join(told)}.",
            )


def _common(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The judged measures that every cell has."""
    return [name for name in JUDGED if all((c["scores"].get(name) or {}).get("mean") is not None for c in cells)]


def _sign(changes: Mapping[str, Any], name: str) -> int:
    """+1 or -1 where the change of a measure is clear, else 0."""
    change = changes.get(name, {}).get("change") or {}
    if change.get("low") is None or change.get("high") is None:
        return 0
    return int(change["low"] > 0) - int(change["high"] < 0)


def _toward(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> Interval:
    """The difference, turned so that more is better."""
    found = difference(ours, theirs, name)
    if metric_of(name).better > 0:
        return found
    return Interval(mean=-found.mean, low=-found.high, high=-found.low)


def _size(name: str, change: Interval) -> str:
    return _written(name, {"mean": change.mean, "low": change.low, "high": change.high})


def _written(name: str, change: Mapping[str, float]) -> str:
    metric = metric_of(name)
    return f"{metric.change(change['mean'])} ({metric.bounds(change['low'], change['high'], between=' to ')})"


def _label(name: str) -> str:
    label = metric_of(name).label
    return label if label.isupper() or "-" in label or "KL" in label else label.lower()


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
