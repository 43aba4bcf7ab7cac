"""What has been measured so far, as entries of a page (rlgkd.scripts.reproduction.tables)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.comparison.run_cell import MEASURED

More = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""What `measured.json` holds -> further measures of each prompt."""


def measures_in(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's `measured.json` holds; None where there is none."""
    if not (folder / MEASURED).is_file():
        return None
    found: dict[str, Any] = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    return found


def entry(name: str, folders: Mapping[int | None, Path], more: More = lambda found: {}) -> dict[str, Any]:
    """Return an entry with a run for each seed that has been measured; the seed of an untrained model is None."""
    there = {seed: found for seed, folder in folders.items() if (found := measures_in(folder)) is not None}
    runs = [
        {"seed": seed, "measures": {**found["measures"], **more(found)}, "texts": found["texts"]}
        for seed, found in there.items()
    ]
    return {"name": name, "runs": runs, "missing": [seed for seed in folders if seed not in there]}


def cell_entries(grid: Grid, out: Path, more: More = lambda found: {}) -> list[dict[str, Any]]:
    """Return an entry for each cell of a comparison."""
    return [entry(cell.name, {seed: out / cell.run_folder(seed) for seed in grid.seeds}, more) for cell in grid.cells]


def missing_of(entries: list[dict[str, Any]]) -> list[str]:
    """Return what has not been measured yet, in words."""
    return [one["name"] if seed is None else f"{one['name']} seed {seed}" for one in entries for seed in one["missing"]]
