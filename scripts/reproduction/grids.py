"""Grids whose cells have names and settings of their own, and what of a recipe makes its method."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rlgkd.scripts._yaml import load_yaml
from rlgkd.scripts.comparison.grid import Cell, Grid
from rlgkd.scripts.config.reading import check
from rlgkd.scripts.config.recipes import RECIPES


def method_of(recipe: str, alike: Collection[str]) -> dict[str, Any]:
    """Return a recipe's settings, but for those that all cells of a grid have alike."""
    given = load_yaml((RECIPES / f"{recipe}.yaml").read_text())
    return {key: value for key, value in given.items() if key not in alike}


def held_out(tokens: int, prompts: int, *, times: int, validation_prompts: int) -> dict[str, int]:
    """Return the settings of a cell's evaluations.

    Args:
        tokens: Those of the cell.
        prompts: Test prompts of the evaluation at its end.
        times: How many evaluations there are while it trains.
        validation_prompts: Their prompts, or all of the test's number if those are fewer.
    """
    return {
        "eval_prompts": prompts,
        "eval_every": max(1, tokens // times),
        "eval_every_prompts": min(validation_prompts, prompts),
    }


def named_grid(
    common: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    *,
    key: str = "method",
    seeds: int,
    samples: int,
    baseline: int = 0,
) -> Grid:
    """Return the grid of some cells.

    Args:
        common: The settings that all cells have.
        settings: Those of each cell over them, by its name.
        key: What the cells differ in, as results call it.
        seeds: How many.
        samples: Texts of each prompt of the evaluation.
        baseline: Which cell others are measured against.

    Raises: SettingError.
    """
    cells = [Cell(name=name, values={key: name}, settings=check({**common, **own})) for name, own in settings.items()]
    return Grid(
        base=check({**common, "agent": "Distill"}),
        vary={key: [cell.name for cell in cells]},
        cells=cells,
        seeds=range(seeds),
        samples=samples,
        baselines=[cells[baseline]],
    )
