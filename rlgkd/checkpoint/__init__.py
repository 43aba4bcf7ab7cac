"""Checkpoints: written whole or not at all, and resumed to the bit.

A checkpoint is a folder, `step-N`, of safetensors and JSON; nothing pickled is written or read:

    model.safetensors, model.json            every tensor of the state dict once; the names tied to another's
    optimizer.safetensors, optimizer.json    the optimizer's tensors; the rest of its state
    random.json                              Python's, NumPy's (the legacy global), torch's CPU and CUDA generators
    state.json                               the caller's counters, positions in the data and settings
    manifest.json                            size and SHA-256 of each file above; written last

The folder is filled under a temporary name in the same parent, flushed to the disk, and renamed. A folder with a
checkpoint's name is therefore whole, whatever killed the process or filled the disk; `latest` verifies the checksums
all the same.

Not here: sharded models (FSDP), and the random states of processes other than the one that saves. One process at a
time may write into a parent folder. A leftover is recognised by the process id in its name, so a folder shared between
machines may not have two writers either.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer

from rlgkd.checkpoint.files import (
    atomic_write,
    dump_json,
    fitting,
    leftovers,
    publish,
    read_json,
    reason,
    remove_stale,
    restore_replaced,
    sync,
    temporary_name,
    write,
    writing,
)
from rlgkd.checkpoint.growing import GrowingFile
from rlgkd.checkpoint.state import JSON, checked_restore, file_contents
from rlgkd.errors import CheckpointError, SettingError, one_line
from rlgkd.file_kinds import check_file

__all__ = [
    "FILES",
    "FORMAT",
    "JSON",
    "MANIFEST",
    "GrowingFile",
    "atomic_write",
    "damages",
    "latest",
    "load",
    "prune",
    "read_state",
    "remove_stale",
    "save",
    "sync",
    "whole",
    "writing",
]

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
_FOREIGN = (ArithmeticError, AttributeError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError)
"""What files that are whole, and were not written by `save`, may lead to."""
_STEP = re.compile(r"step-(\d+)")


def save(
    folder: Path, *, model: nn.Module, optimizer: Optimizer, state: Mapping[str, JSON], writes: bool = True
) -> Path:
    """Write a checkpoint to `folder`, whole or not at all.

    An existing checkpoint is replaced, and kept until the new one is complete: a run resumed from an earlier step
    writes the later ones again. A folder that holds anything else is refused.

    Args:
        folder: The folder to write, `checkpoints/step-N` in a run; missing parents are created.
        model: The model, which must contain all parameters of the optimizer.
        optimizer: A torch optimizer, or accelerate's wrapper around one.
        state: JSON that the caller needs to resume. Sequences come back as lists.
        writes: Whether this process writes. Of several that share a model out (rlgkd.sharding) all have to call this,
            and one writes, what a process with all of the model would.

    Returns:
        `folder`.

    Raises:
        CheckpointError: The folder could not be written (a full disk, for example), or a value is neither tensor nor
            JSON.

    Examples:
        >>> import tempfile, torch
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as run:
        ...     folder = save(Path(run) / "step-7", model=model, optimizer=optimizer, state={"step": 7})
        ...     load(folder, model=model, optimizer=optimizer)
        {'step': 7}
    """
    folder = Path(folder)
    files = file_contents(model, optimizer, state, writes=writes)
    if not writes:
        return folder
    temporary = temporary_name(folder, "tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder.parent)
        if folder.exists() and not _is_checkpoint(folder):
            raise CheckpointError("checkpoint", str(folder), "it holds something else; save under another name")
        try:
            temporary.mkdir()
            for name, content in files.items():
                write(temporary / name, content)
            write(temporary / MANIFEST, dump_json({"format": FORMAT, "files": _checksums(temporary)}))
            sync(temporary)
            publish(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        advice = fitting(error, "free space, or save elsewhere; earlier checkpoints are whole")
        remedy = f"it was not saved ({reason(error)}): {advice}"
        raise CheckpointError("checkpoint", str(folder), remedy) from error
    return folder


def load(folder: Path, *, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restore model, optimizer and random states exactly, and return the caller's `state`.

    All checksums, names, shapes and dtypes are checked before anything changes. Devices may differ from the saved.

    Args:
        folder: A checkpoint.
        model: A model built as the saved one was: with the same names, shapes, dtypes and ties.
        optimizer: An optimizer of the same class over the same parameters in the same order; its hyperparameters are
            replaced.

    Raises:
        CheckpointError: A file is missing, damaged or foreign (the message names another whole checkpoint in the
            same parent, if there is one), or the checkpoint is of another model or optimizer.
    """
    folder = Path(folder)
    damage = _damage(folder)
    if damage is not None:
        file, problem = damage
        others = (other for other in _steps(folder.parent) if other.name != folder.name and not _damage(other))
        other = next(others, None)
        advice = "no whole checkpoint is next to it; start again"
        if other:
            advice = f"use {'a later' if _number(other) > _number(folder) else 'an earlier'} checkpoint: {other}"
        raise CheckpointError("checkpoint", str(file), f"it is {problem}; {advice}")
    try:
        restore = checked_restore(folder, model, optimizer)
        state: dict[str, Any] = read_json(folder / "state.json")
        restore()
    except CheckpointError:
        raise
    except _FOREIGN as error:
        remedy = f"its files are not those of a checkpoint ({one_line(repr(error), 200)}); use another one"
        raise CheckpointError("checkpoint", str(folder), remedy) from error
    return state


def latest(parent: Path) -> Path | None:
    """Return the whole `step-N` in `parent` with the highest number, skipping temporary and damaged ones, or None."""
    return next(whole(parent), None)


def whole(parent: Path) -> Iterator[Path]:
    """Yield the whole `step-N` in `parent`, highest number first, skipping temporary and damaged ones."""
    for path, match in leftovers(parent):
        if match["kind"] == "old":  # a process died between the two renames of `publish`
            restore_replaced(path, match["name"])
    yield from (folder for folder in _steps(parent) if not _damage(folder))


def damages(parent: Path) -> list[str]:
    """Return what is wrong with each `step-N` in `parent` that is not whole, highest number first.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     (Path(run) / "step-7").mkdir()
        ...     damages(Path(run))
        ['step-7/manifest.json is missing']
    """
    found = ((folder, _damage(folder)) for folder in _steps(parent))
    return [f"{damage[0].relative_to(parent)} is {damage[1]}" for folder, damage in found if damage]


def read_state(folder: Path) -> Any:
    """Return the caller's `state` of a whole checkpoint, and restore nothing.

    Raises: CheckpointError if it is no JSON, which no damage of a whole checkpoint explains.
    """
    try:
        return read_json(Path(folder) / "state.json")
    except _FOREIGN as error:
        remedy = f"its state.json is not that of a checkpoint ({one_line(error, 200)}); use another one"
        raise CheckpointError("checkpoint", str(folder), remedy) from error


def prune(parent: Path, keep: int = 2) -> list[Path]:
    """Delete checkpoints older than the newest `keep` whole ones, and leftovers of dead processes.

    The kept ones are verified first, so a damaged checkpoint never causes the last whole one to be deleted.

    Returns:
        The deleted checkpoints, newest first.
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
            renamed = folder.rename(temporary_name(folder, "tmp"))  # half a checkpoint never has a whole one's name
            removed.append(folder)
            shutil.rmtree(renamed)
    except OSError as error:
        remedy = f"old checkpoints could not be deleted ({reason(error)}); delete them by hand"
        raise CheckpointError("checkpoints", str(parent), remedy) from error
    return removed


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds nothing but a checkpoint's files, whole or not."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {*FILES, MANIFEST}


def _number(folder: Path) -> float:
    """Return N of `step-N`; a folder with another name counts as later than all."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else math.inf


def _steps(parent: Path) -> list[Path]:
    """Return the folders `step-N` in `parent`, highest number first."""
    folders = Path(parent).iterdir() if Path(parent).is_dir() else ()
    numbered = [folder for folder in folders if _STEP.fullmatch(folder.name) and folder.is_dir()]
    return sorted(numbered, key=_number, reverse=True)


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size in bytes and SHA-256 of each file."""
    sums = {}
    for name in FILES:
        with (folder / name).open("rb") as file:
            sums[name] = {
                "size": os.fstat(file.fileno()).st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    return sums


def _damage(folder: Path) -> tuple[Path, str] | None:
    """Return the first file of a checkpoint that is not as written, and the problem; None if all are whole."""
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
            check_file(file)
            if (size := file.stat().st_size) < expected["size"]:
                return file, f"truncated ({size} of {expected['size']} bytes)"
            with file.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != expected["sha256"]:
                    return file, "damaged (its checksum differs from the manifest's)"
    except FileNotFoundError:
        return file, "missing"
    except OSError as error:
        return file, f"unreadable ({reason(error)})"
    except (ValueError, KeyError, TypeError, RecursionError):  # JSON that is malformed, or not a manifest
        return folder / MANIFEST, "damaged (not the manifest of a checkpoint)"
    return None
