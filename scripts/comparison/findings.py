"""The findings of a comparison: which cell beats both ends, which exploits the reward, which is best on what.

A finding rests on a paired 95% interval that excludes zero, and its sentence gives the interval. The intervals are 95%
one by one, not jointly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlgkd.scripts.comparison.cell_statistics import paired_change
from rlgkd.scripts.report.lenient import to_interval
from rlgkd.scripts.report.metrics import metric_of
from rlgkd.statistics import Interval

UNSEEN: Final = ("truth", "exact", "coverage", "rouge2", "chrf", "steps")
"""Measures of quality that training never sees."""
DISTANCE: Final = "reverse_kl"
JUDGED: Final = ("reward", *UNSEEN, DISTANCE)

Cell = Mapping[str, Any]
"""An entry of `results.json`; see rlgkd.scripts.comparison.cell_statistics."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding as data, and as a sentence."""

    kind: str
    """exploits, beats_both, level_with_both, none_beats_both, trades, best or none_best."""
    cell: str = ""
    """The cell that it is about."""
    others: tuple[str, ...] = ()
    """The cells that it is compared with."""
    measures: tuple[Any, ...] = ()
    """The measures that it rests on; pairs of them for beats_both and level_with_both."""
    strong: str
    """The beginning of the sentence, which is to be read first."""
    text: str
    """The rest of the sentence."""

    def __str__(self) -> str:
        """Return the sentence as plain text."""
        return f"{self.strong} {self.text}"


def findings(results: Mapping[str, Any]) -> list[Finding]:
    """Return the findings of a `results.json`, the most important first."""
    cells = [cell for cell in results["cells"] if cell["runs"]]
    return [
        *_exploiting_reward(cells),
        *_beating_both_ends(cells, results["baselines"]),
        *_trading_quality(cells),
        *(_best(cells, measure) for measure in _common_measures(cells)),
    ]


def title(name: str) -> str:
    """Return a cell's name for a reader."""
    return name.replace("alpha=", "\N{GREEK SMALL LETTER ALPHA} = ").replace("beta=", "\N{GREEK SMALL LETTER BETA} = ")


def clearly_best(cells: Sequence[Cell], measure: str) -> str:
    """Return the cell that is clearly better than every other; empty if none is, or no direction is better."""
    scored = [cell for cell in cells if _is_scored(cell, measure)]
    better = metric_of(measure).better
    if not better or len(scored) < 2:
        return ""
    best, *others = _best_first(scored, measure)
    is_clear = all(paired_change(best, other, measure).sign == better for other in others)
    return str(best["name"]) if is_clear else ""


def _exploiting_reward(cells: Sequence[Cell]) -> Iterator[Finding]:
    """Find cells whose reward rose since the start while a quality that it does not see fell."""
    for cell in cells:
        for other, changes in cell["against"].items():
            intervals = {name: to_interval(change.get("change")) for name, change in changes.items()}
            if not other.startswith("start") or intervals.get("reward", Interval()).sign <= 0:
                continue
            fell = {name: intervals[name] for name in UNSEEN if name in intervals and intervals[name].sign < 0}
            if not fell:
                continue
            rose = metric_of("reward").change_with_bounds(intervals["reward"])
            yield Finding(
                kind="exploits",
                cell=cell["name"],
                others=(other,),
                measures=tuple(fell),
                strong=f"{title(cell['name'])} exploits the reward:",
                text=f"since the start it rose by {rose}, while what it does not see fell: {_changes(fell, '; ')}.",
            )


def _beating_both_ends(cells: Sequence[Cell], baselines: Sequence[str]) -> Iterator[Finding]:
    """Find cells that beat both ends on a pair of measures, or else are level with them; or say that none is."""
    ends = [cell for cell in cells if cell["name"] in baselines]
    inner = [cell for cell in cells if cell not in ends]
    if len(ends) < 2 or not inner:
        return
    beating: list[tuple[Cell, list[tuple[str, str]]]] = []
    level: list[tuple[Cell, list[tuple[str, str]]]] = []
    measures = _common_measures(cells)
    for cell in inner:
        gains = {measure: [_gain(cell, end, measure) for end in ends] for measure in measures}
        clear_pairs = []
        level_pairs = []
        for pair in itertools.combinations(measures, 2):
            by_end = list(zip(*(gains[measure] for measure in pair), strict=True))
            if all(gain.sign > 0 for both in by_end for gain in both):
                clear_pairs.append(pair)
            elif all(_is_level(both) for both in by_end):
                level_pairs.append(pair)
        if clear_pairs:
            beating.append((cell, clear_pairs))
        if level_pairs:
            level.append((cell, level_pairs))
    names = tuple(str(end["name"]) for end in ends)
    where = " and ".join(map(title, names))
    if beating:
        yield from (_beats_both(cell, ends, pairs, where) for cell, pairs in beating)
    elif level:
        for cell, pairs in level:
            yield Finding(
                kind="level_with_both",
                cell=cell["name"],
                others=names,
                measures=tuple(pairs),
                strong=f"{title(cell['name'])} is at least level with both {where}",
                text=f"on both axes, and clearly better on one against each, on these pairs: {_pairs(pairs)}.",
            )
    else:
        yield Finding(
            kind="none_beats_both",
            others=names,
            strong="No cell in between beats both ends:",
            text=f"none is at least level with {where} on two axes and clearly better on one of them against each.",
        )


def _gain(ours: Cell, theirs: Cell, measure: str) -> Interval:
    """Return how much better ours is: the paired change with its sign such that more is better."""
    if metric_of(measure).better > 0:
        return paired_change(ours, theirs, measure)
    return paired_change(theirs, ours, measure)


def _is_level(gains: Sequence[Interval]) -> bool:
    """Return whether no mean is worse and at least one measure is clearly better."""
    return all(gain.mean >= 0 for gain in gains) and any(gain.sign > 0 for gain in gains)


def _beats_both(cell: Cell, ends: Sequence[Cell], pairs: Sequence[tuple[str, str]], where: str) -> Finding:
    sizes = []
    for measure in dict.fromkeys(measure for pair in pairs for measure in pair):
        for end in ends:
            change = metric_of(measure).change_with_bounds(paired_change(cell, end, measure))
            sizes.append(f"{metric_of(measure).label_in_text} {change} against {title(end['name'])}")
    text = "; ".join(sizes)
    return Finding(
        kind="beats_both",
        cell=cell["name"],
        others=tuple(end["name"] for end in ends),
        measures=tuple(pairs),
        strong=f"{title(cell['name'])} beats both {where}",
        text=f"on both axes of each of these pairs, every interval clear of zero: {_pairs(pairs)}. "
        f"{text[:1].upper()}{text[1:]}.",
    )


def _trading_quality(cells: Sequence[Cell]) -> Iterator[Finding]:
    """Find cells that earn clearly more reward than others and are clearly worse on what the reward does not see."""
    for cell in cells:
        losses: dict[str, dict[str, Interval]] = {}
        for other in cells:
            if other is cell or paired_change(cell, other, "reward").sign <= 0:
                continue
            changes = {name: paired_change(cell, other, name) for name in UNSEEN if name in cell["scores"]}
            lost = {name: change for name, change in changes.items() if change.sign < 0}
            if lost:
                losses[other["name"]] = lost
        if losses:
            yield Finding(
                kind="trades",
                cell=cell["name"],
                others=tuple(losses),
                measures=tuple(dict.fromkeys(name for lost in losses.values() for name in lost)),
                strong=f"{title(cell['name'])} earns more reward than others and is worse by what it does not see:",
                text="; ".join(f"against {title(name)} {_changes(lost, ', ')}" for name, lost in losses.items()) + ".",
            )


def _best(cells: Sequence[Cell], measure: str) -> Finding:
    """Return which cell is clearly best on a measure; if none is, which has the best mean and which are level."""
    metric = metric_of(measure)
    first, *others = _best_first(cells, measure)
    changes = {other["name"]: paired_change(first, other, measure) for other in others}
    clear = {name: change for name, change in changes.items() if change.sign == metric.better}
    level = [other for other in others if other["name"] not in clear]
    beaten = "; ".join(f"{title(name)} by {metric.change_with_bounds(change)}" for name, change in clear.items())
    word = "lowest" if metric.better < 0 else "best"
    score = to_interval(first["scores"][measure])
    unit = f" {metric.unit}" if metric.unit else ""
    bounds = metric.bounds(score.low, score.high, between=" to ")
    scored = f"{metric.value(score.mean)}{unit} (95% interval {bounds})"
    if not level:
        text = f"{scored}." + (f" Clearly better than {beaten}." if beaten else "")
        strong = f"{word.capitalize()} {metric.label_in_text}: {title(first['name'])},"
        return Finding(kind="best", cell=first["name"], measures=(measure,), strong=strong, text=text)
    near = ", ".join(f"{title(o['name'])} ({metric.value(o['scores'][measure]['mean'])})" for o in level)
    text = f"{title(first['name'])} has {scored}, not clearly better than {near}"
    text += f"; clearly better than {beaten}." if beaten else "."
    return Finding(
        kind="none_best",
        cell=first["name"],
        others=tuple(other["name"] for other in level),
        measures=(measure,),
        strong=f"{word.capitalize()} {metric.label_in_text}: none is clearly {word}.",
        text=text,
    )


def _common_measures(cells: Sequence[Cell]) -> list[str]:
    """Return the judged measures that every cell has."""
    return [name for name in JUDGED if all(_is_scored(cell, name) for cell in cells)]


def _is_scored(cell: Cell, measure: str) -> bool:
    return (cell["scores"].get(measure) or {}).get("mean") is not None


def _best_first(cells: Sequence[Cell], measure: str) -> list[Cell]:
    better = metric_of(measure).better
    return sorted(cells, key=lambda cell: -better * cell["scores"][measure]["mean"])


def _changes(changes: Mapping[str, Interval], separator: str) -> str:
    return separator.join(
        f"{metric_of(name).label_in_text} {metric_of(name).change_with_bounds(change)}"
        for name, change in changes.items()
    )


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "; ".join(" and ".join(metric_of(name).label_in_text for name in pair) for pair in pairs)
