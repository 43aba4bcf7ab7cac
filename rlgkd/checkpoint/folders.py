"""The folders of checkpoints: what each file in one is, which are whole, and what is wrong with the others."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlgkd.checkpoint.files import leftovers, read_json, reason, restore_replaced
from rlgkd.checkpoint.state import MODEL, OPTIMIZER
from rlgkd.errors import CheckpointError
from rlgkd.file_kinds import check_file

FORMAT = "rlgkd-checkpoint-1"
SHARDED_FORMAT = "rlgkd-sharded-checkpoint-1"
MANIFEST = "manifest.json"
TENSORS = {MODEL: "model.safetensors", OPTIMIZER: "optimizer.safetensors"}
"""Files of whole tensors by kind."""
TEXTS = ("model.json", "optimizer.json", "random.json", "state.json")
FILES = (*TENSORS.values(), *TEXTS)
SHARDS = "shards"
"""Folder of tensors in parts."""
_STEP = re.compile(r"step-(\d+)")


def latest(parent: Path) -> Path | None:
    """Return the whole `step-N` in `parent` with the highest number, skipping temporary and damaged ones, or None."""
    return next(whole(parent), None)


def whole(parent: Path) -> Iterator[Path]:
    """Yield the whole `step-N` in `parent`, highest number first, skipping temporary and damaged ones."""
    for path, match in leftovers(parent):
        if match["kind"] == "old":  # a process died between the two renames of `publish`
            restore_replaced(path, match["name"])
    yield from (folder for folder in steps(parent) if not find_damage(folder))


def damages(parent: Path) -> list[str]:
    """Return what is wrong with each `step-N` in `parent` that is not whole, highest number first.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     (Path(run) / "step-7").mkdir()
        ...     damages(Path(run))
        ['step-7/manifest.json is missing']
    """
    found = ((folder, find_damage(folder)) for folder in steps(parent))
    return [f"{damage[0].relative_to(parent)} is {damage[1]}" for folder, damage in found if damage]


def check_whole(folder: Path) -> None:
    """Raise CheckpointError, which names another one that is whole, if a checkpoint is not."""
    damage = find_damage(folder)
    if damage is not None:
        file, problem = damage
        others = (other for other in steps(folder.parent) if other.name != folder.name and not find_damage(other))
        other = next(others, None)
        advice = "no whole checkpoint is next to it; start again"
        if other:
            advice = f"use {'a later' if _number(other) > _number(folder) else 'an earlier'} checkpoint: {other}"
        raise CheckpointError("checkpoint", str(file), f"it is {problem}; {advice}")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds nothing but a checkpoint's files, whole or not; shards alone may be anybody's."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {SHARDS}
    return names <= {*FILES, SHARDS, MANIFEST} and names != {SHARDS}


def _number(folder: Path) -> float:
    """Return N of `step-N`; a folder with another name counts as later than all."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else math.inf


def steps(parent: Path) -> list[Path]:
    """Return the folders `step-N` in `parent`, highest number first."""
    folders = Path(parent).iterdir() if Path(parent).is_dir() else ()
    numbered = [folder for folder in folders if _STEP.fullmatch(folder.name) and folder.is_dir()]
    return sorted(numbered, key=_number, reverse=True)


def checksum(file: Path) -> dict[str, Any]:
    """Return size in bytes and SHA-256 of a file."""
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        return {"size": os.fstat(content.fileno()).st_size, "sha256": sha256}


def _file_names(folder: Path, manifest: Any) -> Sequence[str]:
    """Return the names of a checkpoint's files, which its manifest has to have; none if it is no checkpoint's."""
    kind = manifest.get("format") if isinstance(manifest, dict) else None
    if kind != SHARDED_FORMAT:
        return FILES if kind == FORMAT else ()
    shards = {name for name in manifest["files"] if name not in TEXTS}
    there = folder / SHARDS
    # One that the manifest does not have would be read, too.
    shards |= {f"{SHARDS}/{path.name}" for path in there.iterdir()} if there.is_dir() else set()
    return (*sorted(shards), *TEXTS)


def find_damage(folder: Path) -> tuple[Path, str] | None:
    """Return the first file of a checkpoint that is not as written, and the problem; None if all are whole."""
    file = folder / MANIFEST
    try:
        if not folder.is_dir():
            return folder, "missing"
        manifest = read_json(file)
        names = _file_names(folder, manifest)
        if not names:
            return file, f"foreign (no {FORMAT!r} in it)"
        for name in names:
            file = folder / name
            expected = manifest["files"][name]
            check_file(file)
            if (size := file.stat().st_size) < expected["size"]:
                return file, f"truncated ({size} of {expected['size']} bytes)"
            if checksum(file)["sha256"] != expected["sha256"]:
                return file, "damaged (its checksum differs from the manifest's)"
    except FileNotFoundError:
        return file, "missing"
    except OSError as error:
        return file, f"unreadable ({reason(error)})"
    except (ValueError, KeyError, TypeError, RecursionError):  # JSON that is malformed, or not a manifest
        return folder / MANIFEST, "damaged (not the manifest of a checkpoint)"
    return None
