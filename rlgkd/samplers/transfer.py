"""How weights come to vLLM servers: as a file that they load, or through a process group.

Between `/pause` and `/resume` nothing is sampled; then what was cached of the old weights is dropped. The endpoints are
those of a server that runs with VLLM_SERVER_DEV_MODE=1. (The endpoints are those of vLLM 0.32.)

The process group is torch's own, by an engine that the plugin in rlgkd/samplers/plugin adds to vLLM: gloo through the
hosts' memory, or NCCL between GPUs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx2
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rlgkd.background import BackgroundTask
from rlgkd.errors import RlgkdError, SamplerError, one_line
from rlgkd.permissions import follow_umask
from rlgkd.vllm_server import VllmServer, headers

By = Literal["path", "gloo", "nccl"]
FILE = "model.safetensors"
BACKENDS = {"gloo": "rlgkd-gloo", "nccl": "rlgkd-nccl"}
"""The plugin's engines, as `--weight-transfer-config` names them."""


class Transfer(Protocol):
    """A way for weights to come to servers."""

    def push(self, weights: Mapping[str, Tensor], version: str) -> None:
        """Bring weights to all servers, which name them by `version`; returns when they are there.

        Raises: ModelError or SamplerError if they may not be; what the servers have is then unknown.
        """
        ...


def open_transfer(by: By, servers: Sequence[VllmServer], *, folder: str | None, timeout: float) -> Transfer:
    """The way of this name.

    Args:
        by: Its name.
        servers: Which get the weights.
        folder: For `path`: where the file is written, a folder that all servers see under this name; None is one
            among the temporary files of this machine.
        timeout: Seconds that a server may take.
    """
    return FileTransfer(servers, folder) if by == "path" else GroupTransfer(servers, by, timeout)


class FileTransfer:
    """Weights by a file that the servers load."""

    def __init__(self, servers: Sequence[VllmServer], folder: str | None) -> None:
        self.servers = servers
        self.folder = Path(tempfile.mkdtemp(prefix="rlgkd-weights-") if folder is None else folder).absolute()
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def push(self, weights: Mapping[str, Tensor], version: str) -> None:
        """See `Transfer`; the file is whole under its name before a server reads it."""
        alone: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in weights.items():
            host = tensor.cpu().contiguous()
            alone[name] = host.clone() if host.data_ptr() in seen else host  # safetensors refuses shared memory
            seen.add(host.data_ptr())
        new = self.folder / f".{FILE}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(alone, new, {"format": "pt", "version": version})
            follow_umask([new])
            new.replace(self.folder / FILE)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            remedy = f"the weights could not be written there ({one_line(error, 200)}); free space, or name another"
            raise SamplerError("sampler_folder", str(self.folder), remedy) from error
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        post_all(self.servers, "/pause?mode=keep", None)
        post_all(self.servers, "/collective_rpc", body)
        _go_on(self.servers)


class GroupTransfer:
    """Weights by a broadcast from this process to all processes of all servers."""

    def __init__(self, servers: Sequence[VllmServer], by: By, timeout: float) -> None:
        self.servers, self.by, self.timeout = servers, by, timeout
        self._group: Any = None

    def push(self, weights: Mapping[str, Tensor], version: str) -> None:
        """See `Transfer`."""
        if self._group is None:
            self._group = self._joined()
        sent = {name: self._placed(tensor) for name, tensor in weights.items()}
        info = {
            "names": list(sent),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in sent.values()],
            "shapes": [list(tensor.shape) for tensor in sent.values()],
        }
        post_all(self.servers, "/pause?mode=keep", None)
        post_all(self.servers, "/start_weight_update", {})

        def broadcast(done: Callable[[], bool]) -> None:
            for tensor in sent.values():
                if done():  # a server has failed, and will not take the rest
                    return
                self._group.broadcast(tensor, 0).wait()

        try:
            post_all(self.servers, "/update_weights", {"update_info": info}, meanwhile=broadcast)
        except RuntimeError as error:
            if isinstance(error, RlgkdError):
                raise
            raise self._error(f"the weights did not reach the servers: {one_line(error, 200)}") from error
        post_all(self.servers, "/finish_weight_update", {"weight_version": version})
        _go_on(self.servers)

    def _joined(self) -> Any:
        """The process group, in which this process is the first."""
        sizes = [_world_size(answer) for answer in post_all(self.servers, "/get_world_size", None, get=True)]
        host, size = _own_address(self.servers[0]), 1 + sum(sizes)
        patience = timedelta(seconds=self.timeout)
        store = TCPStore(host, 0, size, is_master=True, timeout=patience, wait_for_workers=False)
        bodies = [
            {
                "init_info": {
                    "master_address": host,
                    "master_port": store.port,
                    "rank_offset": 1 + sum(sizes[:number]),
                    "world_size": size,
                    "timeout": self.timeout,
                }
            }
            for number in range(len(sizes))
        ]
        joined: list[Any] = []

        def join(done: Callable[[], bool]) -> None:
            if self.by == "gloo":
                joined.append(dist.ProcessGroupGloo(store, 0, size, patience))
            else:
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = patience
                joined.append(dist.ProcessGroupNCCL(store, 0, size, options))

        try:
            post_all(self.servers, "/init_weight_transfer_engine", bodies, meanwhile=join)
        except RuntimeError as error:
            if isinstance(error, RlgkdError):
                raise
            raise self._error(f"no process group could be formed with the servers: {one_line(error, 200)}") from error
        return joined[0]

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous() if self.by == "nccl" else tensor.cpu().contiguous()

    def _error(self, what: str) -> SamplerError:
        config = f'--weight-transfer-config \'{{"backend": "{BACKENDS[self.by]}"}}\''
        remedy = f"{what}; start each with {config} and rlgkd's plugin (docs/scale.md), and --resume"
        return SamplerError("sampler_weights", self.by, remedy)


def post_all(
    servers: Sequence[VllmServer],
    path: str,
    bodies: object,
    *,
    get: bool = False,
    meanwhile: Callable[[Callable[[], bool]], None] | None = None,
) -> list[Any]:
    """Post to a path of all servers at once, once each, and return their answers.

    Args:
        servers: Who is asked.
        path: The same for all.
        bodies: One JSON object for all, or a list with one for each.
        get: Whether to get the path in place of posting to it.
        meanwhile: Called while they work, with a function that says whether all have answered.

    Raises: ModelError for the first server that does not answer, or that refuses; what `meanwhile` raises.
    """
    found: list[Any] = [ConnectionError("it was not waited for") for _ in servers]

    async def ask(number: int, server: VllmServer) -> None:
        body = None if get else (bodies[number] if isinstance(bodies, list) else bodies or {})
        try:
            async with AsyncExitStack() as stack:
                endpoint = server.endpoint(path, retries=0, may_be_empty=True)
                post = await stack.enter_async_context(endpoint.open(headers()))
                found[number] = await post(body)
        except Exception as error:
            found[number] = error

    async def ask_all() -> None:
        await asyncio.gather(*(ask(number, server) for number, server in enumerate(servers)))

    task = BackgroundTask(ask_all(), lambda: None)
    raised: BaseException | None = None
    if meanwhile is not None:
        try:
            meanwhile(task.done)
        except Exception as error:  # a server's own words say more than that it did not come
            raised = error
        except BaseException:
            task.cancel()
            raise
    task.result()
    for server, answer in zip(servers, found, strict=True):
        if isinstance(answer, Exception):
            dev_mode = "start it with VLLM_SERVER_DEV_MODE=1: " if " answered 404" in str(answer) else ""
            raise server.error(
                f"it did not take the weights ({path}): {dev_mode}{one_line(answer, 300)}; what it samples with is "
                "unknown: start it again, and --resume"
            ) from (raised or answer)
    if raised is not None:
        raise raised
    return found


def _go_on(servers: Sequence[VllmServer]) -> None:
    """Drop what was computed with the old weights, and sample again."""
    post_all(servers, "/reset_prefix_cache", None)
    post_all(servers, "/resume", None)


def _world_size(answer: Any) -> int:
    size = answer.get("world_size") if isinstance(answer, dict) else None
    if type(size) is not int or size < 1:
        raise SamplerError("sampler", one_line(answer, 80), "it does not say how many processes it has; give vLLM")
    return size


def _own_address(server: VllmServer) -> str:
    """This machine's address as a server sees it."""
    url = httpx2.URL(server.endpoint("").url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((url.host, url.port or 80))  # sends nothing: it asks the routing table
        return str(probe.getsockname()[0])
