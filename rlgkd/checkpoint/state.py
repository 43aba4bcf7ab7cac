"""What a checkpoint holds: model, optimizer and random states as tensors and JSON, to the bit and without a pickle."""

from __future__ import annotations

import base64
import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rlgkd.checkpoint.files import dump_json, read_json
from rlgkd.errors import CheckpointError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def contents(model: nn.Module, optimizer: Optimizer, state: Mapping[str, JSON]) -> dict[str, str | dict[str, Tensor]]:
    """What each file of a checkpoint holds."""
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                "model", name, "its state is no tensor and would have to be pickled; keep it in state"
            )
        weights[name] = value
    ties = _ties(weights)

    inner = _unwrap(optimizer)
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
    }
    return {
        "model.safetensors": _storable({name: value for name, value in weights.items() if name not in ties}),
        "model.json": dump_json({"ties": ties}),
        "optimizer.safetensors": _storable(tensors),
        "optimizer.json": dump_json(optimizer_json),
        "random.json": json.dumps(_encode(_random_states(), "random", {})),  # no indent: one line per number is long
        "state.json": dump_json(_plain(state, "state")),
    }


def fitting(folder: Path, model: nn.Module, optimizer: Optimizer) -> Callable[[], None]:
    """Check that a whole checkpoint's contents fit, changing nothing; returns what then restores them."""
    weights = _fitting_weights(folder, model)
    saved = _fitting_optimizer(folder, model, optimizer)
    random_states = _fitting_random(folder)

    def restore() -> None:
        model.load_state_dict(weights)
        _restore_optimizer(optimizer, saved)
        _restore_random(random_states)

    return restore


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
    ties: dict[str, str] = read_json(folder / "model.json")["ties"]
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


def _unwrap(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside accelerate's wrapper."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str | None]:
    """The model's names for the optimizer's parameters, in the order of its state dict's indices."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names.get(id(parameter)) for group in optimizer.param_groups for parameter in group["params"]]


def _fitting_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state dict, once it is sure to fit; shapes follow from the parameters'."""
    saved = read_json(folder / "optimizer.json")
    inner = _unwrap(optimizer)
    for what, ours, theirs in (
        ("class", type(inner).__name__, saved["class"]),
        (
            "parameter groups",
            [len(g["params"]) for g in inner.param_groups],
            [len(g["params"]) for g in saved["groups"]],
        ),
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
    return {"state": state, "param_groups": _decode(saved["groups"], tensors)}


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    inner = _unwrap(optimizer)
    inner.load_state_dict(saved)
    parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        own = inner.state[parameters[index]]
        for key, value in values.items():  # torch casts to the parameter's dtype, which would round float32 moments
            if isinstance(value, Tensor) and own[key].dtype != value.dtype:
                own[key] = value.to(own[key].device)


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy(),
        "cuda": [s.numpy() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _fitting_random(folder: Path) -> dict[str, Any]:
    states: dict[str, Any] = _decode(read_json(folder / "random.json"), {})
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


# JSON in which tuples, arrays and tensors are tagged, so that they come back as what they were.


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
