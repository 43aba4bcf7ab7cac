"""The site builds without a warning, and nothing on its pages comes over a network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from on_request import minutes

from rlgkd.scripts.config.recipes import recipe_names

ROOT = Path(__file__).parent.parent
LOADED = re.compile(r'<(?:script|img)[^>]* src="([^"]+)"|<link rel="stylesheet" href="([^"]+)"')


@minutes
@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="pip install 'rlgkd[docs]'")
def test_the_site_builds_without_a_warning_and_reads_without_a_network(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for name in recipe_names():
        assert f"rlgkd train {name}" in (tmp_path / "recipes" / f"{name}.html").read_text()
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) > 60
    for page in pages:
        loaded = LOADED.findall(page.read_text())
        assert not [address for pair in loaded for address in pair if "://" in address]
