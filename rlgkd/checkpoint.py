"""Checkpoints: written whole or not at all, and resumed to the bit.

A checkpoint is a folder, `step-N`, of safetensors and JSON; nothing pickled is written or read:

    model.safetensors, model.json            every tensor of the state dict once; the names that are tied to another's
    optimizer.safetensors, optimizer.json    its tensors; everything else it holds, and a gradient scaler's state
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

import base64
import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rlgkd.errors import CheckpointError, SettingError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

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
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)")


def save(folder: Path, *, model: nn.Module, optimizer: Optimizer, state: Mapping[str, JSON]) -> Path:
    """Write a checkpoint to `folder`, whole or not at all.

    A checkpoint that is already there is replaced and stays until the new one is complete: a run resumed from an
    earlier step comes past the later ones again. A folder that holds anything else is refused.

    Args:
        folder: Where to, `checkpoints/step-N` in a run; missing parents are made.
        model: All parameters that the optimizer holds must be among its own.
        optimizer: A torch optimizer, or accelerate's wrapper around one (its gradient scaler is saved too).
        state: What the caller needs to go on. Sequences come back as lists.

    Returns:
        `folder`.

    Raises:
        CheckpointError: It could not be written (the disk is full, say), or something in it is no tensor and no JSON.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as run:
        ...     folder = save(Path(run) / "step-7", model=model, optimizer=optimizer, state={"step": 7})
        ...     load(folder, model=model, optimizer=optimizer)
        {'step': 7}
    """
    folder = Path(folder)
    contents = _contents(model, optimizer, state)
    temporary = _beside(folder, "tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder.parent)
        if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= {*FILES, MANIFEST}):
            raise CheckpointError("checkpoint", str(folder), "it holds something else; save under another name")
        try:
            temporary.mkdir()
            for name, content in contents.items():
                _write(temporary / name, content)
            _write(temporary / MANIFEST, _dumps({"format": FORMAT, "files": _sums(temporary)}))
            _sync(temporary)
            _publish(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        remedy = f"it was not saved ({_reason(error)}): free space, or save elsewhere; earlier checkpoints are whole"
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
        advice = f"use an earlier checkpoint: {other}" if other else "no whole checkpoint lies beside it; start anew"
        raise CheckpointError("checkpoint", str(file), f"it is {what}; {advice}")
    weights = _fitting_weights(folder, model)
    saved, scaler_state = _fitting_optimizer(folder, model, optimizer)
    random_states = _fitting_random(folder)
    state: dict[str, Any] = _read(folder / "state.json")

    model.load_state_dict(weights)
    _restore_optimizer(optimizer, saved, scaler_state)
    _restore_random(random_states)
    return state


def latest(parent: Path) -> Path | None:
    """The newest whole `step-N` in `parent` by number, or None; temporary and damaged ones are passed over."""
    for path, match in _leftovers(parent):
        if match["kind"] == "old":  # a process died between the two renames of `_publish`
            _put_back(path, match["name"])
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
            doomed = folder.rename(_beside(folder, "tmp"))  # never half a checkpoint under a whole one's name
            removed.append(folder)
            shutil.rmtree(doomed)
    except OSError as error:
        remedy = f"old checkpoints could not be deleted ({_reason(error)}); delete them by hand"
        raise CheckpointError("checkpoints", str(parent), remedy) from error
    return removed


def remove_stale(parent: Path) -> None:
    """Delete the temporaries that dead processes left in `parent`, and put back what one died while replacing."""
    for path, match in _leftovers(parent):
        if match["kind"] == "old" and _put_back(path, match["name"]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader finds the old content or the new, whole, and never a part.

    Raises:
        CheckpointError: It could not be written; the old content is still there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     atomic_write(Path(run) / "summary.json", '{"reward": 1.0}')
        ...     (Path(run) / "summary.json").read_text()
        '{"reward": 1.0}'
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        try:
            _write(temporary, content)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        remedy = f"it was not written ({_reason(error)}): free space, or write elsewhere"
        raise CheckpointError("file", str(path), remedy) from error


# ---- files ----


def _write(path: Path, content: str | bytes | dict[str, Tensor]) -> None:
    """Write text, bytes or tensors and flush them to the disk."""
    if isinstance(content, dict):
        save_file(content, path)
        path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors leaves 0600, whatever the umask
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(path)


def _sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, folder: Path) -> None:
    """Give a complete temporary its name. What bore it steps aside first, and returns if anything fails."""
    aside = _beside(folder, "old")
    replaced = folder.exists()
    if replaced:
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except BaseException:
        if replaced:
            aside.rename(folder)
        raise
    _sync(folder.parent)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}")


def _leftovers(parent: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Temporaries whose writer is dead, or this process: nothing else writes while it asks."""
    for path in sorted(Path(parent).iterdir()) if Path(parent).is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match and (int(match["pid"]) == os.getpid() or not _alive(int(match["pid"]))):
            yield path, match


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _put_back(aside: Path, name: str) -> bool:
    """Return an aside checkpoint to its name, unless its successor took it."""
    if aside.with_name(name).exists():
        return False
    try:
        aside.rename(aside.with_name(name))
    except OSError:  # a reader without the right to write
        return False
    return True


def _steps(parent: Path) -> list[Path]:
    """The folders `step-N` in `parent`, highest number first."""
    folders = Path(parent).iterdir() if Path(parent).is_dir() else ()
    numbered = [(int(m[1]), f) for f in folders if (m := _STEP.fullmatch(f.name)) and f.is_dir()]
    return [folder for _, folder in sorted(numbered, reverse=True)]


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
        manifest = _read(file)
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
        return file, f"unreadable ({_reason(error)})"
    except (ValueError, KeyError, TypeError):  # JSON that is broken, or that says something else
        return folder / MANIFEST, "damaged (not the manifest of a checkpoint)"
    return None


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


# ---- JSON: tuples, arrays and tensors are tagged, so that they come back as what they were ----


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; a tensor goes into `tensors` under `where`. A float's shortest decimal form is exact."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, f"{where}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{where}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"__tuple__": items}
    if isinstance(value, np.ndarray):
        return {"__array__": base64.b64encode(value.tobytes()).decode(), "dtype": value.dtype.str}
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"__tensor__": where}
    raise CheckpointError(where, type(value).__name__, "hold tensors, numbers, text, lists and dicts with text as keys")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tuple__" in value:
        return tuple(_decode(item, tensors) for item in value["__tuple__"])
    if "__array__" in value:
        return np.frombuffer(base64.b64decode(value["__array__"]), dtype=value["dtype"]).copy()
    if "__tensor__" in value:
        return tensors[value["__tensor__"]].clone()  # away from the file that it is mapped from
    return {key: _decode(item, tensors) for key, item in value.items()}


def _plain(value: JSON, where: str) -> JSON:
    """`value` if JSON gives it back as it is; json.dumps itself would turn a key 1 into "1" without a word."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(where, value, "make it numbers, text, lists and dicts with text as keys")


# ---- model, optimizer, random states ----


def _contents(model: nn.Module, optimizer: Optimizer, state: Mapping[str, JSON]) -> dict[str, str | dict[str, Tensor]]:
    """What each file of a checkpoint holds."""
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                "model", name, "its state is no tensor and would have to be pickled; keep it in state"
            )
        weights[name] = value
    ties = _ties(weights)

    inner, scaler = _unwrap(optimizer)
    parameters = _parameter_names(model, inner)
    if None in parameters:
        raise CheckpointError("optimizer", f"parameter {parameters.index(None)}", "pass the model that it belongs to")
    tensors: dict[str, Tensor] = {}
    described = inner.state_dict()
    optimizer_json = {
        "class": type(inner).__name__,
        "parameters": parameters,
        "groups": [_encode(g, f"group-{i}", tensors) for i, g in enumerate(described["param_groups"])],
        "state": {
            str(index): _encode(values, f"{index}/{parameters[index]}", tensors)
            for index, values in described["state"].items()
        },
        "scaler": None if scaler is None else _encode(scaler.state_dict(), "scaler", tensors),
    }
    return {
        "model.safetensors": _storable({name: value for name, value in weights.items() if name not in ties}),
        "model.json": _dumps({"ties": ties}),
        "optimizer.safetensors": _storable(tensors),
        "optimizer.json": _dumps(optimizer_json),
        "random.json": json.dumps(_encode(_random_states(), "random", {})),  # no indent: one line per number is long
        "state.json": _dumps(_plain(state, "state")),
    }


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and no two on one storage, as safetensors asks; values and dtypes are untouched."""
    storable, seen = {}, set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        storable[name] = value
    return storable


def _ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name whose tensor is the very memory of an earlier one: that one's name."""
    first: dict[tuple[object, ...], str] = {}
    ties = {}
    for name, value in tensors.items():
        memory = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and (kept := first.setdefault(memory, name)) != name:
            ties[name] = kept
    return ties


def _fitting_weights(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """The checkpoint's state dict, ties included, once it is sure to fit the model."""
    ties: dict[str, str] = _read(folder / "model.json")["ties"]
    weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    weights |= {name: weights[kept] for name, kept in ties.items()}
    own: dict[str, Tensor] = model.state_dict()
    own_ties = _ties(own)
    remedy = f"build the model as {folder} was: see the run's config.yaml"
    for name in sorted({*weights, *own}):
        if name not in weights or name not in own:
            where = "only in the checkpoint" if name in weights else "not in the checkpoint"
            raise CheckpointError("model", name, f"it is {where}; {remedy}")
        for what, ours, saved in (
            ("shape", tuple(own[name].shape), tuple(weights[name].shape)),
            ("dtype", own[name].dtype, weights[name].dtype),
            ("tie", own_ties.get(name), ties.get(name)),
        ):
            if ours != saved:
                raise CheckpointError("model", name, f"its {what} is {ours} here, {saved} saved; {remedy}")
    return weights


def _unwrap(optimizer: Optimizer) -> tuple[Optimizer, Any]:
    """The torch optimizer inside accelerate's wrapper, and the wrapper's gradient scaler if it has one (fp16)."""
    scaler = getattr(optimizer, "scaler", None)
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer, scaler


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str | None]:
    """The model's names for the optimizer's parameters, in the order of its state dict's indices."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names.get(id(parameter)) for group in optimizer.param_groups for parameter in group["params"]]


def _fitting_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], Any]:
    """The optimizer's and the scaler's state dicts, once they are sure to fit; shapes follow from the parameters'."""
    saved = _read(folder / "optimizer.json")
    inner, scaler = _unwrap(optimizer)
    for what, ours, theirs in (
        ("class", type(inner).__name__, saved["class"]),
        (
            "parameter groups",
            [len(g["params"]) for g in inner.param_groups],
            [len(g["params"]) for g in saved["groups"]],
        ),
        ("gradient scaler", scaler is not None, saved["scaler"] is not None),
    ):
        if ours != theirs:
            raise CheckpointError(
                "optimizer", ours, f"its {what} in {folder}: {theirs!r}; use the settings of that run"
            )
    for name, kept in zip(_parameter_names(model, inner), saved["parameters"], strict=True):
        if name != kept:
            raise CheckpointError("optimizer", name, f"{folder} has {kept!r} in its place; keep the parameters' order")
    tensors = load_file(folder / "optimizer.safetensors")
    state = {int(index): _decode(values, tensors) for index, values in saved["state"].items()}
    return {"state": state, "param_groups": _decode(saved["groups"], tensors)}, _decode(saved["scaler"], tensors)


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any], scaler_state: Any) -> None:
    inner, scaler = _unwrap(optimizer)
    inner.load_state_dict(saved)
    parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        own = inner.state[parameters[index]]
        for key, value in values.items():  # torch casts to the parameter's dtype, which would round float32 moments
            if isinstance(value, Tensor) and own[key].dtype != value.dtype:
                own[key] = value.to(own[key].device)
    if scaler is not None:
        scaler.load_state_dict(scaler_state)


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy(),
        "cuda": [s.numpy() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _fitting_random(folder: Path) -> dict[str, Any]:
    states: dict[str, Any] = _decode(_read(folder / "random.json"), {})
    ours, saved = np.random.get_state(legacy=False)["bit_generator"], states["numpy"]["bit_generator"]
    if ours != saved:
        raise CheckpointError(
            "numpy.random", ours, f"{folder} was saved with {saved}; call np.random.set_bit_generator"
        )
    return states


def _restore_random(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, value in enumerate(states["cuda"][:devices]):
        torch.cuda.set_rng_state(torch.from_numpy(value), device)
    if len(states["cuda"]) > devices:
        warnings.warn(
            f"checkpoint: {len(states['cuda'])} CUDA generators were saved and {devices} are here; "
            "what is drawn on a GPU will differ from the run's",
            stacklevel=3,
        )
