"""The page of a comparison, from results made up here: what it says of few tokens, few seeds and two cells."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlgkd.scripts.comparison.compare import against, scores
from rlgkd.scripts.comparison.html import view, write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUALITIES = ("reward", "truth", "coverage", "rouge2")


def measured(rng: np.random.Generator, seed: int | None, better: float, updates: int = 3) -> dict[str, Any]:
    """A run, or with no seed what was not trained."""
    measures = {name: rng.beta(8 + better, 2, 8).tolist() for name in QUALITIES}
    measures |= {"reverse_kl": (rng.random(8) ** 6).tolist(), "truth@2": (rng.random(8) < 0.95).astype(float).tolist()}
    texts = [{"prompt": "p", "reference": "r", "text": "t", "stop": "end", "measures": {"reward": 0.5}}]
    curves = {name: rng.random(updates).tolist() for name in (*QUALITIES, "divergence", "length", "entropy")}
    tokens = [400 * (update + 1) + rng.integers(9) for update in range(updates)]
    return {
        "seed": seed, "tokens": int(tokens[-1]), "updates": updates, "measures": measures, "texts": texts,
        "by_position": {"reverse_kl": [0.1, 0.2]}, "training": {"tokens": tokens, **curves},
    }  # fmt: skip


def results(alphas: tuple[float, ...] = (0, 1), updates: int = 3, tokens: int = 300) -> dict[str, Any]:
    """A comparison of two seeds and eight prompts."""
    rng = np.random.default_rng(0)
    cells = [
        {"name": f"alpha={a}", "values": {"alpha": a}, "runs": [measured(rng, s, 90 * a, updates) for s in range(2)]}
        for a in alphas
    ]
    references = {name: measured(rng, None, 0) for name in ("teacher", "start")}
    for cell in cells:
        cell["scores"] = scores(cell)
        cell["against"] = {other["name"]: against(cell, other) for other in cells if other is not cell}
    return {
        "name": "small", "env": "rlgkd/GroundedSummary-v0", "teacher": "t", "prompts": ["0"], "missing": [],
        "evaluation": {"split": "test", "prompts": 8, "samples": 2, "seed": 0}, "vary": {"alpha": list(alphas)},
        "seeds": [0, 1], "baselines": [cells[0]["name"], cells[-1]["name"]], "cells": cells,
        "settings": {
            "student": "s", "agent": "GRPO", "tokens": tokens, "divergence": "reverse_kl",
            "divergence_reduction": "sequence_mean",
        },
        "references": {n: {**run, "scores": scores({"runs": [run]})} for n, run in references.items()},
    }  # fmt: skip


def page(folder: Path, found: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found, default=int))
    (folder / "timing.json").write_text("{}")
    return write_report(folder)


def text_of(file: Path) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html.unescape(file.read_text())).split())


def test_tokens_that_were_trained_are_told_beside_those_asked_for(tmp_path: Path) -> None:
    found = results()
    trained = sorted(run["tokens"] for cell in found["cells"] for run in cell["runs"])
    told = f"by GRPO for {trained[0]:,} to {trained[-1]:,} tokens (300 asked for; the last update is made whole)"
    assert told in text_of(page(tmp_path, found))
    for cell in found["cells"]:
        for run in cell["runs"]:
            run["tokens"] = 300
    assert "by GRPO for 300 tokens, with" in text_of(page(tmp_path, found))


def test_no_interval_of_two_seeds_and_eight_prompts_leaves_what_is_possible() -> None:
    cells = results((0, 0.5, 1))["cells"]
    ends = [entry[end] for cell in cells for name, entry in cell["scores"].items() for end in ("low", "high")]
    assert min(ends) == 0.0 and max(ends) == 1.0  # both ends were reached, and would have been left
    changes = [told["truth@2"]["change"] for cell in cells for told in cell["against"].values()]
    assert all(-1 <= change["low"] <= change["mean"] <= change["high"] <= 1 for change in changes)
    seeds = [{"seed": s, "measures": {"truth@2": [float(s)] * 8}} for s in (0, 1)]
    none = [{"seed": s, "measures": {"truth@2": [0.0] * 8}} for s in (0, 1)]
    assert against({"runs": seeds}, {"runs": none})["truth@2"]["change"] == {"mean": 0.5, "low": -1.0, "high": 1.0}


def test_two_cells_have_one_table_of_changes_and_three_have_two() -> None:
    assert [base["name"] for base in view(results(), {})["against"]] == ["\N{GREEK SMALL LETTER ALPHA} = 0"]
    assert len(view(results((0, 0.5, 1)), {})["against"]) == 2


def test_only_a_cell_that_is_clearly_best_is_marked() -> None:
    found = results()
    table = {row["metric"].key: [s["best"] for s in row["scores"]] for row in view(found, {})["quality"]["rows"]}
    assert table["reverse_kl"] == [False] * 4, "start, two cells and the teacher"
    for name in QUALITIES:
        for number, cell in enumerate(found["cells"]):
            for run in cell["runs"]:
                run["measures"][name] = [0.2 + 0.5 * number + 0.01 * n for n in range(8)]
    table = {row["metric"].key: [s["best"] for s in row["scores"]] for row in view(found, {})["quality"]["rows"]}
    assert table["truth"] == [False, False, True, False]


def test_one_update_draws_no_curves_and_says_why(tmp_path: Path) -> None:
    plots = view(results(updates=1), {"alpha=0": {"0": [1.0], "1": [1.1]}})["plots"]
    assert not any(plots[name] for name in ("curves", "timed", "gap", "paths"))
    assert plots["frontier"] and plots["positions"] and plots["passes"]
    assert "Curves are left out: they need two updates" in text_of(page(tmp_path / "one", results(updates=1)))
    assert "Curves are left out" not in text_of(page(tmp_path / "three", results()))


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")
@pytest.mark.parametrize(("width", "alphas"), [(400, (0, 0.25, 0.5, 1)), (1100, (0, 1))])
def test_a_table_that_is_wider_than_the_page_scrolls_by_itself_and_says_so(
    width: int, alphas: tuple[float, ...], tmp_path: Path
) -> None:
    written = page(tmp_path / "out", results(alphas)).read_text()
    frame = tmp_path / "frame.html"  # a window is at least 500 px wide; a frame is as narrow as it is told
    frame.write_text(
        f'<!doctype html><iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(written)}">'
        "</iframe><script>addEventListener('load', () => setTimeout(() => {"
        "const seen = document.querySelector('iframe').contentDocument, all = [...seen.querySelectorAll('.scroll')];"
        "document.title = [seen.documentElement.scrollWidth > seen.documentElement.clientWidth,"
        "all.filter(box => box.scrollWidth > box.clientWidth).length,"
        "all.filter(box => !box.previousElementSibling.hidden).length].join(' ') }, 500))</script>",
        encoding="utf-8",
    )
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900", "--virtual-time-budget=3000",
            "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, check=True, timeout=250, encoding="utf-8", errors="replace",
    )  # fmt: skip
    tables = 4 if width == 400 else 0  # scores, changes from either end, diversity
    assert f"<title>false {tables} {tables}</title>" in done.stdout
