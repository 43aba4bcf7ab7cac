"""CUDA graphs without a GPU: kernels recorded with the memory that they read and write, without the host's code.

What replays wrongly there replays wrongly here: a tensor that was put somewhere else, a number of the host's that has
changed, a result that the next replay overwrites. To ask for the host meanwhile, by the functions of `ASK` or a mask as
an index, is an error here as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlgkd.lm import decoders
from rlgkd.lm.fast import cuda_graph

ATEN = torch.ops.aten
ASK = {
    ATEN.item,
    ATEN._local_scalar_dense,
    ATEN.is_nonzero,
    ATEN.equal,
    ATEN.nonzero,
    ATEN.masked_select,
}


def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Let writers take `Graph` for torch's; returns the graphs as they are made."""
    made: list[Graph] = []

    def new() -> Graph:
        made.append(Graph())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", _recording)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(decoders, "replayed", cuda_graph._Replayed)
    return made


class Graph:
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def replay(self) -> None:
        """All calls once more, their results into the same memory."""
        self.replays += 1
        for function, args, named, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **named)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        """There is one alone."""


@contextmanager
def _recording(graph: Graph, *, stream: _Stream, capture_error_mode: str) -> Iterator[None]:
    with _Recording(graph):
        yield


def _indices(func: Any, args: Any) -> list[Tensor]:
    """Tensors that are an index: whose number of hits a mask would have to tell the host."""
    indexes = func.overloadpacket in (ATEN.index, ATEN.index_put, ATEN.index_put_)
    return [x for x in args[1] if x is not None] if indexes else []


class _Recording(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = func.overloadpacket in ASK or any(x.dtype == torch.bool for x in _indices(func, args))
        assert not asks, f"{func} waits for the device"
        results = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, results))
        return results
