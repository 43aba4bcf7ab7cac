"""A decode step on an NVIDIA GPU, recorded once as a CUDA graph and then replayed.

A decode step is hundreds of small kernels, each of which takes the host longer to launch than the GPU to run; a graph
launches them all at once. `torch.compile(mode="reduce-overhead")` keeps graphs too, but records again for the new KV
caches of each batch and keeps what it recorded (https://github.com/pytorch/pytorch/issues/128424). A graph of this
module belongs to one decoder, whose tensors stay where they are, and is freed with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlgkd.devices import is_cuda

WARMUP_CALLS = 2
"""Calls before the recorded one, in which torch.compile and CUDA's libraries do what a graph cannot hold."""


def graphed_step(step: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Return the step, on a CUDA device as a graph; elsewhere as it is.

    Args:
        step: Reads and writes tensors of the device alone, never waits for the device, and is idempotent: called
            several times it leaves what one call leaves. Every call must have the same arguments: equal numbers, and
            tensors in the same memory, whose contents alone change. The result also lies in the same memory each time;
            read it before the next call.
        device: That of the tensors.
    """
    return _GraphedStep(step, device) if is_cuda(device) else step


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all graphs of a device: cuBLAS and others keep a workspace for each stream that they have seen."""
    return torch.cuda.Stream()


class _GraphedStep:
    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self.step = step
        self.device = device
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Any) -> Tensor:
        if self.graph is None:
            with torch.cuda.device(self.device):
                self.graph, self.result = self._record(*inputs)
        self.graph.replay()
        return self.result

    def _record(self, *inputs: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # torch wants warm-up and capture on a stream other than the current one.
        stream = _capture_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_CALLS):
                self.step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads may go on using the device (async rewards, a teacher served from this process): under the
        # default mode their calls would make the capture fail.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = self.step(*inputs)
        return graph, result
