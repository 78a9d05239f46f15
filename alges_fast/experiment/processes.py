"""Where a run goes on: the device, the processes of one job (torchrun), and the locks between several jobs.

The first process of a job leads: it trains, and reads and writes the run's files, for all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn

from alges_fast import atomic
from alges_fast.errors import UserError

T = TypeVar("T")

LOCK = ".lock"
"""Held under OUT while files there are written, and under OUT/<strategy>/seed<k> while its rounds are run."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""Parts of what gloo (the first three) and NCCL say when a process is gone; see `_is_lost_process`."""

PATIENCE = timedelta(days=7)
"""How long a process waits for the first one to train. One that dies is noticed at once, by its closed connections."""


class LostProcess(Exception):
    """Another process of this job has gone, so that this one cannot go on."""


@dataclass(frozen=True)
class Processes:
    """The processes that make a run together.

    Attributes:
        fabric: this process's device and precision.
        group: all of them; None where this one is alone.
    """

    fabric: Fabric
    group: dist.ProcessGroup | None

    @property
    def leads(self) -> bool:
        """Whether this process trains and writes."""
        return self.group is None or dist.get_rank(self.group) == 0

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.fabric.device
        return device

    def from_leader(self, read: Callable[[], T]) -> T:
        """What the first process reads from its files, on every process."""
        if self.group is None:
            return read()
        found = [read() if self.leads else None]
        dist.broadcast_object_list(found, src=0, group=self.group)
        value: T = found[0]  # type: ignore[assignment]
        return value

    def share_weights(self, model: nn.Module) -> None:
        """Give every process the first one's weights."""
        if self.group is not None:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0, group=self.group)

    @contextlib.contextmanager
    def claimed(self, folder: Path, *, wait: bool) -> Iterator[bool]:
        """Hold a folder's lock for the whole job; False if another job has it and `wait` is False."""
        with contextlib.ExitStack() as stack:
            yield self.from_leader(lambda: stack.enter_context(atomic.locked(folder / LOCK, wait=wait)))


def launch(device: str, precision: str) -> Processes:
    """Join the processes of this job, as the environment that torchrun sets describes it.

    Args:
        device: auto, cpu or cuda.
        precision: as fabric names it.

    Raises:
        UserError: cuda is wanted and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no usable GPU; use --device cpu or auto")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if use_cuda:
        # Equal picks from equal seeds: no kernel whose sums depend on the order in which threads arrive.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    fabric = Fabric(
        accelerator="cuda" if use_cuda else "cpu", devices=[local_rank] if use_cuda else 1, precision=precision
    )
    group = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=PATIENCE)
        group = dist.group.WORLD
    return Processes(fabric, group)


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raise LostProcess for what torch.distributed raises where another process has gone: a bare RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if _is_lost_process(error):
            raise LostProcess("another process of this job has stopped; the same command continues the run") from error
        raise


def _is_lost_process(error: RuntimeError) -> bool:
    """Only the store that processes meet at has types for it. gloo raises a bare RuntimeError (torch 2.14), and NCCL's
    type stands for mistakes of its caller too: those are told by their words, here and nowhere else."""
    if not dist.is_initialized():  # no process had joined yet
        return False
    return isinstance(error, (dist.DistNetworkError, dist.DistStoreError)) or any(part in str(error) for part in LOST)
