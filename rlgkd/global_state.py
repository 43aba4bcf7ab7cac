"""Puts back what a user's code changes for the whole process or thread: settings of torch, and the working folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch


@contextmanager
def restored_state() -> Iterator[None]:
    """Run the body, a call of a user's function, without autocast, and put back what it changes.

    That is what `restored_modes` puts back, the number of threads, whether algorithms are deterministic, and the
    working folder, from which the names of a run's files may start. The states of random numbers are left alone: a
    reward that draws some would draw the same ones in each batch, and training has generators of its own.
    """
    threads = torch.get_num_threads()
    deterministic = torch.get_deterministic_debug_mode()
    folder = _working_folder()
    with restored_modes(), ExitStack() as stack:
        for kind in _autocast_devices():
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            if torch.get_deterministic_debug_mode() != deterministic:
                torch.set_deterministic_debug_mode(deterministic)
            if folder is not None and _working_folder() != folder:
                with suppress(OSError):  # it is gone
                    os.chdir(folder)


@contextmanager
def restored_modes() -> Iterator[None]:
    """Run the body, and put back the grad and inference modes, the default dtype and the default device."""
    grad, dtype, device = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
    inference = torch.inference_mode(torch.is_inference_mode_enabled())  # its end puts back what was
    inference.__enter__()
    torch.set_grad_enabled(grad)
    try:
        yield
    finally:
        inference.__exit__(None, None, None)
        torch.set_grad_enabled(grad)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)


def _working_folder() -> str | None:
    """The working folder; None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _autocast_devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return [kind for kind in kinds if torch.is_autocast_enabled(kind)]
