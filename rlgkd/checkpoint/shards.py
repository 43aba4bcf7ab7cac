"""Tensors in parts: each process writes its own, by torch's distributed checkpoint, and reads what it has of each.

The files are safetensors, whose headers say where a part lies in its tensor (`HuggingFaceStorageWriter`); torch's own
format is not used, for its index is pickled. Tensors that all processes have alike are written by one of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rlgkd.checkpoint.state import storable
from rlgkd.ranks import Ranks
from rlgkd.sharding import is_shard


def write_shards(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], ranks: Ranks) -> list[Path]:
    """Write what each process has of the tensors into `folder`, which all see; a collective call.

    Args:
        folder: An empty folder.
        tensors: By kind and name; a kind has no slash in it.
        ranks: The processes that call.

    Returns: the files that this process has written, flushed to the disk.

    Raises: OSError if a process cannot write, on all of them.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    flat = {f"{kind}/{name}": tensor.detach() for kind, named in tensors.items() for name, tensor in named.items()}
    flat |= storable({name: tensor for name, tensor in flat.items() if not is_shard(tensor)}, writes=True)
    with _as_errors():
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(flat, storage_writer=writer, no_dist=ranks.size == 1)
    return [*folder.glob(f"shard-{ranks.rank + 1:05}-*")]


def read_shards(folder: Path, like: Callable[[str, str], Tensor | None]) -> dict[str, dict[str, Tensor]]:
    """Read all tensors in `folder`, whatever the number of processes that wrote it; no call to the others.

    Args:
        folder: What `write_shards` has filled.
        like: Returns a tensor as it is now, by kind and name; one that is sharded, and of the saved shape, is read as
            such a shard.

    Returns:
        New tensors by kind and name: on the CPU, or where the shard is that one is like; of the saved precision.

    Raises: ValueError if parts of a tensor are missing; OSError if the files cannot be read.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    tensors = {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        if not isinstance(saved, TensorStorageMetadata):
            raise TypeError(f"{name} is no tensor")
        if sum(part.sizes.numel() for part in saved.chunks) != saved.size.numel():
            raise ValueError(f"parts of {name} are missing")
        now, dtype = like(*name.split("/", 1)), saved.properties.dtype
        if now is not None and is_shard(now) and now.shape == saved.size:
            tensors[name] = torch.empty_like(now, dtype=dtype, requires_grad=False)
        else:
            tensors[name] = torch.empty(saved.size, dtype=dtype)
    with _as_errors():
        load(tensors, storage_reader=reader, no_dist=True)
    by_kind: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, rest = name.split("/", 1)
        by_kind.setdefault(kind, {})[rest] = tensor
    return by_kind


@contextmanager
def _as_errors() -> Iterator[None]:
    """Raise the first cause of what torch collects from all processes, which is no Exception; without its warnings."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            # One process without a process group is meant; and torch's own use of what it has deprecated.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed")
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
            yield
    except CheckpointException as error:
        cause, _ = error.failures[min(error.failures)]
        raise cause from error
