"""Trains recipes under the guards and prints a row for each: which fire (docs/guards.md).

    python tests/guards_on_recipes.py                       # every recipe with embedded models
    python tests/guards_on_recipes.py gkd rloo --most 10000

A recipe's own tokens, or `--most` of them: schedules and stages then take that many. Not a test: what a guard says of a
recipe is to be judged by a person.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

from rlgkd.agents.guards import GUARDS
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.config.recipes import recipe_names
from rlgkd.scripts.runs.train import start

NAMES = {re.sub(r"\\{.*?\\}", ".*", re.escape(guard.message)): guard.name for guard in GUARDS}
"""Guards by the pattern of their messages."""


def row(recipe: str, most: int, folder: Path) -> str:
    """Its name, tokens, share of its own tokens, seconds of a processor, and what guards said."""
    own = read(recipe).tokens
    tokens = min(own, most)
    started = time.process_time()
    start(read(recipe, [f"tokens={tokens}", "eval_prompts=2", "threads=1"]), folder, quiet=True)
    seconds = time.process_time() - started
    said = [
        next((name for pattern, name in NAMES.items() if re.fullmatch(pattern, message)), "another") + ": " + message
        for message in json.loads((folder / "summary.json").read_text())["warnings"]
    ]
    return f"| {recipe} | {tokens:,} | {tokens / own:.0%} | {seconds:.0f} | {'; '.join(said) or 'silent'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    embedded = [name for name in recipe_names() if "smollm2" not in name]
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=embedded)
    parser.add_argument("--most", type=int, default=10**9, metavar="TOKENS")
    parser.add_argument("--out", type=Path, help="keep the runs in this new folder")
    given = parser.parse_args()
    print("| recipe | tokens | of its own | seconds | guards |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        for recipe in given.recipes:
            print(row(recipe, given.most, (given.out or Path(temporary)) / recipe), flush=True)


if __name__ == "__main__":
    main()
