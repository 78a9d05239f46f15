"""Pool scoring and seeding at 1 and 2 processes of one thread each, and what a pick costs in messages alone.

    python -m pytest bench/test_bench_processes.py --benchmark-json=bench/results/processes.json

The model of docs/scaling.md: P processes score N images in N / P times what one image takes, and pick n points in n
times (shard's bytes / rate at which a process reads points + messages of a pick). The messages are measured on shards
of a few rows, the rate with a plain sum too: processes of one machine share its memory.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from floors import copy_bandwidth
from torch import Tensor

from alges_fast import embed_pool
from alges_fast._native import native_status
from alges_fast.models import build_model
from alges_fast.seeding import kmeans_plusplus

IMAGES, CLASSES, SIDE, BATCH = 16, 13, 224, 8
POINTS, COLUMNS, PICKS = 200_000, 208, 40
FEW = 64  # points of the pool that leaves only the messages

Job = Callable[[], object]


def jobs(group: dist.ProcessGroup | None, rank: int, size: int) -> dict[str, Job]:
    """What every process does, over its share."""
    model = build_model("unet", "resnet18", num_classes=CLASSES, seed=0).eval()
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    points = torch.randn(POINTS, COLUMNS, generator=torch.Generator().manual_seed(1))[rank::size].clone()

    def seed(shard: Tensor, picks: int) -> Tensor:
        index = torch.arange(rank, len(shard) * size, size)
        return kmeans_plusplus(shard, picks, group=group, global_index=index).indices

    return {
        "scoring": lambda: embed_pool(model, images, batch_size=BATCH, progress=False, group=group),
        "seeding": lambda: seed(points, PICKS),
        "reading": lambda: points.sum(),
        "messages": lambda: seed(points[: FEW // size], PICKS),
    }


class Team:
    """This process and size - 1 others, which do the job that this one names."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.group: dist.ProcessGroup | None = None
        if size > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
            self.others = multiprocessing.spawn(follow, args=(size, address), nprocs=size - 1, join=False)
            dist.init_process_group("gloo", init_method=address, rank=0, world_size=size)
            self.group = dist.group.WORLD
        self.jobs = jobs(self.group, 0, size)

    def run(self, name: str) -> None:
        """Start together, end together."""
        if self.group is not None:
            dist.broadcast_object_list([name], src=0)
        if name != "stop":
            self.jobs[name]()
            if self.group is not None:
                dist.barrier()

    def close(self) -> None:
        self.run("stop")
        if self.group is not None:
            self.others.join()
            dist.destroy_process_group()


def follow(number: int, size: int, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=number + 1, world_size=size)
    known = jobs(dist.group.WORLD, number + 1, size)
    while True:
        named: list[Any] = [None]
        dist.broadcast_object_list(named, src=0)
        if named[0] == "stop":
            break
        known[named[0]]()
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    team = Team(request.param)
    yield team
    team.close()
    torch.set_num_threads(threads)


def record(benchmark: Any, team: Team, job: str, units: int, unit: str) -> None:
    benchmark.pedantic(team.run, args=(job,), rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(processes=team.size, threads_each=1, native=native_status(), torch=torch.__version__)
    benchmark.extra_info[f"ms_per_{unit}"] = 1e3 * benchmark.stats["median"] / units


def test_scoring(benchmark: Any, team: Team) -> None:
    record(benchmark, team, "scoring", IMAGES, "image")


def test_seeding(benchmark: Any, team: Team) -> None:
    record(benchmark, team, "seeding", PICKS, "pick")
    benchmark.extra_info["gb_per_s_together"] = 4 * POINTS * COLUMNS * PICKS / benchmark.stats["median"] / 1e9
    benchmark.extra_info["copy_gb_per_s_one_thread"] = copy_bandwidth() / 1e9


def test_reading(benchmark: Any, team: Team) -> None:
    """A plain sum over the shards: whether processes add to what the memory delivers."""
    record(benchmark, team, "reading", 1, "pass")
    benchmark.extra_info["gb_per_s_together"] = 4 * POINTS * COLUMNS / benchmark.stats["median"] / 1e9


def test_messages_of_a_pick(benchmark: Any, team: Team) -> None:
    record(benchmark, team, "messages", PICKS, "pick")
