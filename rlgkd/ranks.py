"""The processes that train one model together, and what they exchange: data parallelism with replicated models.

`torchrun --nproc_per_node N` starts N processes, the ranks, with the same arguments. All have whole copies of the
models and compute the same items, indices and coins. A rank samples and scores its share of the prompts; then all have
all texts (`gather`), and what depends on the whole batch runs on each rank alike, with the floats of one process. Only
what costs is shared again: the forward and backward passes over rows. Their sums (`sum`, `sum_gradients`) are equal on
all ranks to the bit, and so are the weights.

There is no DistributedDataParallel: the loss reads the layers of a model by themselves, past the forward pass that it
hooks into, its average is not Eq. 5's sum, and it requires equal numbers of micro-batches.

Every exchange of objects carries a value or an error from each rank. An exception on one rank therefore ends all of
them at their next exchange, and not after a timeout.

Objects are pickled, between the processes of one job alone and never through a file: the rendezvous of torchrun, which
torch expects in a network that is trusted, decides who belongs to the job.

Models that are shared out over the ranks are in rlgkd.sharding. Alone, every operation is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlgkd.errors import ProcessError, RlgkdError, SettingError, one_line
from rlgkd.types import Item, Trajectory

T = TypeVar("T")
TIMEOUT_MINUTES = 30.0
"""How long a rank waits for the others by default."""
BUCKET = 2**24
"""Numbers of gradients that are summed in one call: 64 MiB of float32."""
NOTE = "raised on rank"
"""Begins the note of an exception that all ranks know of."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, number: int) -> range:
        """Which of so many things in order are this rank's: neighbours, and as many as others have, or one more."""
        return range(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    def deal(self, costs: Sequence[int]) -> list[int]:
        """Which things are this rank's, in their order, if all ranks are to have about the same cost.

        The costliest are dealt first, each to the rank that has the least so far.
        """
        loads = [0] * self.size
        dealt = []
        for thing in sorted(range(len(costs)), key=lambda thing: -costs[thing]):
            rank = loads.index(min(loads))
            loads[rank] += costs[thing]
            if rank == self.rank:
                dealt.append(thing)
        return sorted(dealt)

    def gather(self, compute: Callable[[], T]) -> list[T]:
        """What `compute` returns on each rank, in the order of ranks; a collective call.

        Raises: what `compute` raised here, with a note of the rank, if this is the first rank on which it failed;
        ProcessError if it failed on another one, or if another process is gone.
        """
        if self.size == 1:
            return [compute()]
        own: T | _Failure
        failed: Exception | None = None
        try:
            own = compute()
        except Exception as error:
            if isinstance(error, ProcessError) or _is_known(error):  # all ranks are leaving by it already
                raise
            failed, own = error, _Failure(one_line(f"{type(error).__name__}: {error}"))
        found: list[T | _Failure] = [own] * self.size
        with self._connected():
            dist.all_gather_object(found, own)
        values: list[T] = []
        for rank, one in enumerate(found):
            if not isinstance(one, _Failure):
                values.append(one)
            elif rank == self.rank and failed is not None:
                failed.add_note(f"{NOTE} {rank} of {self.size}")
                raise failed
            else:
                raise ProcessError("rank", rank, f"it ended with {one.message}", reported=True) from failed
        return values

    def together(self, compute: Callable[[], T]) -> T:
        """What `compute` returns here, once it has returned on all ranks; raises as `gather`."""
        values: list[T] = []
        self.gather(lambda: values.append(compute()))
        return values[0]

    def from_main(self, compute: Callable[[], T]) -> T:
        """What `compute` returns on the main rank, which alone calls it; raises as `gather`."""
        return self.gather(lambda: [compute()] if self.main else [])[0][0]

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place, and return it; all ranks have the same bits.

        Raises: ProcessError if another process is gone.
        """
        if self.size > 1:
            with self._connected():
                dist.all_reduce(tensor)
        return tensor

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over the ranks."""
        if self.size == 1:
            return list(numbers)
        summed: list[float] = self.sum(torch.tensor(numbers, dtype=torch.float64, device="cpu")).tolist()
        return summed

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over the ranks; one without rows brings zeros. A gradient that no rank has stays None."""
        if self.size == 1:
            return
        there = self.sum(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device="cpu"))
        gradients: list[Tensor] = []
        for parameter, ranks in zip(parameters, there.tolist(), strict=True):
            if ranks:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Refuse to go on where a rank has other facts than the main one.

        Raises: SettingError on the rank that differs, with the name of the fact; ProcessError on the others.
        """

        def check() -> None:
            for name, fact in facts.items():
                if fact != theirs[name]:
                    remedy = f"rank 0 has {theirs[name]!r}; give all processes the same"
                    raise SettingError(name, fact, remedy)

        theirs = self.from_main(lambda: facts)
        self.together(check)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn what torch raises when another process is gone into one line."""
        try:
            yield
        except RuntimeError as error:
            raise self._gone(error) from error

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Turn what torch raises into one line, within the block, if another process is gone from a sharded pass.

        Raises: ProcessError; errors of other kinds as they are.
        """
        try:
            yield
        except RlgkdError:
            raise
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "/gloo/" in str(error):
                raise self._gone(error) from error
            raise

    def _gone(self, error: RuntimeError) -> ProcessError:
        why = "another one has ended, or did not answer within process_timeout; look for what it wrote"
        return ProcessError("processes", self.size, f"{why} ({one_line(error, 200)})")


ALONE = Ranks()
"""A process that trains by itself."""


def join(timeout: float = TIMEOUT_MINUTES) -> Ranks:
    """Join the processes of this job, once; alone without torchrun.

    Args:
        timeout: Minutes that a rank waits for the others in an exchange.

    Raises: ProcessError if the environment variables of torchrun are not those of a job, or the others do not come.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized() and {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        _join(timeout)
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def _join(timeout: float) -> None:
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    try:
        if int(size) <= 1:
            return
        if not 0 <= int(rank) < int(size):  # torch would wait for the others
            raise ValueError(f"ranks go from 0 to {int(size) - 1}")
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"  # objects go by gloo, which notices a process that is gone
            local = int(os.environ.get("LOCAL_RANK", 0))
            if local < torch.cuda.device_count():
                torch.cuda.set_device(local)
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout))
    except (ValueError, RuntimeError) as error:
        reason = one_line(error, 200)
        remedy = (
            f"it could not join the {size} processes of its job ({reason}); start all with torchrun (docs/scale.md)"
        )
        raise ProcessError("rank", rank, remedy) from error


def leave() -> None:
    """Leave the processes of this job, before this one ends."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def without_items(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Trajectories to send: of each item the key alone, for every rank has the items, whose columns may be anything."""
    return [replace(t, item=Item(key=t.item.key, prompt="")) for t in trajectories]


def with_items(trajectories: Sequence[Trajectory], items: Sequence[Item]) -> list[Trajectory]:
    """What `without_items` was given, by the items that this rank has itself."""
    by_key = {item.key: item for item in items}
    return [replace(t, item=by_key[t.item.key]) for t in trajectories]


@dataclass(frozen=True)
class _Failure:
    """What the other ranks get of an exception, which may be of a class that cannot be pickled."""

    message: str


def _is_known(error: BaseException) -> bool:
    return any(note.startswith(NOTE) for note in getattr(error, "__notes__", ()))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype and device with some `BUCKET` numbers together."""
    for _, same in groupby(gradients, key=lambda gradient: (gradient.dtype, gradient.device)):
        bucket: list[Tensor] = []
        for gradient in same:
            bucket.append(gradient)
            if sum(one.numel() for one in bucket) >= BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
