"""What depends on the kind of device, asked by name here and nowhere else in the core.

A copy to an accelerator waits for it unless it comes from pinned memory; what is called once a token or once a
micro-batch copies by `to_device`, so that the host can run ahead (tests/test_waits.py counts what waits).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU: what `auto` is, for agents as for models that are only run."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it multiplies bfloat16 natively.

    Processors with such units are left out: what the rounding does to a run was not measured on one.
    """
    return is_cuda(device) and torch.cuda.is_bf16_supported(including_emulation=False)


def is_cuda(device: torch.device) -> bool:
    """Whether it has CUDA's streams, graphs and pinned memory."""
    return device.type == "cuda"


def to_device(values: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """Copy host values to a device, on CUDA without waiting for it; on the CPU they may be shared, not copied."""
    device = torch.device(device)
    host = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return host.pin_memory().to(device, non_blocking=True) if is_cuda(device) else host.to(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given, for a clock to be right."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def widest_float(device: torch.device) -> torch.dtype:
    """The floating type in which sums lose least: float64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64
