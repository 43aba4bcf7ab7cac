"""Models whose weights are shared out over the ranks: torch's `fully_shard` (FSDP2), of which all is here.

A rank holds its part of each weight, of its gradient and of the optimizer's moments: a shard, one of torch's DTensors.

- While the model trains, or scores texts in micro-batches, its own forward pass gathers one layer after the other. Each
  pass is a collective call, so all ranks run as many (`rlgkd.agents.micro_batch`). Embeddings and head are gathered
  together, and stay until the gradient has been formed, or until `release`: the fused loss reads the head after the
  pass.
- While it samples or is evaluated it is `whole`: each rank has all weights, plain tensors in the place of shards, and
  runs as many passes as it needs. So the decoders, and the hand-written layers, read it as they read any other model.
- On disks are whole weights, as those of one process: `full` and `shard_like` go from one to the other.

torch averages gradients over the ranks, and Eq. 5's is a sum: `sum_gradients`. Its own factor for that, which
`set_gradient_divide_factor` takes, needs an operation that gloo does not have.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from rlgkd.errors import SettingError
from rlgkd.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

How = Literal["none", "full", "hybrid"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_sharded: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""Models that are shared out, and the names in their state dicts."""
_whole: WeakSet[nn.Module] = WeakSet()
"""Sharded models of which this process has all weights now."""


def shard(module: nn.Module, layers: Sequence[nn.Module], bodies: Sequence[nn.Module], ranks: Ranks, how: How) -> None:
    """Share a model's weights out over the ranks, in place; a collective call. Alone nothing changes.

    Args:
        module: The model with its head, equal on all ranks, which have it whole until here.
        layers: Its parts that are gathered by themselves; the rest is gathered with the head.
        bodies: Its parts without the head that are called by themselves.
        ranks: The processes of the job.
        how: `full` over all of them; `hybrid` over those of each machine, which hold all of it together.

    Raises: SettingError for `hybrid` where machines have other numbers of processes, or there is only one.
    """
    if ranks.size == 1 or how == "none" or is_sharded(module):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    shape = {"shard": ranks.size} if how == "full" else _machines(ranks)
    names = [*module.state_dict()]
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (*shape.values(),), mesh_dim_names=(*shape,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for number, body in enumerate(bodies):
        # Called past its model, at whose call alone embeddings and head would be gathered.
        name = f"run_body_{number}"
        setattr(module, name, MethodType(_without_self(body.forward), module))
        register_fsdp_forward_method(module, name)
        body.forward = getattr(module, name)
    _sharded[module] = names


def _without_self(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *inputs, **named: forward(*inputs, **named)


def _machines(ranks: Ranks) -> dict[str, int]:
    """The number of machines, which hold the same, and of processes on each, as torchrun says it."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    if local in (1, ranks.size) or ranks.size % local:
        remedy = f"there are {ranks.size} processes, {local} on this machine; start several on each of several machines"
        raise SettingError("sharding", "hybrid", f"{remedy}, or give full")
    return {"replicate": ranks.size // local, "shard": local}


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has shared out this model, so that its passes are collective calls."""
    return module in _sharded


@contextmanager
def whole(*models: Any) -> Iterator[None]:
    """Have all weights of these models on each rank within the block, to read them; a collective call at its begin.

    Args:
        models: Language models, of which those that are not sharded stay as they are; None is none.
    """
    roots = [module for module in _sharded_modules(models) if module not in _whole]
    parts: list[Any] = [part for root in roots for part in root.modules() if hasattr(part, "unshard")]
    for root in roots:
        _whole.add(root)
    try:
        for part in parts:
            part.reshard()  # what a pass has gathered may be older than the shards
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part not in roots, recurse=False)
            part.reshard()
        for root in roots:
            _whole.discard(root)


def release(*models: Any) -> None:
    """Give back what passes have gathered of these models and no gradient has given back, such as a teacher's head."""
    roots: list[Any] = _sharded_modules(models)
    for root in roots:
        if hasattr(root, "reset_iter_state"):  # since torch 2.13; it forgets the passes, which torch keeps a list of
            root.reset_iter_state()
        for part in root.modules():
            if hasattr(part, "reshard"):
                part.reshard()


def _sharded_modules(models: Sequence[Any]) -> list[nn.Module]:
    """Those of these models that are shared out, each once and in one order on all ranks."""
    modules = dict.fromkeys(getattr(model, "module", None) for model in models)
    return [module for module in modules if isinstance(module, nn.Module) and is_sharded(module)]


def state_dict(module: nn.Module) -> dict[str, Tensor]:
    """A model's state dict; of a sharded one within `whole` with all weights, which torch's own gives back first."""
    if module not in _whole:
        return module.state_dict()
    parts: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    parts |= module.named_buffers(remove_duplicate=False)
    return {name: parts[name].detach() for name in _sharded[module]}


def shallow_copy(module: ModuleT) -> ModuleT:
    """A copy with the same weights; of a sharded model, whose class torch has changed, one of the class before."""
    if not is_sharded(module):
        return copy.copy(module)
    kind: type[ModuleT] = type(module).__mro__[2]
    twin = kind.__new__(kind)
    twin.__dict__.update(module.__dict__)
    return twin


def is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is this rank's part of one that all ranks have together."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor: its part of a shard's, all of any other."""
    return tensor.to_local() if is_shard(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """A tensor with all its values: of a shard a new one, by a collective call; any other as it is."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This rank's shard of a tensor that all ranks have, as it has one of another tensor; no call to the others."""
    if not is_shard(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(other.device)
    return distribute_tensor(placed, other.device_mesh, other.placements, src_data_rank=None)


def sum_gradients(parameters: Sequence[Tensor], ranks: Ranks) -> None:
    """Make the gradients sums over the ranks; those of shards are averages by now."""
    ranks.sum_gradients([parameter for parameter in parameters if not is_shard(parameter)])
    for parameter in parameters:
        if is_shard(parameter) and parameter.grad is not None:
            parameter.grad.mul_(ranks.size)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, each of which may be a shard."""
    norms = [full(torch.nn.utils.get_total_norm(kind)) for kind in _by_kind(gradients)]
    return norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms)


def clip_gradients(parameters: Sequence[Tensor], largest: float) -> Tensor:
    """Scale the gradients down to a norm, as torch's `clip_grad_norm_` does; returns the norm that they had."""
    norm = total_norm([p.grad for p in parameters if p.grad is not None])
    for kind in _by_kind(parameters):
        torch.nn.utils.clip_grads_with_norm_(kind, largest, norm)
    return norm


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Shards and others apart, since torch takes no mixture; without a kind of which there is none."""
    kinds = [[tensor for tensor in tensors if is_shard(tensor) == sharded] for sharded in (True, False)]
    return [kind for kind in kinds if kind]
