"""The processes of one job, as torchrun starts them: joining them, what the first reads for all, and how a job ends.

A job says once why it failed, whichever process found out: the first to fail says it, and the others end because it has
gone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from alges_fast.errors import UserError

T = TypeVar("T")

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""Parts of what gloo (the first three) and NCCL say when a process is gone; see `_is_lost_process`."""

PATIENCE = timedelta(days=7)
"""How long a process waits for the first one to train. One that dies is noticed at once, by its closed connections."""

GRACE = 2.0
"""Seconds in which processes that fail at the same time may find out which was the first."""


class LostProcess(Exception):
    """Another process of this job has gone, so that this one cannot go on."""


@dataclass(frozen=True)
class Job:
    """The processes that do something together.

    Attributes:
        group: all of them; None where this one is alone.
    """

    group: dist.ProcessGroup | None

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which reads and writes files for all."""
        return self.group is None or dist.get_rank(self.group) == 0

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    def from_leader(self, read: Callable[[], T]) -> T:
        """What the first process reads from its files, on every process."""
        if self.group is None:
            return read()
        found = [read() if self.leads else None]
        dist.broadcast_object_list(found, src=0, group=self.group)
        value: T = found[0]  # type: ignore[assignment]
        return value


def in_job() -> bool:
    """Whether the environment that torchrun sets says that this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads_job() -> bool:
    """Whether this process is the first of its job, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


def device_of(name: str) -> torch.device:
    """This process's device: of several on one machine each has a GPU of its own.

    Args:
        name: auto, cpu or cuda.

    Raises:
        UserError: cuda was asked for and there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no usable GPU; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if in_job() else torch.device("cuda")


def join() -> dist.ProcessGroup | None:
    """The group of this job's processes, which it joins; None where this one is alone."""
    if not in_job():
        return None
    if not dist.is_initialized():
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        store.set_timeout(PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        _stores.append(store)
    return dist.group.WORLD


_stores: list[Any] = []
"""Where the processes of this job met, once it has joined them."""


def is_first_to_fail() -> bool:
    """Whether this process should say why the job fails. Before they have joined the first process does.

    The first process holds what the others ask here, so it stays a moment for those that fail at the same time.
    """
    if not _stores:
        return leads_job()
    store = _stores[0]
    try:
        is_first = int(store.add("failed", 1)) == 1
        end = time.monotonic() + GRACE
        while leads_job() and int(store.add("failed", 0)) < dist.get_world_size() and time.monotonic() < end:
            time.sleep(0.05)
    except RuntimeError:  # the store went with the process that held it
        return True
    return is_first


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
