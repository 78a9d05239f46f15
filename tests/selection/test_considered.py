"""A round that considers some of a large pool's frames: which, and that nothing else is picked, or looked at."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alges_fast.selection import choose
from alges_fast.selection.considered import draw_considered
from alges_fast.strategies import Query, frame_of, get_strategy
from alges_fast.windows import Window, windows_of

SIZES = {"a": 40, "b": 7, "c": 100, "d": 1}
FRAMES = [f"{video}{number:03d}" for video, n in SIZES.items() for number in range(n)]


def place(frame: str | int) -> tuple[str, float]:
    return str(frame)[0], float(str(frame)[1:])


def draw(n: int, seed: int = 0, avoided: Sequence[str] = ()) -> list[str]:
    return [str(frame) for frame in draw_considered(FRAMES, n, place, lambda frame: frame in avoided, seed)]


@pytest.mark.parametrize("n", [1, 3, 4, 20, 60, 147, 148, 149, 500])
def test_videos_give_the_same_number_or_all_they_have(n: int) -> None:
    drawn = draw(n)
    assert drawn == [frame for frame in FRAMES if frame in set(drawn)]
    assert len(drawn) == min(n, len(FRAMES))
    of_video = Counter(frame[0] for frame in drawn)
    for one, other in itertools.permutations(SIZES, 2):
        assert of_video[one] >= of_video[other] - 1 or of_video[one] == SIZES[one]


def test_a_video_is_considered_in_all_of_its_length() -> None:
    times = [place(frame)[1] for frame in draw(40) if frame[0] == "c"]
    n = len(times)
    assert n == 16
    for stretch, time in enumerate(times):
        assert 100 * stretch // n <= time < 100 * (stretch + 1) // n


def test_rounds_differ_and_in_many_every_frame_comes_up_alike() -> None:
    assert draw(40, 1) == draw(40, 1) != draw(40, 2)
    counts = Counter(frame for seed in range(400) for frame in draw(40, seed))
    of_video = [counts[frame] for frame in FRAMES if frame[0] == "a"]
    expected = 16 * 400 / 40
    assert np.abs(np.array(of_video) - expected).max() < 5 * np.sqrt(expected)


def test_avoided_frames_come_last() -> None:
    avoided = [frame for frame in FRAMES if int(frame[1:]) % 2]
    others = sorted(set(FRAMES) - set(avoided))
    assert set(draw(len(others) - 5, 3, avoided)) < set(others)
    more = set(draw(len(others) + 20, 3, avoided))
    assert more > set(others)
    assert len(more) == len(others) + 20


N, SIZE, GRID = 24, (12, 10), (3, 2)
NAMES = [f"f{number:02d}" for number in range(N)]
PLACES = {name: (f"video{number // 12}", float(number % 12)) for number, name in enumerate(NAMES)}


class Pool(Sequence[tuple[str, Tensor]]):
    """It tells which frames were looked at."""

    ids = tuple(NAMES)

    def __init__(self) -> None:
        self.images = torch.rand(N, 3, *SIZE, generator=torch.Generator().manual_seed(0))
        self.seen: set[str] = set()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: Any) -> Any:
        self.seen.add(self.ids[index])
        return self.ids[index], self.images[index]


def make_query(**changes: Any) -> Query:
    torch.manual_seed(1)
    model = nn.Conv2d(3, 4, 1).eval().requires_grad_(False)
    query = Query(candidates=NAMES, pool=Pool(), model=model, sizes=dict.fromkeys(NAMES, SIZE), seed=4, progress=False)
    return replace(query, **changes)


@pytest.mark.parametrize("regions", [None, GRID])
@pytest.mark.parametrize("strategy", ["random", "entropy", "alges-effort", "coreset", "typical", "stratified-random"])
@pytest.mark.parametrize("kept", [False, True])
def test_picks_are_of_frames_that_are_considered(
    strategy: str, regions: tuple[int, int] | None, kept: bool, tmp_path: Path
) -> None:
    labelled = [NAMES[3], *windows_of(NAMES[14], SIZE, GRID)[:2]]
    query = make_query(regions=regions, labelled=labelled, scores_out=tmp_path if kept else None)
    rule = get_strategy(strategy)()
    found = choose(rule, query, 2, places=PLACES, min_gap=2.0, consider=8, away=[NAMES[20]])
    frames = {frame_of(pick) for pick in found.ids}
    rated = {frame_of(item) for item in found.rating.ids}
    assert (found.n_considered, found.n_open) == (8, 21 if regions is None else 22)
    assert frames <= rated
    assert len(rated) == 8
    near = {NAMES[at] for at in (2, 4, 13, 15)}
    assert rated.isdisjoint({NAMES[3], NAMES[20], *near})
    looked: set[str] = query.pool.seen  # type: ignore[union-attr]
    assert looked <= {*rated, NAMES[0], NAMES[2], NAMES[3], NAMES[14]}  # the first tells the layer; labelled, coverage
    again = choose(rule, make_query(regions=regions, labelled=labelled), 2, places=PLACES, min_gap=2.0, consider=8,
                   away=[NAMES[20]])  # fmt: skip
    assert again.ids == found.ids
    other = make_query(regions=regions, labelled=labelled, round=1)
    assert {frame_of(item) for item in choose(rule, other, 2, places=PLACES, consider=8).rating.ids} != rated


def test_considering_all_is_considering_nothing_in_particular() -> None:
    rule, query = get_strategy("alges-effort")(), make_query(regions=GRID)
    assert choose(rule, query, 3, consider=N).ids == choose(rule, query, 3).ids


def test_the_budget_of_windows_is_that_of_the_whole_pool() -> None:
    sizes = {name: (12, 10 if number % 2 else 20) for number, name in enumerate(NAMES)}
    query = make_query(regions=GRID, sizes=sizes)
    rule = get_strategy("random")()
    assert choose(rule, query, 2, consider=5).budget == choose(rule, query, 2).budget
    spent = sum(pick.pixels for pick in choose(rule, query, 2, consider=5).ids if isinstance(pick, Window))
    assert 0 < spent <= 2 * 12 * 15
