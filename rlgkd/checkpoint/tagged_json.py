"""JSON with tags for tuples, arrays and tensors, so that each comes back with its type."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from rlgkd.errors import CheckpointError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON, adding tensors to `tensors` under `where`. A float's shortest decimal form is exact."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: encode(item, f"{where}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [encode(item, f"{where}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"__tuple__": items}
    if isinstance(value, np.ndarray):
        return {"__array__": base64.b64encode(value.tobytes()).decode(), "dtype": value.dtype.str}
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"__tensor__": where}
    raise CheckpointError(where, type(value).__name__, "hold tensors, numbers, text, lists and dicts with text as keys")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `encode` was given, with the tensors from `tensors`."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tuple__" in value:
        return tuple(decode(item, tensors) for item in value["__tuple__"])
    if "__array__" in value:
        return np.frombuffer(base64.b64decode(value["__array__"]), dtype=value["dtype"]).copy()
    if "__tensor__" in value:
        return tensors[value["__tensor__"]].clone()  # a copy, independent of the memory-mapped file
    return {key: decode(item, tensors) for key, item in value.items()}


def plain(value: JSON, where: str) -> JSON:
    """Return `value` if JSON preserves it; json.dumps itself would silently turn a key 1 into "1"."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(where, value, "make it numbers, text, lists and dicts with text as keys")
