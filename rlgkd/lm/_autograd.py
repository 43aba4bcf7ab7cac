"""A typed way to call hand-written autograd functions."""

from __future__ import annotations

from typing import Any, cast

import torch


def apply_function(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Return `function.apply(*inputs)`; torch leaves `apply` without annotations, which mypy refuses."""
    return cast(Any, function).apply(*inputs)
