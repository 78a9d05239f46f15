"""Properties of k-means++ and k-centre seeding that hold for every backend."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.backends import _say_once
from alges_fast.seeding import k_center_greedy, kmeans_plusplus, seeding
from alges_fast.seeding.native import NativeShard, available_memory, wants_sketch
from alges_fast.seeding.race import exponentials, philox
from alges_fast.seeding.shard import Shard, TorchShard

BACKENDS = ["torch"]
BACKENDS += ["cpu"] if cpu_kernels() else []
BACKENDS += ["faiss"] if importlib.util.find_spec("faiss") else []
native = pytest.mark.skipif(cpu_kernels() is None, reason="the native CPU kernels were not built")


def blobs(n: int, dimension: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Clusters of unequal size and spread, away from the origin."""
    draw = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(7, dimension, generator=draw, dtype=torch.float64) + 3
    label = torch.randint(7, (n,), generator=draw)
    spread = torch.tensor([0.1, 0.3, 0.5, 1, 1, 2, 4], dtype=torch.float64)
    noise = torch.randn(n, dimension, generator=draw, dtype=torch.float64)
    return (centres[label] + spread[label, None] * noise).to(dtype)


def sq_distances(points: Tensor, centres: Tensor) -> Tensor:
    return (points.double()[:, None] - centres.double()[None]).square().sum(dim=2)


def test_philox_gives_the_published_vectors() -> None:
    ones = 0xFFFFFFFF
    zeros = [int(word) for word in philox((0, 0, 0, 0), 0)]
    full = [int(word) for word in philox((ones, ones, ones, ones), 2**64 - 1)]
    assert zeros == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert full == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_a_point_draws_the_same_number_in_any_shard() -> None:
    device = torch.device("cpu")
    whole = exponentials(range(1001), 5, 3, 1, device)
    assert torch.equal(exponentials(range(333, 1001), 5, 3, 1, device), whole[333:])
    strided = torch.arange(1, 1001, 3)
    assert torch.equal(exponentials(strided, 5, 3, 1, device), whole[strided])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trials", [1, 5])
def test_min_sq_distance_is_to_the_nearest_pick(backend: str, trials: int) -> None:
    points = blobs(500, 11)
    seeding = kmeans_plusplus(points, 20, seed=1, trials=trials, backend=backend, existing=points[:2] + 1)
    centres = torch.cat([points[:2] + 1, points[seeding.indices]])
    torch.testing.assert_close(
        seeding.min_sq_distance.double(), sq_distances(points, centres).amin(dim=1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_points_are_filled_uniformly(backend: str) -> None:
    counts = np.zeros(8)
    for seed in range(400):
        indices = kmeans_plusplus(torch.full((8, 5), 0.1), 3, seed=seed, backend=backend).indices.tolist()
        assert len(set(indices)) == 3
        counts[indices] += 1
    assert counts.min() > 150 - 50  # expectation 150, standard deviation 10
    assert counts.max() < 150 + 50


def pick_counts(points: Tensor, picks: int, seeds: int, **arguments: object) -> np.ndarray:
    """(N,) how often each point was the last of so many picks."""
    counts = np.zeros(len(points))
    for seed in range(seeds):
        counts[int(kmeans_plusplus(points, picks, seed=seed, **arguments).indices[-1])] += 1  # type: ignore[arg-type]
    return counts


def test_the_first_pick_is_uniform() -> None:
    counts = pick_counts(blobs(12, 3), 1, 3000)
    assert chisquare(counts).pvalue > 1e-3


def test_picks_follow_squared_distance_and_not_distance() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [5.0], [8.0]])
    counts = pick_counts(points, 1, 4000, existing=torch.tensor([[0.0]]))
    squared = points[:, 0].double().square().numpy()
    assert counts[0] == 0  # it lies on the centre
    assert chisquare(counts[1:], squared[1:] / squared.sum() * 4000).pvalue > 1e-3
    plain = np.sqrt(squared)
    assert chisquare(counts[1:], plain[1:] / plain.sum() * 4000).pvalue < 1e-9  # what sampling by D would have given


def test_the_second_pick_follows_the_law_given_the_first() -> None:
    points = blobs(9, 2, seed=3)
    squared = sq_distances(points, points).numpy()
    expected = (squared / squared.sum(axis=1, keepdims=True)).mean(axis=0)
    counts = pick_counts(points, 2, 6000)
    assert chisquare(counts, expected * 6000).pvalue > 1e-3


def potentials(points: Tensor, picks: int, seeds: int, **arguments: object) -> np.ndarray:
    found = [kmeans_plusplus(points, picks, seed=seed, **arguments) for seed in range(seeds)]  # type: ignore[arg-type]
    return np.array([float(one.min_sq_distance.double().sum()) for one in found])


@pytest.mark.parametrize("trials", [1, 4])
def test_potential_equals_scikit_learns_at_equal_trials(trials: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    points = blobs(400, 6, seed=1)
    ours = potentials(points, 8, 120, trials=trials)
    rows = points.numpy()
    theirs = np.array([
        float(sq_distances(points, torch.from_numpy(centres)).amin(dim=1).sum())
        for centres, _ in (
            cluster.kmeans_plusplus(rows, 8, n_local_trials=trials, random_state=seed) for seed in range(120)
        )
    ])  # fmt: skip
    noise = np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < 4 * noise


def test_rounds_reach_the_potential_of_one_pick_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(2000, 6, seed=1)
    one_at_a_time = potentials(points, 60, 10)
    monkeypatch.setattr(seeding, "ROUNDS_ABOVE", 50)
    monkeypatch.setattr(seeding, "ROUNDS_FROM", 0)
    by_rounds = [kmeans_plusplus(points, 60, seed=seed) for seed in range(10)]
    for found in by_rounds:
        assert len(set(found.indices.tolist())) == 60
        nearest = sq_distances(points, points[found.indices]).amin(dim=1)
        torch.testing.assert_close(found.min_sq_distance.double(), nearest, rtol=1e-5, atol=1e-5)
    assert np.mean([float(found.min_sq_distance.sum()) for found in by_rounds]) < 1.1 * one_at_a_time.mean()


@pytest.mark.parametrize(
    ("n_clusters", "total", "row_bytes", "expected"),
    [
        (10_000, 10**8, 832, False),  # one pick at a time up to here
        (10_001, 10**8, 832, True),
        (12_000, 200_000, 128, False),  # 26 MB: every pass is quick
        (12_000, 3_000_000, 128, True),
        (40_000, 300_000, 8192, False),  # the candidates would be most of the pool
    ],
)
def test_when_to_seed_by_rounds(n_clusters: int, total: int, row_bytes: int, expected: bool) -> None:
    assert seeding.wants_rounds(n_clusters, total, row_bytes) is expected


def test_rounds_weigh_their_candidates_alike_on_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "ROUNDS_ABOVE", 10)
    monkeypatch.setattr(seeding, "ROUNDS_FROM", 0)
    points = blobs(400, 7)
    for arguments in ({}, {"first": "largest"}, {"existing": points[:3] + 0.1}):
        one, other = (kmeans_plusplus(points, 15, backend=name, **arguments).indices for name in ("cpu", "torch"))  # type: ignore[arg-type]
        assert torch.equal(one, other), arguments


def test_rounds_on_few_distinct_points_fill_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "ROUNDS_ABOVE", 20)
    monkeypatch.setattr(seeding, "ROUNDS_FROM", 0)
    picked = kmeans_plusplus(blobs(10, 3).repeat(40, 1), 30).indices
    assert len(set((picked % 10).tolist())) == 10
    assert len(set(picked.tolist())) == 30


@example(rows=13, columns=24, picks=4, trials=4, dtype=torch.bfloat16, first="uniform", copies=2, centres=1)  # a tie
@given(
    rows=st.integers(1, 70), columns=st.integers(1, 40), picks=st.integers(1, 70), trials=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    first=st.sampled_from(["uniform", "largest"]), copies=st.integers(1, 3), centres=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_backends_pick_the_same(
    rows: int, columns: int, picks: int, trials: int, dtype: torch.dtype, first: str, copies: int, centres: int
) -> None:
    points = blobs(rows, columns, seed=rows, dtype=dtype).repeat(copies, 1)
    picks = min(picks, len(points))
    arguments = {"seed": columns, "trials": trials, "first": first, "existing": points[:centres] if centres else None}
    results = [
        kmeans_plusplus(points, picks, backend=backend, **arguments)  # type: ignore[arg-type]
        for backend in BACKENDS if not (backend == "faiss" and dtype == torch.float64)
    ]  # fmt: skip
    for result in results:
        assert result.indices.tolist() == results[0].indices.tolist()
        assert len(set(result.indices.tolist())) == picks
        torch.testing.assert_close(result.min_sq_distance, results[0].min_sq_distance, rtol=1e-4, atol=1e-4)
    distinct = len(points[results[0].indices].double().unique(dim=0))
    assert distinct == min(picks, len(points.double().unique(dim=0))) or centres  # copies only once all else is taken


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("columns", [3, 16, 70])
def test_the_sketch_changes_nothing(dtype: torch.dtype, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(3000, columns, dtype=dtype)
    points[::7] *= 1e-3  # norms over several decades
    plain = kmeans_plusplus(points, 60, trials=2, backend="cpu")
    monkeypatch.setattr("alges_fast.seeding.native.CACHED", 0)
    sketched = kmeans_plusplus(points, 60, trials=2, backend="cpu")
    assert torch.equal(plain.indices, sketched.indices)
    assert torch.equal(plain.min_sq_distance, sketched.min_sq_distance)


def test_the_sketch_stays_within_a_quarter_of_the_memory_a_container_may_have(tmp_path: Path) -> None:
    """A limit that the machine's own memory does not show: to exceed it is to be killed."""
    points = torch.empty(1).expand(1_000_000, 208)
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup/memory").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable:   48000000 kB\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert available_memory(tmp_path) == 48_000_000 * 1024
    assert wants_sketch(100, points, lambda: available_memory(tmp_path))
    for name, other in (("memory.max", "max\n"), ("memory/memory.limit_in_bytes", "9223372036854771712\n")):
        limit = tmp_path / "sys/fs/cgroup" / name
        limit.write_text(f"{800 << 20}\n")
        assert available_memory(tmp_path) == 800 << 20
        assert not wants_sketch(100, points, lambda: available_memory(tmp_path))
        limit.write_text(other)
    assert available_memory(tmp_path / "elsewhere") > 0


@native
def test_the_sketch_spares_most_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alges_fast.seeding.native.CACHED", 0)
    points = torch.randn(4000, 128)
    pool = NativeShard(points, range(4000), 100)
    pool.absorb(points[:40], None)
    pool.absorb(points[40:41], None)
    assert pool.measured < 400  # about one in 40 has the new centre for its nearest


@native
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.usefixtures("threads_of_its_own")
def test_threads_change_nothing(threads: int) -> None:
    points = blobs(5000, 20)
    expected = kmeans_plusplus(points, 20, trials=3, backend="torch")
    torch.set_num_threads(threads)
    found = kmeans_plusplus(points, 20, trials=3, backend="cpu")
    assert torch.equal(found.indices, expected.indices)


@native
def test_every_half_is_read_right() -> None:
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).short().view(torch.float16)
    halves = halves[halves.isfinite()][:, None].expand(-1, 17).contiguous()
    found = NativeShard(halves, range(len(halves)), 1)
    found.absorb(torch.zeros(1, 17), None)
    expected = TorchShard(halves, range(len(halves)), 1)
    expected.absorb(torch.zeros(1, 17), None)
    torch.testing.assert_close(found.min_sq_distance, expected.min_sq_distance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_the_origin_nothing_cancels(backend: str) -> None:
    points = blobs(300, 8, seed=5) / 50 + 100
    exact = kmeans_plusplus(points.double(), 12, backend="torch", seed=2)
    found = kmeans_plusplus(points, 12, backend=backend, seed=2)
    assert torch.equal(found.indices, exact.indices)
    torch.testing.assert_close(found.min_sq_distance.double(), exact.min_sq_distance, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_memory_mapped_pool_is_read_as_it_is(backend: str, tmp_path: Path) -> None:
    points = blobs(900, 33)
    np.save(tmp_path / "pool.npy", points.numpy())
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    found = kmeans_plusplus(mapped, 7, backend=backend)
    assert torch.equal(found.indices, kmeans_plusplus(points, 7, backend=backend).indices)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_are_read_as_what_they_show(backend: str) -> None:
    """One that negates, whose memory holds the numbers without their sign, too."""
    wide = blobs(200, 30)
    for view in (wide[:, :11], wide[::2], wide.T[:20].T, wide.expand(200, 30), torch._neg_view(-wide)):
        plain = view.resolve_neg().contiguous().clone()
        for arguments in ({}, {"existing": plain[:2] + 0.5, "trials": 3}):
            found = kmeans_plusplus(view, 6, backend=backend, **arguments)  # type: ignore[arg-type]
            expected = kmeans_plusplus(plain, 6, backend=backend, **arguments)  # type: ignore[arg-type]
            assert torch.equal(found.indices, expected.indices)
            assert torch.equal(found.min_sq_distance, expected.min_sq_distance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_and_all_of_a_pool(backend: str) -> None:
    points = torch.zeros(20, 4)
    points[5:8] = torch.eye(3, 4)
    found = kmeans_plusplus(points, 20, backend=backend, first="largest").indices.tolist()
    assert sorted(found) == list(range(20))
    assert set(found[:3]) <= {5, 6, 7} | set(range(20))
    assert {5, 6, 7} <= set(found[:4])
    assert float(kmeans_plusplus(points, 20, backend=backend).min_sq_distance.max()) == 0
    origin = kmeans_plusplus(torch.zeros(20, 4), 3, backend=backend, first="largest")
    assert float(origin.min_sq_distance.max()) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("arguments", [{}, {"first": "largest"}, {"existing": torch.zeros(2, 3)}, {"trials": 3}])
def test_nan_and_inf_raise(backend: str, bad: float, arguments: dict[str, object]) -> None:
    points = blobs(300, 3)
    points[256, 1] = bad
    with pytest.raises(ValueError, match="points must be finite, got NaN or Inf at index 256"):
        kmeans_plusplus(points, 2, backend=backend, **arguments)  # type: ignore[arg-type]


def test_overflowing_distances_raise_and_float64_takes_them() -> None:
    points = blobs(30, 3) * 1e25
    with pytest.raises(ValueError, match="overflow"):
        kmeans_plusplus(points, 3)
    assert len(kmeans_plusplus(points.double(), 3).indices) == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("arguments", [{}, {"first": "largest"}, {"trials": 3}, {"existing": True}])
@pytest.mark.parametrize(
    ("dtype", "exponent"), [(torch.float32, -90), (torch.bfloat16, -110), (torch.float64, -600), (torch.float64, -900)]
)
def test_points_whose_squares_underflow_are_picked_as_at_any_scale(
    backend: str, arguments: dict[str, object], dtype: torch.dtype, exponent: int
) -> None:
    if backend == "faiss" and dtype == torch.float64:
        return
    points = blobs(200, 5, dtype=dtype)
    small = points.double().mul(2.0**exponent).to(dtype)
    existing = {"existing": points[:2]} if "existing" in arguments else {}
    for choose in (kmeans_plusplus, k_center_greedy):
        if choose is k_center_greedy and "trials" in arguments:
            continue
        expected = choose(points, 20, backend=backend, **{**arguments, **existing})  # type: ignore[arg-type]
        scaled = {name: value * 2.0**exponent for name, value in existing.items()}
        found = choose(small, 20, backend=backend, **{**arguments, **scaled})  # type: ignore[arg-type]
        assert torch.equal(found.indices, expected.indices)
        assert float(found.min_sq_distance.max()) == 0  # as float32 has it


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_points_beside_a_large_centre(backend: str) -> None:
    """The first pick is drawn by its distance to the centre; then the scale shows, and the centre bounds it."""
    points = blobs(200, 5) * 2.0**-90
    centre = torch.full((1, 5), 3.0)
    found = kmeans_plusplus(points, 12, existing=centre, backend=backend).indices.tolist()
    nearest = sq_distances(points * 2.0**90, points[found[:1]] * 2.0**90)[:, 0]
    assert len(set(found)) == 12
    assert float(nearest[found[1:]].mean()) > float(nearest.mean())  # far ones, where any would be as likely before


def test_tiny_points_among_others_are_where_they_are() -> None:
    """Beside ordinary points they are one place, and nothing is scaled."""
    points = torch.cat([blobs(5, 3), blobs(20, 3) * 1e-30])
    picked = kmeans_plusplus(points, 10).indices.tolist()
    assert set(picked[:6]) >= set(range(5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"points": np.ma.masked_less(np.zeros((10, 3), np.float32), 1)}, TypeError, "points must not be a masked"),
        ({"existing": np.ma.masked_less(np.zeros((1, 3)), 1)}, TypeError, r"existing must not be.*compress_rows"),
        ({"existing": torch.full((1, 3), 1e300, dtype=torch.float64)}, ValueError, "existing must be finite in .*32"),
        ({"n_clusters": 11}, ValueError, "n_clusters must be at most the number of points, 10, got 11"),
        ({"n_clusters": 0}, ValueError, "n_clusters must be at least 1, got 0"),
        ({"n_clusters": 2.0}, TypeError, "n_clusters must be an int, got float"),
        ({"trials": 0}, ValueError, "trials must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 2**64}, ValueError, "seed must be below"),
        ({"first": "random"}, ValueError, "first must be 'uniform' or 'largest', got 'random'"),
        ({"backend": "gpu"}, ValueError, "backend: unknown name 'gpu'; choose from faiss, cpu, cuda, torch"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' cannot run this call: the points are on cpu"),
        ({"points": torch.zeros(10)}, ValueError, r"points must have shape \(N, D\), got \(10,\)"),
        ({"points": torch.zeros(10, 3, dtype=torch.int64)}, TypeError, "points must be float32.*got torch.int64"),
        ({"points": [[0.0]]}, TypeError, "points must be a torch.Tensor or a numpy array, got list"),
        ({"points": torch.zeros(10, 3).to_sparse()}, TypeError, "points must be a dense tensor.*sparse_coo"),
        ({"points": torch.zeros(10, 3, device="meta")}, TypeError, "points must be a dense tensor.*meta"),
        ({"points": np.zeros((10, 3), np.float32)[::-1]}, ValueError, "points cannot be taken as a tensor: .*stride"),
        ({"points": np.zeros((10, 3), object)}, TypeError, "points cannot be taken as a tensor: .*object"),
        ({"existing": np.zeros((1, 3), ">f4")}, ValueError, "existing cannot be taken as a tensor: .*byte order"),
        ({"existing": torch.zeros(2, 4)}, ValueError, r"existing must have shape \(M, 3\), got \(2, 4\)"),
        ({"existing": torch.full((1, 3), torch.nan)}, ValueError, "existing must be finite"),
        ({"global_index": torch.arange(9)}, ValueError, r"global_index must be int64 of shape \(10,\)"),
        ({"global_index": torch.zeros(10, dtype=torch.int64)}, ValueError, "must not hold an index twice"),
        ({"global_index": torch.arange(10) - 1}, ValueError, "global_index must be between 0"),
    ],
)
def test_errors_name_what_was_given(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kmeans_plusplus(**{"points": torch.randn(10, 3), "n_clusters": 2, **arguments})  # type: ignore[arg-type]


def test_without_native_kernels_the_default_falls_back_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(seeding, "cpu_kernels", lambda: None)
    _say_once.cache_clear()
    points = blobs(40, 3)
    with caplog.at_level(logging.WARNING, "alges_fast"):
        found = [kmeans_plusplus(points, 3).indices.tolist() for _ in range(2)]
    assert found[0] == found[1] == kmeans_plusplus(points, 3, backend="torch").indices.tolist()
    assert [record.message[:38] for record in caplog.records] == ["seeding: faiss runs instead of cpu: na"]
    with pytest.raises(ValueError, match="backend='cpu' cannot run this call: native kernels"):
        kmeans_plusplus(points, 3, backend="cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_k_center_against_brute_force_with_existing_and_ties(backend: str) -> None:
    points = blobs(60, 3, seed=8).repeat(2, 1)
    first = k_center_greedy(points, 1, first="largest", backend=backend).indices.tolist()  # type: ignore[arg-type]
    assert first == [int(points.double().norm(dim=1).argmax())]
    for existing in (points[:3] + 0.5, points[first]):
        picked = k_center_greedy(points, 10, existing=existing, backend=backend).indices.tolist()  # type: ignore[arg-type]
        centres = existing
        for index in picked:
            nearest = sq_distances(points, centres).amin(dim=1)
            assert index == int((nearest == nearest.max()).nonzero()[0])  # of two copies the first
            centres = torch.cat([centres, points[index : index + 1]])


@pytest.mark.parametrize("pool", [NativeShard, TorchShard] if cpu_kernels() else [TorchShard])
def test_the_sums_that_choose_among_trials_do_not_depend_on_the_cut(pool: type[Shard]) -> None:
    points = blobs(5000, 9, seed=3) * torch.logspace(-3, 3, 5000)[:, None]
    scale = seeding.exact_scale(float(points.double().square().sum(dim=1).amax()), len(points))

    def sums(edges: list[int]) -> Tensor:
        parts = []
        for start, stop in itertools.pairwise(edges):
            shard = pool(points[start:stop], range(start, stop), 4)
            shard.absorb(torch.zeros(1, 9), None)
            parts.append(shard.potentials(points[[0, 2500, 4999]], scale))
        return torch.stack(parts).sum(dim=0)

    whole = sums([0, 5000])
    assert torch.equal(sums([0, 1, 17, 1024, 3333, 5000]), whole)
    centres = points[[0, 2500, 4999]].double()
    exact = torch.minimum(sq_distances(points, centres), points.double().square().sum(dim=1)[:, None]).sum(dim=0)
    torch.testing.assert_close(whole / scale, exact, rtol=1e-6, atol=0)
