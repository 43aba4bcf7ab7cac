"""Checkpoints: written whole or not at all, and resumed to the bit.

A checkpoint is a folder, `step-N`, of safetensors and JSON; nothing pickled is written or read:

    model.safetensors, model.json            every tensor of the state dict once; the names tied to another's
    optimizer.safetensors, optimizer.json    the optimizer's tensors; the rest of its state
    random.json                              Python's, NumPy's (the legacy global), torch's CPU and CUDA generators
    state.json                               the caller's counters, positions in the data and settings
    manifest.json                            size and SHA-256 of each file above; written last

A sharded checkpoint has a folder `shards` in the place of both tensor files: what each process has of a model that they
share (rlgkd.sharding), written by itself, where one host's memory could not hold it. Either kind is loaded by any
number of processes, with shards or without; `convert` makes one of the other.

The folder is filled under a temporary name in the same parent, flushed to the disk, and renamed. A folder with a
checkpoint's name is therefore whole, whatever killed the process or filled the disk; `latest` verifies the checksums
all the same.

Not here: the random states of processes other than the one that saves. One job at a time may write into a parent
folder. A leftover is recognised by the process id in its name, so a folder shared between machines may not have two
writers either.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rlgkd.checkpoint.files import (
    atomic_write,
    dump_json,
    fitting,
    publish,
    read_json,
    reason,
    remove_stale,
    sync,
    temporary_name,
    write,
    writing,
)
from rlgkd.checkpoint.folders import (
    FILES,
    FORMAT,
    MANIFEST,
    SHARDED_FORMAT,
    SHARDS,
    TENSORS,
    TEXTS,
    check_whole,
    checksum,
    damages,
    find_damage,
    is_checkpoint,
    latest,
    steps,
    whole,
)
from rlgkd.checkpoint.growing import GrowingFile
from rlgkd.checkpoint.shards import read_shards, write_shards
from rlgkd.checkpoint.state import Contents, checked_restore, contents, counterparts, storable
from rlgkd.checkpoint.tagged_json import JSON
from rlgkd.errors import CheckpointError, SettingError, one_line
from rlgkd.ranks import ALONE, Ranks

__all__ = [
    "FILES",
    "FORMAT",
    "JSON",
    "MANIFEST",
    "GrowingFile",
    "atomic_write",
    "convert",
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

_FOREIGN = (ArithmeticError, AttributeError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError)
"""What files that are whole, and were not written by `save`, may lead to."""


def save(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, JSON],
    sharded: bool = False,
    ranks: Ranks = ALONE,
) -> Path:
    """Write a checkpoint to `folder`, whole or not at all.

    An existing checkpoint is replaced, and kept until the new one is complete: a run resumed from an earlier step
    writes the later ones again. A folder that holds anything else is refused.

    Args:
        folder: The folder to write, `checkpoints/step-N` in a run; missing parents are created.
        model: The model, which must contain all parameters of the optimizer.
        optimizer: A torch optimizer, or accelerate's wrapper around one.
        state: JSON that the caller needs to resume. Sequences come back as lists.
        sharded: Whether each process writes what it has, into a folder that all see; otherwise the main one writes all.
        ranks: The processes that share the model out (rlgkd.sharding), all of which have to call this.

    Returns:
        `folder`.

    Raises:
        CheckpointError: The folder could not be written (a full disk, for example), or a value is neither tensor nor
            JSON. Of several processes each raises it where one could not write its part, else ProcessError.

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
    written = contents(model, optimizer, state)
    _write(folder, written, sharded, ranks)
    return folder


def convert(folder: Path, to: Path, *, sharded: bool) -> Path:
    """Write a checkpoint's copy in the other kind, or in the same: its tensors `sharded`, or each whole in one file.

    One process does it, and holds all tensors. Weights, moments and state are equal to the bit.

    Returns: `to`.

    Raises: CheckpointError if it is damaged, or cannot be written.
    """
    folder, to = Path(folder), Path(to)
    check_whole(folder)
    with _foreign(folder):
        tensors = _read_tensors(folder, lambda kind, name: None)
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in TEXTS}
    _write(to, Contents(tensors=tensors, texts=texts), sharded, ALONE)
    return to


def load(folder: Path, *, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restore model, optimizer and random states exactly, and return the caller's `state`.

    All checksums, names, shapes and dtypes are checked before anything changes. Devices may differ from the saved, and
    the number of processes that share the model out; each reads for itself.

    Args:
        folder: A checkpoint of either kind.
        model: A model built as the saved one was: with the same names, shapes, dtypes and ties.
        optimizer: An optimizer of the same class over the same parameters in the same order; its hyperparameters are
            replaced.

    Raises:
        CheckpointError: A file is missing, damaged or foreign (the message names another whole checkpoint in the
            same parent, if there is one), or the checkpoint is of another model or optimizer.
    """
    folder = Path(folder)
    check_whole(folder)
    with _foreign(folder):
        tensors = _read_tensors(folder, counterparts(model, optimizer))
        restore = checked_restore(folder, tensors, model, optimizer)
        state: dict[str, Any] = read_json(folder / "state.json")
        restore()
    return state


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
        for folder in steps(parent):
            if keep > 0:
                keep -= not find_damage(folder)
                continue
            renamed = folder.rename(temporary_name(folder, "tmp"))  # half a checkpoint never has a whole one's name
            removed.append(folder)
            shutil.rmtree(renamed)
    except OSError as error:
        remedy = f"old checkpoints could not be deleted ({reason(error)}); delete them by hand"
        raise CheckpointError("checkpoints", str(parent), remedy) from error
    return removed


def _write(folder: Path, written: Contents, sharded: bool, ranks: Ranks) -> None:
    """See `save`."""
    with _written(folder, ranks) as temporary:
        sums: dict[str, dict[str, Any]] = {}
        if sharded:
            own = write_shards(temporary / SHARDS, written.tensors, ranks)
            for more in ranks.gather(lambda: {f"{SHARDS}/{path.name}": checksum(path) for path in own}):
                sums |= more
        whole = {} if sharded else {TENSORS[k]: storable(t, writes=ranks.main) for k, t in written.tensors.items()}

        def complete() -> None:
            files: dict[str, str | dict[str, Tensor]] = {**whole, **written.texts}
            for name, content in files.items():
                write(temporary / name, content)
                sums[name] = checksum(temporary / name)
            if sharded:
                if unseen := [name for name in sums if not (temporary / name).exists()]:
                    remedy = f"the main process does not see {unseen[0]}; put it on a disk that all processes share"
                    raise CheckpointError("checkpoint", str(folder), remedy)
                sync(temporary / SHARDS)
            kind = SHARDED_FORMAT if sharded else FORMAT
            write(temporary / MANIFEST, dump_json({"format": kind, "files": sums}))
            sync(temporary)
            publish(temporary, folder)

        ranks.from_main(complete)


@contextmanager
def _written(folder: Path, ranks: Ranks) -> Iterator[Path]:
    """A new folder, which all processes see and the main one makes and, if the block fails, removes.

    Raises: CheckpointError for what is raised in the block by a disk.
    """

    def begin() -> Path:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder.parent)
        if folder.exists() and not is_checkpoint(folder):
            raise CheckpointError("checkpoint", str(folder), "it holds something else; save under another name")
        temporary_name(folder, "tmp").mkdir()
        return temporary_name(folder, "tmp")

    temporary: Path | None = None
    try:
        temporary = ranks.from_main(begin)
        yield temporary
    except BaseException as error:
        if ranks.main and temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError | SafetensorError):
            raise
        advice = fitting(error, "free space, or save elsewhere; earlier checkpoints are whole")
        remedy = f"it was not saved ({reason(error)}): {advice}"
        failed = CheckpointError("checkpoint", str(folder), remedy)
        for note in getattr(error, "__notes__", ()):  # of which ranks know it
            failed.add_note(note)
        raise failed from error


def _read_tensors(folder: Path, like: Callable[[str, str], Tensor | None]) -> dict[str, dict[str, Tensor]]:
    """All tensors of a whole checkpoint by kind and name; parts as `read_shards` has them."""
    if (folder / SHARDS).exists():
        empty: dict[str, dict[str, Tensor]] = {kind: {} for kind in TENSORS}  # an optimizer before its first step
        return empty | read_shards(folder / SHARDS, like)
    return {kind: load_file(folder / file) for kind, file in TENSORS.items()}


@contextmanager
def _foreign(folder: Path) -> Iterator[None]:
    """Raise CheckpointError for what files that are whole, and were not written by `save`, lead to."""
    try:
        yield
    except CheckpointError:
        raise
    except _FOREIGN as error:
        remedy = f"its files are not those of a checkpoint ({one_line(repr(error), 200)}); use another one"
        raise CheckpointError("checkpoint", str(folder), remedy) from error
