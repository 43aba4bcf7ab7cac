"""A run's report: one HTML file that opens anywhere, without a network.

Reads `config.yaml`, `progress.csv`, `evaluations.csv` and `summary.json` of a run's folder; each may be missing,
damaged or have gaps, and the report then shows what there is. Whatever a model generated is treated as hostile: the
template escapes all text, and the page's content security policy runs no script but its own. The same input gives the
same bytes.

Left out on purpose: anything to be fetched (fonts, plotting libraries).
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError, shown
from rlgkd.scripts.report.formatting import compact
from rlgkd.scripts.report.run_files import RunFiles, read_run
from rlgkd.scripts.report.view import run_view


def write_report(run: Path) -> Path:
    """Write `report.html` into the folder of a run, from what the folder holds, and return its path.

    Raises: CheckpointError if the folder does not exist, or the page cannot be written.
    """
    run = Path(run)
    if not run.is_dir():
        raise CheckpointError("run", str(run), "name the folder that a training wrote")
    page = run_page(read_run(run))
    path = run / "report.html"
    # A reader may have the page open while it is written again. A model's text may hold a lone surrogate.
    checkpoint.atomic_write(path, page.encode("utf-8", errors="replace"))
    return path


def run_page(files: RunFiles, **more: object) -> str:
    """Return the page of a run; `more` is what its templates take besides, such as what makes it live."""
    return shown(template_environment().get_template("report.html").render(**run_view(files), **more))


def template_environment() -> Environment:
    """Return the environment of the templates: everything is escaped, and an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["compact"] = compact
    return environment


def _csp_hash(script: str) -> str:
    """Return the source expression by which a content security policy allows this very script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
