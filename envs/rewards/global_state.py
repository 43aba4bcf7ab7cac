"""Puts back what a user's function changes for the whole process or thread: settings of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def restored_state() -> Iterator[None]:
    """Run the body without autocast, and put back the settings of torch that it changes.

    These are the grad and inference modes, the default dtype and device, the number of threads and whether algorithms
    are deterministic. The states of random numbers are left alone: a reward that draws some would draw the same ones in
    each batch, and training has generators of its own.
    """
    grad, dtype, device = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
    threads = torch.get_num_threads()
    deterministic = torch.get_deterministic_debug_mode()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(torch.is_inference_mode_enabled()))  # its end puts back what was
        torch.set_grad_enabled(grad)
        for kind in _autocast_devices():
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        finally:
            torch.set_grad_enabled(grad)
            if torch.get_default_dtype() != dtype:
                torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(None if device.type == "cpu" else device)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            if torch.get_deterministic_debug_mode() != deterministic:
                torch.set_deterministic_debug_mode(deterministic)


def _autocast_devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return [kind for kind in kinds if torch.is_autocast_enabled(kind)]
