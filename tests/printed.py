"""The blocks that README and docs print, as text."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def examples(file: str, language: str = "python") -> list[str]:
    """All blocks of a file in that language, from the top."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
