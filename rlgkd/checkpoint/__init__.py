"""Checkpoints: written whole or not at all, and resumed to the bit.

A checkpoint is a folder, `step-N`, of safetensors and JSON; nothing pickled is written or read:

    model.safetensors, model.json            every tensor of the state dict once; the names that are tied to another's
    optimizer.safetensors, optimizer.json    its tensors; everything else it holds
    random.json                              Python's, NumPy's (the legacy global), torch's CPU and CUDA generators
    state.json                               the caller's counters, cursors and settings
    manifest.json                            size and SHA-256 of each file above; written last

It is filled under a temporary name beside its place, flushed to the disk, and renamed. So a folder that bears its name
is whole, whatever killed the process or filled the disk; `latest` checks the sums all the same.

Left out: sharded models (FSDP), and the random states of processes other than the one that saves. One process at a
time writes into a parent folder. A leftover is told by its process id, so a folder shared between machines may not
have two writers either.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer

from rlgkd.checkpoint.files import (
    atomic_write,
    beside,
    dump_json,
    leftovers,
    publish,
    put_back,
    read_json,
    reason,
    remove_stale,
    sync,
    write,
)
from rlgkd.checkpoint.state import JSON, contents, fitting
from rlgkd.errors import CheckpointError, SettingError

__all__ = ["FILES", "FORMAT", "JSON", "MANIFEST", "atomic_write", "latest", "load", "prune", "remove_stale", "save"]

FORMAT = "rlgkd-checkpoint-1"
MANIFEST = "manifest.json"
FILES = (
    "model.safetensors",
    "model.json",
    "optimizer.safetensors",
    "optimizer.json",
    "random.json",
    "state.json",
)
_STEP = re.compile(r"step-(\d+)")


def save(folder: Path, *, model: nn.Module, optimizer: Optimizer, state: Mapping[str, JSON]) -> Path:
    """Write a checkpoint to `folder`, whole or not at all.

    A checkpoint that is already there is replaced and stays until the new one is complete: a run resumed from an
    earlier step comes past the later ones again. A folder that holds anything else is refused.

    Args:
        folder: Where to, `checkpoints/step-N` in a run; missing parents are made.
        model: All parameters that the optimizer holds must be among its own.
        optimizer: A torch optimizer, or accelerate's wrapper around one.
        state: What the caller needs to go on. Sequences come back as lists.

    Returns:
        `folder`.

    Raises:
        CheckpointError: It could not be written (the disk is full, say), or something in it is no tensor and no JSON.

    Example:
        >>> import tempfile, torch
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as run:
        ...     folder = save(Path(run) / "step-7", model=model, optimizer=optimizer, state={"step": 7})
        ...     load(folder, model=model, optimizer=optimizer)
        {'step': 7}
    """
    folder = Path(folder)
    written = contents(model, optimizer, state)
    temporary = beside(folder, "tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder.parent)
        if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= {*FILES, MANIFEST}):
            raise CheckpointError("checkpoint", str(folder), "it holds something else; save under another name")
        try:
            temporary.mkdir()
            for name, content in written.items():
                write(temporary / name, content)
            write(temporary / MANIFEST, dump_json({"format": FORMAT, "files": _sums(temporary)}))
            sync(temporary)
            publish(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        remedy = f"it was not saved ({reason(error)}): free space, or save elsewhere; earlier checkpoints are whole"
        raise CheckpointError("checkpoint", str(folder), remedy) from error
    return folder


def load(folder: Path, *, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restore model, optimizer and random states exactly, and return the caller's `state`.

    All sums, names, shapes and dtypes are checked before anything is changed. Devices may differ from those saved.

    Args:
        folder: A checkpoint.
        model: Built as the saved one was: the same names, shapes, dtypes and ties.
        optimizer: Of the same class, over the same parameters in the same order; its hyperparameters are replaced.

    Raises:
        CheckpointError: A file is missing, damaged or foreign (names a whole checkpoint beside it, if there is one),
            or the checkpoint is of another model or optimizer.
    """
    folder = Path(folder)
    if damage := _damage(folder):
        file, what = damage
        others = (other for other in _steps(folder.parent) if other.name != folder.name and not _damage(other))
        other = next(others, None)
        advice = "no whole checkpoint lies beside it; start anew"
        if other:
            advice = f"use {'a later' if _number(other) > _number(folder) else 'an earlier'} checkpoint: {other}"
        raise CheckpointError("checkpoint", str(file), f"it is {what}; {advice}")
    restore = fitting(folder, model, optimizer)
    state: dict[str, Any] = read_json(folder / "state.json")
    restore()
    return state


def latest(parent: Path) -> Path | None:
    """The newest whole `step-N` in `parent` by number, or None; temporary and damaged ones are passed over."""
    for path, match in leftovers(parent):
        if match["kind"] == "old":  # a process died between the two renames of `publish`
            put_back(path, match["name"])
    return next((folder for folder in _steps(parent) if not _damage(folder)), None)


def prune(parent: Path, keep: int = 2) -> list[Path]:
    """Delete what is older than the newest `keep` whole checkpoints, and leftovers of dead processes.

    What is kept is read and verified first, so the last whole one is never deleted on the strength of a damaged one.

    Returns:
        The checkpoints that were deleted, newest first.
    """
    if keep < 1:
        raise SettingError("keep", keep, "keep at least 1 checkpoint")
    removed = []
    try:
        remove_stale(parent)
        for folder in _steps(parent):
            if keep > 0:
                keep -= not _damage(folder)
                continue
            doomed = folder.rename(beside(folder, "tmp"))  # never half a checkpoint under a whole one's name
            removed.append(folder)
            shutil.rmtree(doomed)
    except OSError as error:
        remedy = f"old checkpoints could not be deleted ({reason(error)}); delete them by hand"
        raise CheckpointError("checkpoints", str(parent), remedy) from error
    return removed


def _number(folder: Path) -> float:
    """N of `step-N`; a folder by another name counts as later than all."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else math.inf


def _steps(parent: Path) -> list[Path]:
    """The folders `step-N` in `parent`, highest number first."""
    folders = Path(parent).iterdir() if Path(parent).is_dir() else ()
    numbered = [folder for folder in folders if _STEP.fullmatch(folder.name) and folder.is_dir()]
    return sorted(numbered, key=_number, reverse=True)


def _sums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of each file."""
    sums = {}
    for name in FILES:
        with (folder / name).open("rb") as file:
            sums[name] = {
                "size": os.fstat(file.fileno()).st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    return sums


def _damage(folder: Path) -> tuple[Path, str] | None:
    """The first file of a checkpoint that is not as it was written, and what is wrong with it; None if it is whole."""
    file = folder / MANIFEST
    try:
        if not folder.is_dir():
            return folder, "missing"
        manifest = read_json(file)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            return file, f"foreign (no {FORMAT!r} in it)"
        for name in FILES:
            file = folder / name
            expected = manifest["files"][name]
            if (size := file.stat().st_size) < expected["size"]:
                return file, f"truncated ({size} of {expected['size']} bytes)"
            with file.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != expected["sha256"]:
                    return file, "damaged (its checksum differs from the manifest's)"
    except FileNotFoundError:
        return file, "missing"
    except OSError as error:
        return file, f"unreadable ({reason(error)})"
    except (ValueError, KeyError, TypeError):  # JSON that is broken, or that says something else
        return folder / MANIFEST, "damaged (not the manifest of a checkpoint)"
    return None
