"""k-means++ seeding against what else seeds, on the CPU: N 100 000, D 208, float32, 100 picks.

    python -m pytest bench/test_bench_seeding.py --benchmark-json bench/results/seeding.json

Every rival does the same 100 picks: one `faiss.pairwise_distances` a pick and nothing else, scikit-learn without local
trials, faiss's own k-means++ initialisation (one thread), and this package's faiss and torch providers. A pick's floor
is the pool's bytes over the bandwidth of a copy measured here, or its 3 N D flops over a matrix product's rate where
that takes longer; the 8-bit sketch reads fewer bytes and goes below it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
import torch
from floors import copy_bandwidth, gpu_seconds, matmul_rate
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from alges_fast._native import native_status
from alges_fast.seeding import kmeans_plusplus, native
from alges_fast.seeding.seeding import _missing

POINTS, COLUMNS, PICKS = 100_000, 208, 100


@pytest.fixture(scope="module")
def pools() -> dict[str, Tensor]:
    """gauss: no structure, the hardest to prune. clusters: 60 runs of near-duplicates, as frames of videos are."""
    draw = torch.Generator().manual_seed(0)
    gauss = torch.randn(POINTS, COLUMNS, generator=draw)
    label = torch.randint(60, (POINTS,), generator=draw).sort().values
    clusters = 3 * torch.randn(60, COLUMNS, generator=draw)[label] + 0.3 * gauss
    return {"gauss": gauss, "clusters": clusters}


def installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def record(benchmark: BenchmarkFixture, run: Callable[[], object], points: Tensor, rounds: int = 5) -> None:
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)
    flops = 3 * points.numel()
    floor = max(points.nbytes / copy_bandwidth(), flops / matmul_rate(torch.float32))
    benchmark.extra_info.update(
        picks=PICKS,
        ms_per_pick=1e3 * benchmark.stats["min"] / PICKS,
        floor_ms_per_pick=1e3 * floor,
        copy_gb_per_s=copy_bandwidth() / 1e9,
        matmul_gflop_per_s=matmul_rate(torch.float32) / 1e9,
        threads=torch.get_num_threads(),
        native=native_status(),
        versions={name: version(name) for name in ("torch", "numpy", "faiss-gpu", "scikit-learn") if installed(name)},
    )


def skip_what_is_missing(points: Tensor, backend: str) -> None:
    if (reason := _missing(points.device, points.dtype).get(backend)) is not None:
        pytest.skip(f"{backend}: {reason}")


@pytest.mark.parametrize("pool", ["gauss", "clusters"])
@pytest.mark.parametrize("backend", ["cpu", "faiss", "torch"])
def test_alges_fast(benchmark: BenchmarkFixture, pools: dict[str, Tensor], backend: str, pool: str) -> None:
    points = pools[pool]
    skip_what_is_missing(points, backend)
    record(benchmark, lambda: kmeans_plusplus(points, PICKS, backend=backend), points, 7 if backend == "cpu" else 2)


def test_alges_fast_cpu_without_sketch(
    benchmark: BenchmarkFixture, pools: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "SKETCH_FROM", PICKS + 1)
    record(benchmark, lambda: kmeans_plusplus(pools["gauss"], PICKS, backend="cpu"), pools["gauss"])


def test_alges_fast_cpu_bfloat16(benchmark: BenchmarkFixture, pools: dict[str, Tensor]) -> None:
    points = pools["gauss"].bfloat16()
    record(benchmark, lambda: kmeans_plusplus(points, PICKS, backend="cpu"), points)


def test_alges_fast_cpu_four_trials(benchmark: BenchmarkFixture, pools: dict[str, Tensor]) -> None:
    record(benchmark, lambda: kmeans_plusplus(pools["gauss"], PICKS, trials=4, backend="cpu"), pools["gauss"], 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("points", "picks", "backend"), [(4_640, 10, "cuda"), (4_640, 10, "faiss"), (1_000_000, 100, "cuda")]
)
def test_alges_fast_gpu(benchmark: BenchmarkFixture, points: int, picks: int, backend: str) -> None:
    """The paper's pool, bound by launches, and one bound by memory: a pick's floor is one read of the pool."""
    pool = torch.randn(points, COLUMNS, device="cuda")
    skip_what_is_missing(pool, backend)
    # The whole call, back to the host; by events, the kernels and the copies, and where the host is waited for, it too.
    benchmark.pedantic(lambda: kmeans_plusplus(pool, picks, backend=backend).indices.cpu(), rounds=20, warmup_rounds=3)
    taken, how = gpu_seconds(lambda: kmeans_plusplus(pool, picks, backend=backend), calls=5)
    benchmark.extra_info.update(
        picks=picks,
        us_a_call=1e6 * taken,
        timed_by=how,
        ms_per_pick=1e3 * benchmark.stats["min"] / picks,
        floor_ms_per_pick=1e3 * pool.nbytes / copy_bandwidth("cuda"),
        copy_gb_per_s=copy_bandwidth("cuda") / 1e9,
    )


def test_faiss_pairwise_distances(benchmark: BenchmarkFixture, pools: dict[str, Tensor]) -> None:
    faiss = pytest.importorskip("faiss")
    rows = pools["gauss"].numpy()

    def run() -> None:
        for pick in range(PICKS):
            faiss.pairwise_distances(rows[pick : pick + 1], rows)

    record(benchmark, run, pools["gauss"], 3)


def test_scikit_learn_without_trials(benchmark: BenchmarkFixture, pools: dict[str, Tensor]) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rows = pools["gauss"].numpy()
    record(
        benchmark,
        lambda: cluster.kmeans_plusplus(rows, PICKS, n_local_trials=1, random_state=0),
        pools["gauss"],
        3,
    )


def test_faiss_own_initialisation(benchmark: BenchmarkFixture, pools: dict[str, Tensor]) -> None:
    faiss = pytest.importorskip("faiss")
    rows = pools["gauss"].numpy()
    centres = np.empty((PICKS, COLUMNS), dtype=np.float32)
    start = faiss.ClusteringInitialization(COLUMNS, PICKS)
    start.method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    record(
        benchmark,
        lambda: start.init_centroids(POINTS, faiss.swig_ptr(rows), faiss.swig_ptr(centres)),
        pools["gauss"],
        2,
    )
