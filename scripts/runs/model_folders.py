"""The models that a run leaves: `model/`, the last one, and `best/`, the best by held-out evaluations.

Each is a Hugging Face folder, written whole or not at all. A better model waits under another name for the checkpoint
that knows of it, so that `best/` is that of the newest checkpoint whenever the run is killed; `settle` makes it so.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from rlgkd import checkpoint
from rlgkd.agents.agent import TextAgent
from rlgkd.scripts.runs.folder import BEST
from rlgkd.scripts.runs.run_state import Best

ABOUT = "best.json"
"""In a best model's folder: its value, updates and tokens."""


def save_model(agent: TextAgent, folder: Path, best: Best | None = None) -> None:
    """Write the model's folder; with `best` it says by what it was chosen.

    Raises: CheckpointError if it cannot be written; what there was is kept.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with checkpoint.writing(folder, "free space, then --resume"):
        try:
            agent.save(temporary)
            if best is not None:
                (temporary / ABOUT).write_text(json.dumps(asdict(best)) + "\n")
            _replace(folder, temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def save_better(agent: TextAgent, out: Path, best: Best) -> None:
    """Write a model that is to be `best/` once a checkpoint knows of it; see `publish`."""
    save_model(agent, _waiting(out), best)


def publish(out: Path) -> None:
    """Make a model that waits the best one: the newest checkpoint knows of it."""
    if _waiting(out).exists():
        with checkpoint.writing(out / BEST, "free space, then --resume"):
            _replace(out / BEST, _waiting(out))


def settle(out: Path, best: Best | None) -> str | None:
    """Make `best/` that of the checkpoint from which a run goes on, with this best; says so where it cannot be."""
    if _waiting(out).exists():
        if best is not None and _about(_waiting(out)) == asdict(best):
            publish(out)
        else:
            shutil.rmtree(_waiting(out))
    if best is None or _about(out / BEST) == asdict(best):
        return None
    return f"{BEST} is not the model of update {best.updates} any more; the next better one replaces it"


def _replace(folder: Path, temporary: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _waiting(out: Path) -> Path:
    return out / f".{BEST}.next"


def _about(folder: Path) -> object:
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
