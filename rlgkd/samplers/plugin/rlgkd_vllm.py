"""A vLLM plugin: weights from a trainer by torch's own process groups. It runs in vLLM and imports no rlgkd.

vLLM's engines for weight transfer need CUDA on both sides, and its own code in the trainer. These two need torch alone:

    --weight-transfer-config '{"backend": "rlgkd-gloo"}'    through the hosts' memory; CPUs too
    --weight-transfer-config '{"backend": "rlgkd-nccl"}'    from GPU to GPU

(Written for vLLM 0.32, in which the first was run, on a CPU; the second was not.)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass
class GroupInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """How to join the trainer's group, in which it is rank 0."""

    master_address: str
    master_port: int
    rank_offset: int
    """The rank of this server's first process."""
    world_size: int
    timeout: float
    """Seconds that a broadcast is waited for."""


@dataclass
class TensorsInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The tensors that are broadcast, in their order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooEngine(WeightTransferEngine):  # type: ignore[misc]
    """Takes each tensor on the host, and lets the model load it as from a checkpoint."""

    init_info_cls, update_info_cls = GroupInfo, TensorsInfo
    group: Any = None

    def init_transfer_engine(self, init_info: GroupInfo) -> None:
        """Join the group; one of a trainer that is gone is left."""
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        patience = timedelta(seconds=init_info.timeout)
        store = TCPStore(
            init_info.master_address, init_info.master_port, init_info.world_size, is_master=False, timeout=patience
        )
        self.group = self.join(store, rank, init_info.world_size, patience)

    def join(self, store: Any, rank: int, size: int, patience: timedelta) -> Any:
        """The process group."""
        return dist.ProcessGroupGloo(store, rank, size, patience)

    def place(self) -> str | torch.device:
        """Where tensors arrive."""
        return "cpu"

    def start_weight_update(self) -> None:
        """Begin a reload, layer by layer."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take the tensors of a request."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: TensorsInfo) -> None:
        """Take the tensors as they come."""
        columns = (update_info.names, update_info.dtype_names, update_info.shapes)
        for name, dtype, shape in zip(*columns, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.place())
            self.group.broadcast(tensor, 0).wait()
            self.model.load_weights([(name, tensor)])

    def finish_weight_update(self) -> None:
        """End the reload."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


class NcclEngine(GlooEngine):
    """The same from GPU to GPU."""

    def join(self, store: Any, rank: int, size: int, patience: timedelta) -> Any:
        """The process group."""
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = patience
        return dist.ProcessGroupNCCL(store, rank, size, options)

    def place(self) -> str | torch.device:
        """Where tensors arrive."""
        return torch.device("cuda", torch.cuda.current_device())


def register() -> None:
    """Name the engines; vLLM calls this in each of its processes."""
    for name, engine in (("rlgkd-gloo", GlooEngine), ("rlgkd-nccl", NcclEngine)):
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, engine)
