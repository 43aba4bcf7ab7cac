"""CUDA graphs without a GPU: records the kernels with the memory that they read and write, without the host's code.

What replays wrongly on a GPU replays wrongly here: a tensor that has moved, a number on the host that has changed, a
result that the next replay overwrites. To wait for the device in between, by an operation of `WAITING` or a mask as an
index, is an error here too.
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

from rlgkd.lm.fast import cuda_graph, llama_decoder

ATEN = torch.ops.aten
WAITING = {
    ATEN.item,
    ATEN._local_scalar_dense,
    ATEN.is_nonzero,
    ATEN.equal,
    ATEN.nonzero,
    ATEN.masked_select,
}


def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Let decoders record `Graph`s; returns the list that they are added to as they are made."""
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
    monkeypatch.setattr(llama_decoder, "graphed_step", cuda_graph._GraphedStep)
    return made


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def replay(self) -> None:
        """Run all calls again and write their results into the same memory."""
        self.replays += 1
        for function, args, named, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **named)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        """Do nothing: there is only one stream."""


@contextmanager
def _recording(graph: Graph, *, stream: _Stream, capture_error_mode: str) -> Iterator[None]:
    with _Recording(graph):
        yield


def _indices(func: Any, args: Any) -> list[Tensor]:
    """Tensors used as an index; with a mask, the host would have to wait for the number of its hits."""
    indexes = func.overloadpacket in (ATEN.index, ATEN.index_put, ATEN.index_put_)
    return [x for x in args[1] if x is not None] if indexes else []


class _Recording(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = func.overloadpacket in WAITING or any(x.dtype == torch.bool for x in _indices(func, args))
        assert not waits, f"{func} waits for the device"
        results = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, results))
        return results
