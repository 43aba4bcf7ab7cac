"""A step on an NVIDIA GPU, recorded once as a CUDA graph and replayed from then on.

A step of decoding is hundreds of small kernels, each of which the host takes longer to begin than the GPU to run; a
graph begins all of them at once. `torch.compile(mode="reduce-overhead")` keeps graphs of its own, but records one anew
for the caches of each text, copies what it does not know to stay in place, and lets go of none. These belong to a
writer, whose tensors stay where they are, and go with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

UNRECORDED = 2
"""Calls before the one that is recorded: in the first, torch.compile and libraries prepare what a graph cannot hold."""


def replayed(step: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The step, on a CUDA device as a graph; elsewhere as it is.

    Args:
        step: Reads and writes tensors of that device alone, asks the host for nothing, and has done when it is called
            several times what it does when called once. At each call it must be given the same arguments: the same
            numbers, and tensors in the same memory, of which only the contents change. Its result lies in the same
            place at each call, too: read it before the next.
        device: Where its tensors lie.
    """
    return _Replayed(step, device) if device.type == "cuda" else step


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs of a device: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream()


class _Replayed:
    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self.step, self.device = step, device
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *given: Any) -> Tensor:
        if self.graph is None:
            with torch.cuda.device(self.device):
                self.graph, self.result = self._recorded(*given)
        self.graph.replay()
        return self.result

    def _recorded(self, *given: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """As torch wants it: on a stream beside the current one, which waits for it."""
        beside, graph = _stream(self.device), torch.cuda.CUDAGraph()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(UNRECORDED):
                self.step(*given)
        torch.cuda.current_stream().wait_stream(beside)
        # Other threads may go on using the device: async rewards, a teacher served from this process.
        with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
            result = self.step(*given)
        return graph, result
