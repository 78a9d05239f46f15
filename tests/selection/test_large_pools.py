"""Hours of video: windows that are numbers until they are asked for, embeddings that are sketched. The same picks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alges_fast._native import cpu_kernels
from alges_fast.selection.choose import choose
from alges_fast.strategies import Query, Rating, Strategy, Taken, embedded_rows, get_strategy
from alges_fast.strategies.base import Closed
from alges_fast.windows import GridWindows, Window, windows_of

N, SIZE, GRID = 60, (24, 20), (3, 4)
NAMES = [f"f{i}" for i in range(N)]


class Maps(Sequence[tuple[str, Tensor]]):
    ids = tuple(NAMES)

    def __init__(self) -> None:
        self.images = torch.randn(N, 5, *SIZE, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3) / 9

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: Any) -> Any:
        return self.ids[index], self.images[index]


def make_query(**changes: Any) -> Query:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(5, 9, 1), nn.ReLU(), nn.Conv2d(9, 4, 1)).eval().requires_grad_(False)
    labelled = [NAMES[3], *windows_of(NAMES[7], SIZE, GRID)[2:5]]
    arguments = {"candidates": NAMES, "pool": Maps(), "model": model, "labelled": labelled, "regions": GRID, "seed": 4}
    return Query(**{**arguments, "sizes": dict.fromkeys(NAMES, SIZE), **changes})


def places() -> dict[str, tuple[str, float]]:
    return {name: ("video", float(number)) for number, name in enumerate(NAMES)}


@pytest.mark.skipif(cpu_kernels() is None, reason="sketches are made by the native kernels")
@pytest.mark.parametrize("gap", [0.0, 2.0])
@pytest.mark.parametrize("strategy", ["alges-img", "alges-img-balanced", "alges-effort", "alges-frugal"])
def test_sketched_embeddings_give_the_same_picks(strategy: str, gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    query, away = make_query(), [NAMES[20], windows_of(NAMES[21], SIZE, GRID)[0]]
    rule = get_strategy(strategy)()
    whole = choose(rule, query, 3, places=places(), min_gap=gap, away=away)
    made: list[int] = []
    again = embedded_rows.Again.__call__

    def counted(self: embedded_rows.Again, at: Sequence[int]) -> Tensor:
        made.append(len(at))
        return again(self, at)

    monkeypatch.setattr(embedded_rows, "KEPT", 0)
    monkeypatch.setattr(embedded_rows.Again, "__call__", counted)
    drawn: list[tuple[int, int | None]] = []
    query = replace(query, drawing=lambda done, total: drawn.append((done, total)))
    found = choose(rule, query, 3, places=places(), min_gap=gap, away=away)
    assert found.ids == whole.ids
    assert drawn[0][0] == 0
    assert max(done for done, _ in drawn) >= len(found.ids) // 2
    assert all(total is not None and done <= total for done, total in drawn)
    assert made
    assert [found.scores[pick] for pick in found.ids] == pytest.approx([whole.scores[pick] for pick in whole.ids])
    assert found.reject(found.ids[1:3]).ids == whole.reject(whole.ids[1:3]).ids


@pytest.mark.skipif(cpu_kernels() is None, reason="sketches are made by the native kernels")
def test_a_head_over_maps_is_sketched_sooner_than_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network would run again for every pick."""
    network = nn.Sequential(nn.Conv2d(5, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 4, 1)).eval()
    assert not embedded_rows._too_large(make_query(), "image")
    monkeypatch.setattr(embedded_rows, "KEPT_OF_HEAD", 0)
    assert embedded_rows._too_large(make_query(), "image")
    assert not embedded_rows._too_large(make_query(model=network), "image")
    monkeypatch.setattr(embedded_rows, "KEPT", 0)
    assert embedded_rows._too_large(make_query(model=network), "image")


@pytest.mark.skipif(cpu_kernels() is None, reason="sketches are made by the native kernels")
def test_an_image_that_is_not_finite_is_named_where_embeddings_are_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_rows, "KEPT", 0)
    query = make_query()
    query.pool.images[11, 2, 3, 3] = torch.nan  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"NaN or infinity.*'f11'"):
        choose(get_strategy("alges-effort")(), query, 2)


def test_windows_are_a_sequence_as_a_list_of_them_is() -> None:
    sizes = [SIZE, (9, 8), SIZE]
    known = [window for id, size in zip("abc", sizes, strict=True) for window in windows_of(id, size, GRID)]
    gone = random.Random(0).sample(range(len(known)), 9)
    kept = [window for at, window in enumerate(known) if at not in gone]
    whole = GridWindows("abc", sizes, GRID)
    windows = whole.without(whole.numbers_of([known[at] for at in gone]))
    assert list(windows) == kept
    assert [windows[at] for at in range(-len(kept), len(kept))] == kept + kept
    assert windows[3:7] == kept[3:7]
    assert all(window in windows and windows.index(window) == at for at, window in enumerate(kept))
    assert not any(known[at] in windows for at in gone)
    assert Window("a", 0, 0, 1, 1) not in windows
    assert "a" not in windows
    with pytest.raises(IndexError):
        windows[len(kept)]
    with pytest.raises(ValueError, match="not among"):
        windows.index(known[gone[0]])
    assert windows.areas().tolist() == [window.pixels for window in kept]
    some = torch.arange(0, len(windows), 3)
    assert windows.sides(some).tolist() == [(kept[at].width + kept[at].height) / 2 for at in some.tolist()]
    assert windows.of_images(["b"]).tolist() == [window.id == "b" for window in kept]


def test_what_is_closed_with_its_frame_is_closed_to_every_question() -> None:
    windows = GridWindows(NAMES, [SIZE] * N, GRID)
    taken = Taken([windows[0], windows[40]], Closed([windows[50]], [NAMES[2]], windows))
    expected = {windows[0], windows[40], windows[50], *windows_of(NAMES[2], SIZE, GRID)}
    assert set(taken) == expected
    assert len(taken) == len(expected)
    assert {window for window in windows if window in taken} == expected
    picked, gone = taken.among(windows)
    assert picked.tolist() == [0, 40]
    assert [windows[at] for at in gone.nonzero()[:, 0].tolist()] == sorted(expected, key=windows.index)
    listed = list(windows)
    assert torch.equal(taken.among(listed)[1], gone)


class ByHand(Strategy):
    """As a user writes one, with a draw of its own that looks at what is taken in its own way."""

    name, reference, needs_model = "by-hand", "a test", False

    def rate(self, query: Query) -> Rating:
        assert query.candidates[0] in query.candidates

        def draw(n: int, taken: Any) -> list[Any]:
            gone = set(taken)
            return [window for window in query.candidates if window not in gone][:n]

        return Rating(list(query.candidates), {}, draw)


def test_a_users_strategy_sees_candidates_as_ever() -> None:
    found = choose(ByHand(), make_query(), 3, places=places(), min_gap=2.0)
    assert len(set(found.ids)) == len(found.ids) == 36
    numbers = sorted({NAMES.index(str(window.id)) for window in found.ids})  # type: ignore[union-attr]
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(numbers))
