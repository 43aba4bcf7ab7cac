"""A synthetic comparison for the tests of its findings and its page: a few cells, two seeds, eight prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlgkd.scripts.comparison.cell_statistics import against, scores
from rlgkd.scripts.comparison.html import write_report
from rlgkd.scripts.comparison.results import plain_intervals

QUALITIES = ("reward", "truth", "coverage", "rouge2")
PROMPTS = 8


def measured(rng: np.random.Generator, seed: int | None, better: float, updates: int = 3) -> dict[str, Any]:
    """Return a run; with no seed, an untrained model."""
    measures = {name: rng.beta(8 + better, 2, PROMPTS).tolist() for name in QUALITIES}
    measures["reverse_kl"] = (rng.random(PROMPTS) ** 6).tolist()
    measures["truth@2"] = (rng.random(PROMPTS) < 0.95).astype(float).tolist()
    curves = {name: rng.random(updates).tolist() for name in (*QUALITIES, "divergence", "length", "entropy")}
    tokens = [400 * (update + 1) + int(rng.integers(9)) for update in range(updates)]
    return {
        "seed": seed,
        "tokens": tokens[-1],
        "updates": updates,
        "measures": measures,
        "texts": [{"prompt": "p", "reference": "r", "text": "t", "stop": "end", "measures": {"reward": 0.5}}],
        "by_position": {"reverse_kl": [0.1, 0.2]},
        "training": {"tokens": tokens, **curves},
    }


def results(alphas: tuple[float, ...] = (0, 1), updates: int = 3, tokens: int = 300) -> dict[str, Any]:
    """Return what results.json would hold."""
    rng = np.random.default_rng(0)
    cells: list[dict[str, Any]] = [
        {
            "name": f"alpha={alpha}",
            "values": {"alpha": alpha},
            "runs": [measured(rng, seed, 90 * alpha, updates) for seed in range(2)],
        }
        for alpha in alphas
    ]
    untrained = {name: measured(rng, None, 0) for name in ("teacher", "start")}
    for cell in cells:
        cell["scores"] = plain_intervals(scores(cell))
        cell["against"] = {
            other["name"]: {name: plain_intervals(found) for name, found in against(cell, other).items()}
            for other in cells
            if other is not cell
        }
    return {
        "name": "small",
        "env": "rlgkd/GroundedSummary-v0",
        "teacher": "t",
        "prompts": ["0"],
        "missing": [],
        "evaluation": {"split": "test", "prompts": PROMPTS, "samples": 2, "seed": 0},
        "vary": {"alpha": list(alphas)},
        "seeds": [0, 1],
        "baselines": [cells[0]["name"], cells[-1]["name"]],
        "cells": cells,
        "settings": {
            "student": "s",
            "agent": "GRPO",
            "tokens": tokens,
            "divergence": "reverse_kl",
            "divergence_reduction": "sequence_mean",
        },
        "references": {
            name: {**run, "scores": plain_intervals(scores({"runs": [run]}))} for name, run in untrained.items()
        },
    }


def write_page(folder: Path, found: dict[str, Any]) -> Path:
    """Write the files of a comparison and its report; return the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "timing.json").write_text("{}")
    return write_report(folder)
