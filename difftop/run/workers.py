"""Data-parallel training: the processes that torchrun starts, each with its share of every batch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(days=1)  # the others wait while the first one evaluates

T = TypeVar("T")


class WorkerLostError(RuntimeError):
    """Another worker is gone, and training can't go on without its share of the batches."""


def started_by_torchrun() -> bool:
    """Whether this process is one of torchrun's."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@dataclass(frozen=True)
class Workers:
    """Where this process stands among those that train together; one alone by default.

    The k-th batch is the same for any number of workers: worker r takes its windows r, r + count, ... The gradient of a step is
    the mean of the workers' gradients, so all weights stay equal.

    Attributes:
        rank: number of this process; the first one evaluates, reports and saves.
        count: how many there are.
        device: `cpu`, `cuda`, or the CUDA device of this process.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this is the process that evaluates, reports and saves."""
        return self.rank == 0

    def share(self, index: Tensor) -> Tensor:
        """This worker's part of the windows `index [B]`."""
        return index[self.rank :: self.count]

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the workers, which must all give the same shapes; one message for all of them."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([x.detach().flatten().to(self.device, torch.float32) for x in tensors])
        self._sum_(flat)
        flat /= self.count
        for x, mean in zip(tensors, torch.split(flat, [x.numel() for x in tensors]), strict=True):
            x.detach().copy_(mean.view_as(x))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any worker; all get the same answer."""
        if self.count == 1:
            return flag
        total = torch.tensor(float(flag), device=self.device)
        self._sum_(total)
        return bool(total > 0)

    def _sum_(self, tensor: Tensor) -> None:
        """Adds up over the workers, in place. Gloo notices at once that a process is gone; NCCL ends the process that waits."""
        with _lost():
            dist.all_reduce(tensor)

    def lead_first(self, work: Callable[[], T]) -> T:
        """Does `work` in the first process, and only then in the others: what it makes is there for them."""
        if not self.leads:
            self.wait()
        result = work()
        if self.leads:
            self.wait()
        return result

    def told(self, value: T) -> T:
        """The first process's `value`."""
        if self.count == 1:
            return value
        box = [value]
        with _lost():
            dist.broadcast_object_list(box, src=0, device=torch.device(self.device))
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            with _lost():
                dist.barrier()


ALONE = Workers()


@contextmanager
def _lost() -> Iterator[None]:
    """What torch says of a connection that broke, in one sentence."""
    try:
        yield
    except RuntimeError as error:
        said = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0].strip() or type(error).__name__
        raise WorkerLostError(
            f"another worker of this run is gone ({said}); the last checkpoint is whole: run the same torchrun command again on "
            "every node, or with --max_restarts=N on the node that was lost."
        ) from error


@contextmanager
def joined(device: str) -> Iterator[Workers]:
    """The workers that torchrun started, over NCCL on CUDA and gloo on CPUs; a process of its own is alone.

    Args:
        device: `cpu` or `cuda`.
    """
    if not started_by_torchrun():
        yield Workers(device=device)
        return
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
    try:
        yield Workers(rank, count, device)
    finally:
        dist.destroy_process_group()
