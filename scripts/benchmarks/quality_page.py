"""The files of `rlgkd benchmark quality` in its folder: results.json, results.md, and the curves over seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd.checkpoint import atomic_write
from rlgkd.scripts._figures import COLOURS, plain, save_png
from rlgkd.scripts._machine import machine

LABELS = {"reverse_kl": "reverse KL, nats/token", "reward": "ROUGE-L"}
HOW = {"same_recipe": "the same recipe", "each_at_its_best": "each at its best"}
DASHES = {"same_recipe": "-", "each_at_its_best": "--"}

Curves = Mapping[str, Mapping[str, Sequence[Sequence[Mapping[str, float]]]]]
"""How it was compared -> side -> a curve for each seed."""


def write_files(
    settings: Mapping[str, Any], compared: Mapping[str, Any], curves: Mapping[str, Curves], out: Path
) -> Path:
    """Write them; return the page's path.

    Args:
        settings: The benchmark's.
        compared: Method -> what was found.
        curves: Method -> its curves.
        out: The folder.
    """
    lines = ["<!-- written by rlgkd benchmark quality -->", "", "# Time to quality", "", f"{machine()}.", ""]
    lines += [", ".join(f"{name} {value}" for name, value in settings.items() if name != "out") + ".", ""]
    for method, found in compared.items():
        picture = out / f"{method}.png"
        _draw(curves[method], picture)
        lines += [f"## {method}", "", *_lines(found), f"![Held-out measures over seconds]({picture.name})", ""]
    found_all = {"machine": machine(), "settings": dict(settings), "compared": dict(compared)}
    atomic_write(out / "results.json", json.dumps(found_all, indent=1) + "\n")
    atomic_write(out / "results.md", "\n".join(lines).rstrip() + "\n")
    return out / "results.md"


def _lines(found: Mapping[str, Any]) -> list[str]:
    if "peer" not in found:
        return []
    sides = list(found["best"])
    best = "; ".join(f"{side} learning rate {one['rate']:g}, {one['precision']}" for side, one in found["best"].items())
    lines = [
        f"Peer: {found['peer']}. A step takes it {found['step_times_as_long']} times as long by the same recipe.",
        "",
    ]
    lines += [f"Best of the grid, by one seed: {best}.", ""]
    lines += [f"| compared | measure | level | {' | '.join(f'seconds, {side}' for side in sides)} | times as long |"]
    lines += ["| --- | --- | --- |" + " --- |" * (len(sides) + 1)]
    for measure, label in LABELS.items():
        for how, name in HOW.items():
            pairs = found[measure][how]["pairs"]
            levels = ", ".join(f"{pair['level']:.3f}" for pair in pairs)
            seconds = [", ".join(_seconds(pair["seconds"][number]) for pair in pairs) for number in range(len(sides))]
            ratios = ", ".join("-" if pair["times_as_long"] is None else str(pair["times_as_long"]) for pair in pairs)
            median = found[measure][how]["times_as_long"]
            lines.append(f"| {name} | {label} | {levels} | {' | '.join(seconds)} | {median or '-'} ({ratios}) |")
    return [*lines, ""]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _draw(curves: Curves, picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    for axes, (measure, label) in zip(figure.subplots(1, len(LABELS)), LABELS.items(), strict=True):
        for how, by_side in curves.items():
            for number, (side, seeds) in enumerate(by_side.items()):
                for seed, curve in enumerate(seeds):
                    seconds, values = ([point[name] for point in curve] for name in ("seconds", measure))
                    name = f"{side}, {HOW[how]}" if seed == 0 else None
                    axes.plot(seconds, values, color=COLOURS[number], ls=DASHES[how], lw=1.2, label=name)
        plain(axes, "seconds of training", label)
    figure.axes[0].legend(fontsize=7, frameon=False)
    save_png(figure, picture)
