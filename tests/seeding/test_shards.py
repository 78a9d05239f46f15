"""One pool cut over ranks: the same picks as in one piece, and errors that reach every rank.

Many cuts are tried with threads for ranks, which is quick; processes that talk through gloo show the same for fewer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.seeding import k_center_greedy, kmeans_plusplus, seeding
from alges_fast.seeding.ranks import Ranks

WORLDS = (2, 4)  # processes
Cut = Callable[[int, int, int], Tensor]  # (points, ranks, rank) -> indices of the rank's points


def contiguous(points: int, ranks: int, rank: int) -> Tensor:
    """Unequal runs; of 3 and more ranks the second holds nothing."""
    if ranks >= 3:
        sizes = [1 + other if other != 1 else 0 for other in range(ranks)]
    else:
        sizes = list(range(1, ranks + 1))
    edges = torch.tensor([0, *sizes]).cumsum(0) * points // sum(sizes)
    return torch.arange(int(edges[rank]), int(edges[rank + 1]))


def strided(points: int, ranks: int, rank: int) -> Tensor:
    return torch.arange(rank, points, ranks)


def cases() -> dict[str, tuple[Callable[..., Any], Tensor, dict[str, Any]]]:
    draw = torch.Generator().manual_seed(4)
    clusters = 4 * torch.randn(9, 24, generator=draw)
    points = clusters[torch.randint(9, (1003,), generator=draw)] + torch.randn(1003, 24, generator=draw)
    found: dict[str, tuple[Callable[..., Any], Tensor, dict[str, Any]]] = {}
    for backend in ("cpu", "torch") if cpu_kernels() else ("torch",):
        for name, function, pool, arguments in (
            ("plain", kmeans_plusplus, points, {"n_clusters": 15}),
            ("greedy", kmeans_plusplus, points, {"n_clusters": 15, "trials": 4}),
            ("largest", kmeans_plusplus, points, {"n_clusters": 9, "first": "largest"}),
            ("existing", kmeans_plusplus, points, {"n_clusters": 9, "trials": 2, "existing": points[::200] + 1}),
            ("float64", kmeans_plusplus, points.double(), {"n_clusters": 9, "trials": 3}),
            ("bfloat16", kmeans_plusplus, points.bfloat16(), {"n_clusters": 9}),
            ("repeated", kmeans_plusplus, points[:3].repeat(20, 1), {"n_clusters": 10}),
            ("tiny", kmeans_plusplus, points * 2.0**-90, {"n_clusters": 15}),
            ("rounds", kmeans_plusplus, points, {"n_clusters": 30}),
            ("rounds greedy", kmeans_plusplus, points, {"n_clusters": 30, "trials": 3, "existing": points[:3] + 1}),
            ("farthest", k_center_greedy, points, {"n_clusters": 15}),
        ):
            found[f"{backend} {name}"] = (function, pool, {**arguments, "backend": backend, "seed": 11})
    return found


def seed_all(group: Any, rank: int, ranks: int, cut: Cut) -> dict[str, tuple[Tensor, Tensor]]:
    """(indices, this rank's D²) of every case, of the rank's shard."""
    seeding.ROUNDS_ABOVE, seeding.ROUNDS_FROM = 20, 0
    results = {}
    for name, (function, points, arguments) in cases().items():
        mine = cut(len(points), ranks, rank)
        index = mine if cut is strided else None
        result = function(points[mine], **arguments, group=group, global_index=index)
        results[name] = (result.indices, result.min_sq_distance)
    return results


class Threads(Ranks):
    """Ranks that are threads of this process, and pass each other values through a list."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: list[Any]) -> None:
        super().__init__(None, torch.device("cpu"))
        self.rank, self.size, self.barrier, self.board = rank, barrier.parties, barrier, board

    def gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait()
        values = list(self.board)
        self.barrier.wait()
        return values

    def exchange(self, table: Sequence[float]) -> list[list[float]]:
        return self.gather(list(table))

    def rows(self, own: Tensor, owners: Sequence[int]) -> Tensor:
        held = self.gather(own)
        return torch.stack([held[owner][row] for row, owner in enumerate(owners)])

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self.gather(values)).sum(dim=0)


def errors(group: dist.ProcessGroup, rank: int) -> dict[str, str]:
    """What this rank is told when rank 1 of 3 does something wrong."""
    points, same = torch.randn(10, 4), torch.ones(1, 4)
    spoilt = points.clone()
    spoilt[3, 2] = torch.nan
    wrong = rank == 1
    calls: dict[str, Callable[[], Any]] = {
        "NaN": lambda: kmeans_plusplus(spoilt if wrong else points, 4, group=group),
        "too many": lambda: kmeans_plusplus(points, 31, group=group),
        "shape": lambda: kmeans_plusplus(points[0] if wrong else points, 4, group=group),
        "columns": lambda: kmeans_plusplus(points[:, :3] if wrong else points, 4, group=group),
        "type": lambda: kmeans_plusplus([[1.0]] if wrong else points, 4, group=group),
        "seed": lambda: kmeans_plusplus(points, 4, seed=int(wrong), group=group),
        "existing": lambda: k_center_greedy(points, 4, existing=points[: 1 + wrong], group=group),
        "values": lambda: k_center_greedy(points, 4, existing=same + int(wrong), group=group),
        "index": lambda: kmeans_plusplus(points, 30, global_index=torch.arange(10), group=group),
    }
    told = {}
    for name, call in calls.items():
        try:
            call()
        except (TypeError, ValueError) as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=max(WORLDS))
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in WORLDS}
    results: dict[str, Any] = {}
    for ranks, group in groups.items():
        if rank < ranks:
            for cut in (contiguous, strided):
                results[f"{ranks} {cut.__name__}"] = seed_all(group, rank, ranks, cut)
    three = dist.new_group([0, 1, 2])
    if rank < 3:
        results["errors"] = errors(three, rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of 4 processes got."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=max(WORLDS))
    return [torch.load(folder / f"{rank}.pt") for rank in range(max(WORLDS))]


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[Tensor, Tensor]]:
    """The same in one piece and one process."""
    usual = seeding.ROUNDS_ABOVE, seeding.ROUNDS_FROM
    results = seed_all(None, 0, 1, contiguous)
    seeding.ROUNDS_ABOVE, seeding.ROUNDS_FROM = usual
    return results


@pytest.mark.parametrize("cut", [contiguous, strided])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_any_cut_gives_the_picks_of_the_whole(
    world: int, cut: Cut, alone: dict[str, tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROUNDS_ABOVE", "ROUNDS_FROM"):
        monkeypatch.setattr(seeding, name, getattr(seeding, name))  # put back after
    monkeypatch.setattr(seeding, "Ranks", lambda group, device: group or Ranks(None, device))
    barrier, board = threading.Barrier(world), [None] * world
    with ThreadPoolExecutor(world) as ranks:
        started = [ranks.submit(seed_all, Threads(rank, barrier, board), rank, world, cut) for rank in range(world)]
        check(world, cut, [one.result() for one in started], alone)


@pytest.mark.parametrize("cut", [contiguous, strided])
@pytest.mark.parametrize("world", WORLDS)
def test_processes_give_the_picks_of_the_whole(
    world: int, cut: Cut, processes: list[dict[str, Any]], alone: dict[str, tuple[Tensor, Tensor]]
) -> None:
    check(world, cut, [processes[rank][f"{world} {cut.__name__}"] for rank in range(world)], alone)


def check(world: int, cut: Cut, ranks: list[Any], alone: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, (indices, distances) in alone.items():
        for rank in range(world):
            theirs, own_distances = ranks[rank][name]
            assert torch.equal(theirs, indices), (name, rank)
            assert torch.equal(own_distances, distances[cut(len(distances), world, rank)]), (name, rank)


def test_an_error_on_one_rank_is_raised_on_all(processes: list[dict[str, Any]]) -> None:
    for rank in range(3):
        told = processes[rank]["errors"]
        assert told["NaN"] == "ValueError: points must be finite, got NaN or Inf at index 13"
        assert told["too many"] == "ValueError: n_clusters must be at most the number of points, 30, got 31"
        assert told["seed"] == "ValueError: seed must be the same on every rank, got [0, 1, 0]"
        assert told["columns"] == "ValueError: D (columns of points) must be the same on every rank, got [4, 3, 4]"
        assert "number of existing centres must be the same on every rank" in told["existing"]
        assert "existing (a hash of the values) must be the same on every rank" in told["values"]
        assert told["index"] == "ValueError: global_index must not hold an index on two ranks"
        for name, kind in (("shape", "ValueError"), ("type", "TypeError")):
            assert told[name].startswith(f"{kind}: {'' if rank == 1 else 'rank 1: '}points must"), told[name]
