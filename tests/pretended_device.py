"""An accelerator where there is none: its tensors say that they lie on `pretended:0` and compute on the CPU.

Mixing it with the CPU is an error, as on CUDA. What waits for the device is counted, by the line that asks: reading a
number, finding where a mask is true, and every copy to or from the host but one from pinned memory. Autocast is not
known there: float32 alone.

Registering a device changes the whole process, so this runs in one of its own, as tests/test_pretended_device.py does:

    with pretended() as device:
        ...
        device.waits
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
ATEN = torch.ops.aten
READS = {
    ATEN._local_scalar_dense: "item",
    ATEN.equal: "equal",
    ATEN.is_nonzero: "bool",
    ATEN.masked_select: "masked_select",
    ATEN.nonzero: "nonzero",
    ATEN._unique2: "unique",
}
"""Operations whose result, or its shape, the host needs to know."""
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
OURS = ("/rlgkd/", "/agents/", "/envs/", "/scripts/")


class Device:
    """What has waited for the device."""

    def __init__(self) -> None:
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()
        """How often each (operation, file:line) has."""

    def wait(self, what: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back and not any(room in frame.f_code.co_filename for room in OURS):
            frame = frame.f_back
        self.waits[what, f"{frame.f_code.co_filename}:{frame.f_lineno}"] += 1


_device = Device()


class PretendedTensor(torch.Tensor):
    """A CPU tensor that says that it lies on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        _device.wait("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, PretendedTensor)]
    others = [leaf for leaf in leaves if type(leaf) is torch.Tensor and leaf.dim() > 0]
    devices = [leaf.type for leaf in leaves if isinstance(leaf, torch.device)]
    to_device, to_host = NAME in devices, bool(ours) and "cpu" in devices
    packet = func.overloadpacket
    if ours and others and packet not in {ATEN.copy_, *INDEXING}:
        raise AssertionError(f"{func}: tensors of two devices")
    if (to_host or (to_device and not ours and others)) and not kwargs.get("non_blocking"):
        _device.wait("copy")
    if ours and packet in READS:
        _device.wait(READS[packet])
    if ours and packet in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1]):
        _device.wait("mask")

    def inner(leaf: Any) -> Any:
        if isinstance(leaf, torch.device) and leaf.type == NAME:
            return torch.device("cpu")
        return leaf.inner if isinstance(leaf, PretendedTensor) else leaf

    made = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    if to_host or not (ours or to_device):
        return made
    known = {id(tensor.inner): tensor for tensor in ours}  # what works in place returns the same tensor

    def outer(leaf: Any) -> Any:
        if type(leaf) is not torch.Tensor:
            return leaf
        return known[id(leaf)] if id(leaf) in known else PretendedTensor(leaf)

    return tree_map(outer, made)


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """`torch.tensor` and `new_tensor` put their data on a device below where dispatch sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
            func, args = torch.tensor, args[1:]
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == NAME:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class _Module(_DummyBackendModule):  # type: ignore[misc]
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        pass


@contextlib.contextmanager
def pretended() -> Iterator[Device]:
    """Register the device, and let accelerate and rlgkd take it for CUDA; call it before rlgkd is imported."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.inference_mode = torch.no_grad  # type: ignore[assignment,misc]  # tensor subclasses have no version counters
    torch.Tensor.pin_memory = lambda self: self  # type: ignore[assignment,method-assign]
    from accelerate import PartialState

    from rlgkd import devices

    devices.is_cuda = lambda device: device.type in ("cuda", NAME)
    PartialState().device = torch.device(NAME, 0)
    with _Everywhere(), _Factories():
        yield _device
