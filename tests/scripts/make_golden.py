"""Remake golden.json, the first updates of every recipe, with a header that says how and where it was made.

    python tests/scripts/make_golden.py

Do this only for a change that is meant to change the numbers, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch
import transformers

import rlgkd


def main() -> None:
    """Train each recipe for a few updates and write golden.json."""
    sys.path.append(str(Path(__file__).parents[1]))  # where test_recipes finds what it shares with other tests
    import test_recipes  # next to this file, so only the script finds it: pytest imports this module too

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: test_recipes.first_updates(name, Path(folder) / name) for name in test_recipes.EMBEDDED}
    header = {
        "command": "python tests/scripts/make_golden.py",
        "rlgkd": rlgkd.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": 0,
        "settings": " ".join(test_recipes.SMALL),
        "machine": f"{processor()}, 1 thread",
        "date": datetime.date.today().isoformat(),
    }
    test_recipes.GOLDEN.write_text(json.dumps({"header": header, "curves": curves}, indent=1) + "\n")


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
