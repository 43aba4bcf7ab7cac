"""The report of a comparison: one HTML file from `results.json` and `timing.json`, with no network.

Everything that a model generated is escaped, and the page runs no script but its own, as in the report of a run.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlgkd import checkpoint
from rlgkd.scripts.comparison.view import comparison_view
from rlgkd.scripts.report.html import template_environment


def write_report(out: Path) -> Path:
    """Write `report.html` into the folder of a comparison and return its path."""
    page = comparison_page(out)
    checkpoint.atomic_write(out / "report.html", page.encode("utf-8", errors="replace"))
    return out / "report.html"


def comparison_page(out: Path, **more: object) -> str:
    """Return the page of a comparison that has results; `more` is what its templates take besides."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    timing = json.loads((out / "timing.json").read_text(encoding="utf-8"))
    return template_environment().get_template("comparison.html").render(**comparison_view(results, timing), **more)
