"""A checkpoint's contents: model, optimizer and random states as tensors and JSON, exact and without pickle."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlgkd.checkpoint.files import dump_json, read_json
from rlgkd.checkpoint.tagged_json import JSON, decode, encode, plain
from rlgkd.errors import CheckpointError
from rlgkd.sharding import full, is_shard, shard_like

MODEL, OPTIMIZER = "model", "optimizer"
"""The two kinds of tensors in a checkpoint."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds; its tensors are the live ones, of which some may be shards."""

    tensors: dict[str, dict[str, Tensor]]
    """The model's, each once, and the optimizer's, by kind and name."""
    texts: dict[str, str]
    """The JSON files."""


def contents(model: nn.Module, optimizer: Optimizer, state: Mapping[str, JSON]) -> Contents:
    """Return what a checkpoint of these holds.

    Raises: CheckpointError for what is neither tensor nor JSON, and for a parameter that is not the model's.
    """
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                "model", name, "its state is not a tensor and would have to be pickled; keep it in state"
            )
        weights[name] = value
    ties = _ties(weights)

    inner = _unwrap(optimizer)
    parameters = _parameter_names(model, inner)
    if None in parameters:
        raise CheckpointError("optimizer", f"parameter {parameters.index(None)}", "pass the model that it belongs to")
    tensors: dict[str, Tensor] = {}
    optimizer_state = inner.state_dict()
    optimizer_json = {
        "class": type(inner).__name__,
        "parameters": parameters,
        "groups": [encode(group, f"group-{i}", tensors) for i, group in enumerate(optimizer_state["param_groups"])],
        "state": {
            str(index): encode(values, f"{index}/{parameters[index]}", tensors)
            for index, values in optimizer_state["state"].items()
        },
    }
    return Contents(
        tensors={MODEL: {n: value for n, value in weights.items() if n not in ties}, OPTIMIZER: tensors},
        texts={
            "model.json": dump_json({"ties": ties}),
            "optimizer.json": dump_json(optimizer_json),
            # Without indent, which would give each number a line.
            "random.json": json.dumps(encode(_random_states(), "random", {})),
            "state.json": dump_json(plain(state, "state")),
        },
    )


def counterparts(model: nn.Module, optimizer: Optimizer) -> Callable[[str, str], Tensor | None]:
    """Return the function from a checkpoint's tensor, by kind and name, to the one as whose shard it can be read.

    That is the weight of the name, and the parameter of a moment.
    """
    weights: dict[str, Tensor] = model.state_dict(keep_vars=True)
    parameters = [parameter for group in _unwrap(optimizer).param_groups for parameter in group["params"]]
    by_index = {str(index): parameter for index, parameter in enumerate(parameters)}

    def counterpart(kind: str, name: str) -> Tensor | None:
        return weights.get(name) if kind == MODEL else by_index.get(name.partition("/")[0])

    return counterpart


def checked_restore(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], model: nn.Module, optimizer: Optimizer
) -> Callable[[], None]:
    """Check that a whole checkpoint with these tensors fits, changing nothing; return the function that restores it."""
    weights = _checked_weights(folder, tensors[MODEL], model)
    saved = _checked_optimizer(folder, tensors[OPTIMIZER], model, optimizer)
    random_states = _checked_random(folder)

    def restore() -> None:
        current = model.state_dict(keep_vars=True)
        model.load_state_dict({name: shard_like(value, current[name]) for name, value in weights.items()})
        _restore_optimizer(optimizer, saved)
        _restore_random(random_states)

    return restore


def storable(tensors: Mapping[str, Tensor], *, writes: bool) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous and each with its own storage, as safetensors requires.

    Shards are made whole one by one, by all processes; none is kept if another process writes.
    """
    storable = {}
    storages = set()
    for name, value in tensors.items():
        value = full(value.detach())
        if not writes:
            continue
        value = value.cpu().contiguous()
        if value.untyped_storage().data_ptr() in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        storable[name] = value
    return storable


def _ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for each name whose tensor shares its memory with an earlier one, the earlier name."""
    first: dict[tuple[object, ...], str] = {}
    ties = {}
    for name, value in tensors.items():
        # A shard may be empty, and at no address; which are tied must be known to all processes alike.
        address = id(value) if is_shard(value) else value.data_ptr()
        memory = (value.device, address, value.dtype, value.shape, value.stride())
        if value.numel() and first.setdefault(memory, name) != name:
            ties[name] = first[memory]
    return ties


def _checked_weights(folder: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the checkpoint's state dict, ties included, after checking that it fits the model."""
    ties: dict[str, str] = read_json(folder / "model.json")["ties"]
    weights = {**tensors, **{name: tensors[kept] for name, kept in ties.items()}}
    current: dict[str, Tensor] = model.state_dict(keep_vars=True)
    current_ties = _ties(current)
    remedy = f"build the model as {folder} was: see the run's config.yaml"
    for name in sorted({*weights, *current}):
        if name not in weights or name not in current:
            where = "only in the checkpoint" if name in weights else "not in the checkpoint"
            raise CheckpointError("model", name, f"it is {where}; {remedy}")
        for what, here, saved in (
            ("shape", tuple(current[name].shape), tuple(weights[name].shape)),
            ("dtype", current[name].dtype, weights[name].dtype),
            ("tie", current_ties.get(name), ties.get(name)),
        ):
            if here != saved:
                raise CheckpointError("model", name, f"its {what} is {here} here, {saved} saved; {remedy}")
    return weights


def _unwrap(optimizer: Optimizer) -> Optimizer:
    """Return the torch optimizer inside accelerate's wrapper."""
    inner = getattr(optimizer, "optimizer", None)
    return _unwrap(inner) if isinstance(inner, Optimizer) else optimizer


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str | None]:
    """Return the model's names of the optimizer's parameters, in the order of its state dict's indices."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names.get(id(parameter)) for group in optimizer.param_groups for parameter in group["params"]]


def _checked_optimizer(
    folder: Path, tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Optimizer
) -> dict[str, Any]:
    """Return the optimizer's state dict after checking that it fits; its shapes follow from the parameters'."""
    saved = read_json(folder / "optimizer.json")
    inner = _unwrap(optimizer)
    group_sizes = [len(group["params"]) for group in inner.param_groups]
    saved_group_sizes = [len(group["params"]) for group in saved["groups"]]
    for what, here, there in (
        ("class", type(inner).__name__, saved["class"]),
        ("parameter groups", group_sizes, saved_group_sizes),
    ):
        if here != there:
            raise CheckpointError("optimizer", here, f"its {what} in {folder}: {there!r}; use the settings of that run")
    for name, saved_name in zip(_parameter_names(model, inner), saved["parameters"], strict=True):
        if name != saved_name:
            remedy = f"{folder} has {saved_name!r} in its place; keep the parameters' order"
            raise CheckpointError("optimizer", name, remedy)
    state = {int(index): decode(values, tensors) for index, values in saved["state"].items()}
    groups = decode(saved["groups"], tensors)
    _check_hyperparameters(inner, groups)
    _check_moments(inner, state)
    return {"state": state, "param_groups": groups}


def _check_hyperparameters(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError unless each group has the optimizer's hyperparameters, of their kinds."""
    for here, saved in zip(optimizer.param_groups, groups, strict=True):
        for name in here.keys() - {"params"}:
            if name not in saved or not _alike(here[name], saved[name]):
                raise ValueError(f"{name} of a parameter group is {saved.get(name)!r}")


def _alike(here: Any, saved: Any) -> bool:
    """Return whether two hyperparameters are of one kind; None stands for one that was not chosen."""
    if here is None or saved is None:
        return True
    if isinstance(here, tuple):
        return isinstance(saved, tuple) and len(here) == len(saved) and all(map(_alike, here, saved))
    kinds = (bool,) if isinstance(here, bool) else (int, float, Tensor)
    return isinstance(saved, kinds)


def _check_moments(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise ValueError unless each moment has its parameter's shape: a fused step would read outside of it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        if not values or values.keys() != next(iter(state.values())).keys():
            raise ValueError(f"the state of parameter {index} holds {sorted(values)}")
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} is of shape {tuple(value.shape)}")
            here = optimizer.state.get(parameters[index], {}).get(name)
            known = {torch.float32, parameters[index].dtype, here.dtype if isinstance(here, Tensor) else None}
            if isinstance(value, Tensor) and value.ndim and value.dtype not in known:
                raise ValueError(f"{name} of parameter {index} is of {value.dtype}")


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    inner = _unwrap(optimizer)
    parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
    moments = {
        index: {
            key: shard_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        for index, values in saved["state"].items()
    }
    inner.load_state_dict({**saved, "state": moments})
    for index, values in moments.items():
        restored = inner.state[parameters[index]]
        for key, value in values.items():  # torch casts to the parameter's dtype, which would round float32 moments
            if isinstance(value, Tensor) and restored[key].dtype != value.dtype:
                restored[key] = value.to(restored[key].device)


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy(),
        "cuda": [s.numpy() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _checked_random(folder: Path) -> dict[str, Any]:
    states: dict[str, Any] = decode(read_json(folder / "random.json"), {})
    current = np.random.get_state(legacy=False)["bit_generator"]
    saved = states["numpy"]["bit_generator"]
    if current != saved:
        remedy = f"{folder} was saved with {saved}; call np.random.set_bit_generator"
        raise CheckpointError("numpy.random", current, remedy)
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
            "random draws on a GPU will differ from the run's",
            stacklevel=3,
        )
