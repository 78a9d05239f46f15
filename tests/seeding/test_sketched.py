"""Rows known by sketches: the picks of the rows themselves, whatever the sketches leave out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from test_shards import Threads, contiguous, strided
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.seeding import kmeans_plusplus, seeding, sketched
from alges_fast.seeding.shard import DrawSpec
from alges_fast.seeding.sketched import Basis, SketchedRows

pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="sketches are made by the native kernels")


def embeddings(n: int, blocks: int, columns: int, seed: int = 0) -> Tensor:
    """(n, blocks, columns) as gradient embeddings are: few large among many small ones, of low rank but for noise, and
    of one block much larger than the others."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(6, columns, generator=draw)
    rows = torch.randn(n, blocks, 6, generator=draw) @ directions + 0.3 * torch.randn(
        n, blocks, columns, generator=draw
    )
    sizes = torch.exp(1.5 * torch.randn(n, 1, 1, generator=draw)) * torch.exp(torch.randn(n, blocks, 1, generator=draw))
    rows *= sizes * torch.exp(-0.4 * torch.arange(blocks)).view(1, -1, 1)
    rows[::7] = rows[3]  # the same more than once
    rows[5::11] = 0  # and certain ones
    return rows


def sketch(rows: Tensor, some: Tensor | None = None) -> tuple[SketchedRows, Tensor, list[int]]:
    """Rows times a factor a block and one a row: sketched, in full, and the positions that were asked for in full."""
    draw = torch.Generator().manual_seed(1)
    of_blocks = torch.randn(rows.shape[1], generator=draw).exp()
    of_rows = torch.randn(len(rows), generator=draw).exp()
    codes, measures, _ = Basis.of(rows[::10]).sketch(rows)
    points = (rows * of_blocks[:, None]).flatten(1) * of_rows[:, None]
    asked: list[int] = []
    mine = torch.arange(len(rows)) if some is None else some

    def make(positions: Sequence[int]) -> Tensor:
        asked.extend(positions)
        return points[mine[list(positions)]]

    known = SketchedRows(
        Basis.of(rows[::10]), of_blocks.double(), codes[mine], measures[mine] * of_rows[mine, None], make
    )
    return known, points, asked


SHAPES = [(2000, 13, 32), (900, 2, 16), (1200, 19, 70), (800, 5, 3), (300, 1, 200)]


@pytest.mark.parametrize(("n", "blocks", "columns"), SHAPES)
@pytest.mark.parametrize("existing", [0, 1, 300])
def test_picks_are_those_of_the_rows_in_full(n: int, blocks: int, columns: int, existing: int) -> None:
    known, points, asked = sketch(embeddings(n, blocks, columns))
    index = torch.randperm(n, generator=torch.Generator().manual_seed(2)) + 5
    centres = points[:existing] * 1.01 if existing else None
    whole = kmeans_plusplus(points, 80, seed=3, existing=centres, global_index=index)
    found = kmeans_plusplus(known, 80, seed=3, existing=centres, global_index=index)
    assert torch.equal(found.indices, whole.indices)
    assert (found.min_sq_distance >= whole.min_sq_distance * (1 - 1e-5)).all()
    if n >= 1000:
        assert len(set(asked)) < n / 4, "most rows are never made"


def check_bounds(*, drawing: bool = False) -> None:
    known, points, _ = sketch(embeddings(3000, 13, 32))
    pool = sketched.SketchedShard(known, torch.arange(3000))
    centres = points[::100]
    for number in range(len(centres) - 1 if drawing else 0):  # most rows are lowered later, by many
        pool.absorb(centres[number : number + 1], DrawSpec("race", 1, number, 1))
    pool.absorb(centres[-1:] if drawing else centres, None)
    exact = torch.cdist(points.double(), points[::100].double(), compute_mode="donot_use_mm_for_euclid_dist")
    least = exact.amin(1).square()
    assert pool._bounds is not None
    lower = pool._bounds.lower
    assert (lower <= least * (1 + 1e-6)).all()
    assert (pool.min_sq_distance >= least * (1 - 1e-6)).all()
    # And they are of use: no more than a few rows contend for a draw.
    assert pool.min_sq_distance.sum() < 3 * lower.sum()


def test_bounds_hold_after_draws_in_which_most_rows_were_left_for_later() -> None:
    check_bounds(drawing=True)


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_bounds_hold_on_every_instruction_set(isa: str) -> None:
    """A processor without the set takes the next it has."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_sketched as t; t.check_bounds()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "ALGES_FAST_ISA": isa})


def test_most_rows_are_passed_over() -> None:
    """By norms, and by the distance between centres: of clusters far apart a centre reads its own."""
    draw = torch.Generator().manual_seed(3)
    clusters = 5 * torch.randn(40, 13, 6, generator=draw) @ torch.randn(6, 32, generator=draw)
    rows = clusters[torch.arange(4000) % 40] + torch.randn(4000, 13, 32, generator=draw)
    basis = Basis.of(rows[::10])
    codes, measures, _ = basis.sketch(rows)
    points = rows.flatten(1)
    known = SketchedRows(basis, torch.ones(13), codes, measures, lambda at: points[list(at)])
    pool = sketched.SketchedShard(known, torch.arange(4000))
    pool.absorb(points[:40], None)
    before = pool.read
    pool.absorb(points[40:80], None)
    assert pool.read - before < 0.05 * 40 * 4000


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("cut", [contiguous, strided])
def test_the_same_picks_for_any_cut(ranks: int, cut: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = embeddings(1003, 7, 24)
    whole = kmeans_plusplus(sketch(rows)[1], 40, seed=11).indices
    barrier, board = threading.Barrier(ranks), [None] * ranks
    local = threading.local()
    monkeypatch.setattr(seeding, "Ranks", lambda group, device: Threads(local.rank, barrier, board))

    def of(rank: int) -> Tensor:
        local.rank = rank
        mine = cut(len(rows), ranks, rank)
        return kmeans_plusplus(sketch(rows, mine)[0], 40, seed=11, global_index=mine).indices

    with ThreadPoolExecutor(ranks) as threads:
        assert all(torch.equal(picks, whole) for picks in threads.map(of, range(ranks)))


def test_closed_rows_are_never_picked_and_the_others_as_if_they_were_alone() -> None:
    known, points, _ = sketch(embeddings(500, 13, 32))
    open = torch.rand(500, generator=torch.Generator().manual_seed(0)) < 0.3
    index = torch.arange(500)
    whole = kmeans_plusplus(points[open], 100, seed=1, global_index=index[open], existing=points[:5])
    found = kmeans_plusplus(known.only(open), 100, seed=1, existing=points[:5])
    assert torch.equal(found.indices, whole.indices)
    assert torch.equal(
        kmeans_plusplus(known.only(open), 20, seed=1).indices,
        kmeans_plusplus(points[open], 20, seed=1, global_index=index[open]).indices,
    )


def test_points_that_are_all_one_are_filled_up_uniformly() -> None:
    rows = embeddings(9, 13, 32)[:1].repeat(60, 1, 1) + 1
    codes, measures, _ = Basis.of(rows).sketch(rows)
    known = SketchedRows(Basis.of(rows), torch.ones(13), codes, measures, lambda at: rows.flatten(1)[list(at)])
    assert torch.equal(kmeans_plusplus(known, 20, seed=1).indices, kmeans_plusplus(rows.flatten(1), 20, seed=1).indices)
    assert sorted(kmeans_plusplus(known, 60, seed=1).indices.tolist()) == list(range(60))


def test_what_is_not_finite_shows_in_its_sketch_alone() -> None:
    rows = embeddings(20, 3, 9)
    rows[4, 1, 2], rows[7, 0, 0] = torch.nan, torch.inf
    _, measures, _ = Basis.of(rows[8:]).sketch(rows)
    assert measures.isfinite().all(1).logical_not().nonzero()[:, 0].tolist() == [4, 7]


def test_what_sketched_rows_cannot_do_is_refused() -> None:
    known, _, _ = sketch(embeddings(50, 3, 9))
    with pytest.raises(ValueError, match="sketched rows"):
        kmeans_plusplus(known, 5, trials=2)
    with pytest.raises(ValueError, match="at most the number of points, 50"):
        kmeans_plusplus(known, 51)


def test_a_seeding_that_goes_on_from_the_last_ones_bounds_picks_as_one_that_does_not() -> None:
    """As where some picks lie too near others and are drawn again: a few centres are dropped, a few come, rows close
    and open."""
    known, points, _ = sketch(embeddings(1500, 13, 32))
    index = torch.arange(1500)
    picks = kmeans_plusplus(known, 60, seed=1).indices
    draw = torch.Generator().manual_seed(5)
    for seed in range(6):
        open = torch.rand(1500, generator=draw) < 0.9
        kept = picks[torch.rand(len(picks), generator=draw) < 0.95]
        open[kept] = False
        read = points[kept]
        found = kmeans_plusplus(known.only(open), 15, seed=seed, existing=read)
        whole = kmeans_plusplus(points[open], 15, seed=seed, existing=read, global_index=index[open])
        assert torch.equal(found.indices, whole.indices)
        assert (found.min_sq_distance[open] >= whole.min_sq_distance * (1 - 1e-5)).all()
        picks = torch.cat([kept, found.indices])


def test_centres_that_stay_are_not_measured_again() -> None:
    known, points, _ = sketch(embeddings(1500, 13, 32))
    picks = kmeans_plusplus(known, 60, seed=1).indices
    again = sketched.SketchedShard(known, torch.arange(1500))
    again.absorb(points[torch.cat([picks[:50], picks[51:]])], None)
    assert again.read == 0
