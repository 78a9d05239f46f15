"""The CUDA kernels, on a GPU where there is one, and built by the host's compiler and run thread by thread on the CPU.

The emulation is tests/ops/emulation/cuda/primitives.cuh.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from ops.emulation import load
from torch import Tensor

from alges_fast.backends import choose_backend
from alges_fast.seeding import k_center_greedy, kmeans_plusplus, seeding
from alges_fast.seeding.cuda import CudaPool, grid


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    return load()


@pytest.fixture(params=[0, 1, 2])
def emulation(request: pytest.FixtureRequest, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """backend="torch" runs the emulated kernels on CPU tensors: in one launch a seeding, or one a pick, on 3 blocks."""

    class Emulated(CudaPool):
        def kernels(self) -> Any:
            return emulated

        def on_device(self, call: Callable[..., Any], *arguments: Any) -> Any:
            return call(*arguments, 0, 0)

    emulated.set_order(request.param)
    if request.param == 1:
        monkeypatch.setattr("alges_fast.seeding.cuda.ONE_LAUNCH", 0)
        monkeypatch.setattr("alges_fast.seeding.cuda.grid", lambda rows, resident: (3, 4))
    monkeypatch.setitem(seeding.POOLS, "torch", Emulated)


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
    if backend == "faiss" and dtype == torch.float64:
        pytest.skip("faiss computes in float32")
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
