"""Where a run goes on: the device, the processes of its job, and the locks between several jobs.

The first process of a job leads: it trains, and reads and writes the run's files, for all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn

from alges_fast import atomic
from alges_fast.job import Job, join
from alges_fast.training.device import fabric_on

LOCK = ".lock"
"""Held under OUT while files there are written, and under OUT/<strategy>/seed<k> while its rounds are run."""


@dataclass(frozen=True)
class Processes(Job):
    """The processes that make a run together.

    Attributes:
        fabric: this process's device and precision.
    """

    fabric: Fabric

    @property
    def device(self) -> torch.device:
        device: torch.device = self.fabric.device
        return device

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
    """Join the processes of this job, as the environment that torchrun sets describes it; see `fabric_on`."""
    fabric = fabric_on(device, precision)
    return Processes(join(), fabric)
