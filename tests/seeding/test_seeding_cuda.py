"""The CUDA kernels, on a GPU where there is one, and built by the host's compiler and run thread by thread on the CPU.

The emulation is tests/ops/emulation/cuda/primitives.cuh.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from ops.emulation import load
from torch import Tensor

from alges_fast.backends import choose_backend
from alges_fast.seeding import k_center_greedy, kmeans_plusplus, seeding
from alges_fast.seeding.cuda import CudaShard, grid


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    return load()


@pytest.fixture(params=[0, 1, 2])
def emulation(request: pytest.FixtureRequest, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """backend="torch" runs the emulated kernels on CPU tensors: in one launch a seeding, or one a pick, on 3 blocks."""

    class Emulated(CudaShard):
        def kernels(self) -> Any:
            return emulated

        def on_device(self, call: Callable[..., Any], *arguments: Any) -> Any:
            return call(*arguments, 0, 0)

    emulated.set_order(request.param)
    if request.param == 1:
        monkeypatch.setattr("alges_fast.seeding.cuda.ONE_LAUNCH", 0)
        monkeypatch.setattr("alges_fast.seeding.cuda.grid", lambda rows, resident: (3, 4))
    monkeypatch.setitem(seeding.SHARDS, "torch", Emulated)


def points_of(dtype: torch.dtype, columns: int, rows: int = 150) -> Tensor:
    draw = torch.Generator().manual_seed(columns)
    label = torch.randint(5, (rows,), generator=draw)
    points = 3 * torch.randn(5, columns, generator=draw)[label] + torch.randn(rows, columns, generator=draw)
    return points.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("columns", [1, 19, 48])
def test_emulated_kernels_pick_as_the_cpu_does(emulation: None, dtype: torch.dtype, columns: int) -> None:
    points = points_of(dtype, columns)
    for arguments in (
        {},
        {"trials": 3},
        {"first": "largest"},
        {"existing": points[:4].float() + 0.5},
        {"global_index": torch.randperm(900)[:150]},
    ):
        expected = kmeans_plusplus(points, 12, seed=5, **arguments)  # type: ignore[arg-type]
        found = kmeans_plusplus(points, 12, seed=5, backend="torch", **arguments)  # type: ignore[arg-type]
        assert torch.equal(found.indices, expected.indices), arguments
        torch.testing.assert_close(found.min_sq_distance, expected.min_sq_distance, rtol=1e-6, atol=0)
    expected = k_center_greedy(points, 12, seed=5)
    assert torch.equal(k_center_greedy(points, 12, seed=5, backend="torch").indices, expected.indices)


def test_emulated_kernels_fill_up_count_and_refuse(emulation: None, monkeypatch: pytest.MonkeyPatch) -> None:
    points = points_of(torch.float32, 7)
    repeated = points[:5].repeat(6, 1)
    assert torch.equal(kmeans_plusplus(repeated, 20, backend="torch").indices, kmeans_plusplus(repeated, 20).indices)
    monkeypatch.setattr(seeding, "ROUNDS_ABOVE", 10)
    monkeypatch.setattr(seeding, "ROUNDS_FROM", 0)
    assert torch.equal(kmeans_plusplus(points, 15, backend="torch").indices, kmeans_plusplus(points, 15).indices)
    points[77, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or Inf at index 77"):
        kmeans_plusplus(points, 4, backend="torch")


@pytest.fixture
def host_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What would bring a value of the device to the host, or one of the host to the device: each waits for the stream.

    Tensors that `.cpu()` gave are on the host.
    """
    reads: list[str] = []
    on_host: set[int] = set()

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(self: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if self.untyped_storage().data_ptr() not in on_host:
                reads.append(name)
            if name != "cpu":
                return real(self, *arguments, **keywords)
            copied = self.clone()
            kept.append(copied)  # or another tensor could take its place
            on_host.add(copied.untyped_storage().data_ptr())
            return copied

        return stand_in

    kept: list[Tensor] = []
    names = ("cpu", "tolist", "item", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")
    for name in names:
        monkeypatch.setattr(Tensor, name, watched(name, getattr(Tensor, name)))
    tensor = torch.tensor

    def made(*arguments: Any, **keywords: Any) -> Tensor:
        reads.append("torch.tensor")
        return tensor(*arguments, **keywords)

    monkeypatch.setattr(torch, "tensor", made)
    yield reads
    monkeypatch.undo()


@pytest.mark.parametrize("first", ["uniform", "largest"])
def test_a_seeding_copies_back_once(emulation: None, host_reads: list[str], first: str) -> None:
    points = points_of(torch.float32, 19)
    found = kmeans_plusplus(points, 12, seed=5, first=first, backend="torch")  # type: ignore[arg-type]
    assert host_reads == ["cpu"]
    k_center_greedy(points, 12, seed=5, backend="torch")
    assert host_reads == ["cpu", "cpu"]
    assert len(set(found.indices.tolist())) == 12


def test_one_copy_back_tells_of_what_is_not_finite_and_of_points_in_one_place(emulation: None) -> None:
    for first in ("uniform", "largest"):
        far = torch.full((40, 3), 3e19)  # squares overflow from the origin alone
        far[0] += 1e13
        for backend in ("torch", "cpu"):
            if first == "largest":
                with pytest.raises(ValueError, match="overflow"):
                    kmeans_plusplus(far, 2, first=first, backend=backend)  # type: ignore[arg-type]
            else:
                kmeans_plusplus(far, 2, first=first, backend=backend)  # type: ignore[arg-type]
        for value in (0.0, 2.0):
            same = torch.full((9, 3), value)
            expected = kmeans_plusplus(same, 5, first=first, backend="cpu")  # type: ignore[arg-type]
            found = kmeans_plusplus(same, 5, first=first, backend="torch")  # type: ignore[arg-type]
            assert torch.equal(found.indices, expected.indices)
    close = points_of(torch.float32, 4) * 1e-24  # squares underflow
    expected = kmeans_plusplus(close, 6, backend="cpu")
    assert torch.equal(kmeans_plusplus(close, 6, backend="torch").indices, expected.indices)
    existing = points_of(torch.float32, 4)[:3]
    found = kmeans_plusplus(existing, 2, existing=existing, backend="torch")
    assert torch.equal(found.indices, kmeans_plusplus(existing, 2, existing=existing, backend="cpu").indices)


@pytest.mark.gpu
def test_a_seeding_waits_for_the_gpu_once() -> None:
    points = points_of(torch.float32, 208, 4640).cuda()
    kmeans_plusplus(points, 10, backend="cuda")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kmeans_plusplus(points, 10, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in caught if "synchroniz" in str(one.message)]) == 1


def test_a_gpu_that_cannot_run_the_kernels_leaves_seeding_to_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "cuda_unavailable", lambda device: f"an old driver under GPU {device}")
    missing = seeding._missing(torch.device("cuda:1"), torch.float64)
    assert missing["cuda"] == "an old driver under GPU 1"
    chosen, passed_over = choose_backend(None, ("cuda", "faiss", "torch"), missing.get)
    assert chosen == "torch"
    assert passed_over[0] == ("cuda", "an old driver under GPU 1")


def test_small_pools_spread_over_the_device() -> None:
    assert grid(4640, 528) == (145, 4)
    assert grid(10_000_000, 528) == (528, 32)
    assert grid(1, 528) == (1, 4)
    assert grid(0, 528) == (1, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "torch", "faiss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows", [4640, 100_000])
def test_a_gpu_picks_as_the_cpu_does(dtype: torch.dtype, rows: int, backend: str) -> None:
    if (reason := seeding._missing(torch.device("cuda", 0), dtype).get(backend)) is not None:
        pytest.skip(f"{backend}: {reason}")
    points = points_of(dtype, 208, rows)
    for arguments in ({}, {"trials": 3}, {"first": "largest"}, {"existing": points[:4].float() + 0.5}):
        expected = kmeans_plusplus(points, 20, seed=5, **arguments)  # type: ignore[arg-type]
        arguments = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in arguments.items()}
        found = kmeans_plusplus(points.cuda(), 20, seed=5, backend=backend, **arguments)  # type: ignore[arg-type]
        assert torch.equal(found.indices.cpu(), expected.indices), arguments
        torch.testing.assert_close(found.min_sq_distance.cpu(), expected.min_sq_distance, rtol=1e-5, atol=1e-6)
        if backend == "faiss":  # makes no promise of repeating itself
            continue
        again = kmeans_plusplus(points.cuda(), 20, seed=5, backend=backend, **arguments)  # type: ignore[arg-type]
        assert torch.equal(again.min_sq_distance, found.min_sq_distance)
