"""A task's page in docs/frontier and its figure: each method's quality, its differences, and its paper's claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlgkd import checkpoint
from rlgkd.scripts._figures import BLUE, GREEN, GREY, ORANGE, plain, save_png
from rlgkd.scripts.frontier.cells import CONTROL, DISTILLATION, EQ_5, OPD, RL, methods
from rlgkd.scripts.frontier.findings import COLUMNS, Results, best_alpha, differences, speeds, verdict
from rlgkd.scripts.reproduction.tables import score_table, table_head

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = ("reward", "truth", "coverage", "rouge2", "exact", "chrf", "steps", "self_bleu", "reverse_kl", "length")


def write_page(task: str, results: Results, docs: Path) -> Path:
    """Write a task's page, its figure, and the figure's numbers, all under the task's name; return the page's path."""
    docs.mkdir(parents=True, exist_ok=True)
    page = docs / f"{task.lower()}.md"
    picture = page.with_suffix(".png")
    draw(results, picture)
    lines = ["<!-- written by scripts/reproduce_frontier.py -->", "", f"# {task}", "", *_head(results)]
    lines += [f"![Quality of each method]({picture.name})", "", *_difference_table(results), ""]
    lines += [*_claim_table(results), "", *score_table(results, MEASURES)]
    scores = {cell["name"]: cell["scores"] for cell in results["cells"]}
    checkpoint.atomic_write(page.with_suffix(".json"), json.dumps(scores, indent=1) + "\n")
    checkpoint.atomic_write(page, "\n".join(lines) + "\n")
    return page


def draw(results: Results, picture: Path) -> None:
    """Draw each method's quality with its interval, and the two untrained models as lines."""
    from matplotlib.figure import Figure

    names = list(methods())
    figure = Figure(figsize=(5.6, 0.24 * len(names) + 0.9), layout="constrained")
    axes: Axes = figure.subplots()
    scores = {cell["name"]: cell["scores"][results["quality"]] for cell in results["cells"]}
    for line, name in enumerate(names):
        score = scores[name]
        errors = [[score["mean"] - score["low"]], [score["high"] - score["mean"]]]
        colour = {CONTROL: ORANGE, RL: GREEN, DISTILLATION: GREEN, OPD: GREEN}.get(name, BLUE)
        axes.errorbar(score["mean"], line, xerr=errors, color=colour, marker="o", ms=4, capsize=2, lw=1.2)
    for name, dash in (("start", ":"), ("teacher", "--")):
        mean = results["references"][name]["scores"][results["quality"]]["mean"]
        axes.axvline(mean, color=GREY, ls=dash, lw=1)
        axes.annotate(name, (mean, -0.7), ha="center", fontsize=7, color=GREY)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -1.2)
    plain(axes, f"{results['quality']}, which no training sees")
    save_png(figure, picture)


def _head(results: Results) -> list[str]:
    cell = results["cells"][0]
    return [
        f"{len(cell['runs'])} seeds, {results['tokens']:,} tokens each, {results['prompts']} test prompts with two "
        f"texts each; the measure that decides is {results['quality']}. Eq. 5 is at its best alpha on the validation "
        f"prompts: {best_alpha(results)}. One star: the 95% interval excludes zero; two: it does so corrected for the "
        "number of methods too.",
        "",
    ]


def _difference_table(results: Results) -> list[str]:
    """Return the lines of the differences, and of the tokens that each method needs."""
    by_method, faster = differences(results), speeds(results)
    columns = [f"less {column}" if column != EQ_5 else f"less {EQ_5} at its best" for column in COLUMNS]
    lines = table_head("method", [*columns, "fewer tokens, times"])
    for name, by_column in by_method.items():
        cells = [by_column[column].text if column in by_column else "" for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{faster[name]:.2f}' if faster[name] else 'never'} |")
    return lines


def _claim_table(results: Results) -> list[str]:
    lines = table_head("method", ["what its paper says", "supported here"])
    for name in methods():
        claim, found = verdict(results, name)
        if claim:
            lines.append(f"| {name} | {claim} | {found} |")
    return lines
