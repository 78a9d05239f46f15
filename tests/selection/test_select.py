"""`alges_fast.select`: picks are what the strategies define, and what the user asked for besides holds."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from alges_fast import Selection, embed_pool, select
from alges_fast.strategies import Candidate, Query, Taken, get_strategy, strategy_names
from alges_fast.windows import windows_of

Pool = list[tuple[str, Tensor]]

choosing = importlib.import_module("alges_fast.selection.choose")  # the name in the package is the function
ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = [name for name in strategy_names() if not name.startswith(("deal", "full"))]


PLACES = {f"frame{i:02d}": (f"video{i // 10}", float(i % 10)) for i in range(40)}


def choose(model: nn.Module, pool: Pool, n: int | None = 8, **options: object) -> Selection:
    return select(model, pool, n, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_picks_are_those_of_the_strategy_itself(strategy: str, model: nn.Module, pool: Pool) -> None:
    videos = {name: video for name, (video, _) in PLACES.items()}
    query = Query([name for name, _ in pool], pool, model, videos=videos, seed=5)
    found = choose(model, pool, strategy=strategy, seed=5, places=PLACES)
    assert list(found.ids) == get_strategy(strategy)().rate(query).draw(8, Taken())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labelled_images_are_never_picked(strategy: str, model: nn.Module, pool: Pool) -> None:
    labelled = [name for name, _ in pool[::2]]
    found = choose(model, pool, 20, strategy=strategy, labelled=labelled, places=PLACES)
    assert sorted(found.ids) == [name for name, _ in pool[1::2]]


@pytest.mark.parametrize("regions", [None, (3, 2)], ids=["frames", "windows"])
@pytest.mark.parametrize("centres", [False, True])
def test_what_is_labelled_is_a_centre_where_it_should_be(
    model: nn.Module,
    pool: Pool,
    centres: bool,
    regions: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy of what is labelled is at distance 0 of a centre, so it is picked only after all others."""
    monkeypatch.setattr(choosing, "LABELLED_ARE_CENTRES", centres)
    copies = [(f"copy{i}", image) for i, (_, image) in enumerate(pool[:5])]
    labelled: list[Candidate] = [name for name, _ in pool[:5]]
    if regions is not None:
        labelled = [window for name in labelled for window in windows_of(name, (13, 10), regions)]
    for strategy in ("alges-img", "alges-sem", "alges-sem-vector", "coreset"):
        budget = {"n": 40} if regions is None else {"n": None, "pixels": 40 * 130, "regions": regions}
        found = choose(model, [*pool, *copies], **budget, strategy=strategy, labelled=labelled)
        frames = {getattr(pick, "id", pick) for pick in found.ids[-len(labelled) :]}
        assert (frames == {name for name, _ in copies}) == (centres or strategy == "coreset"), strategy


def test_what_is_labelled_counts_in_norms_where_it_should(
    model: nn.Module, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class's row counts for less where labelled images have much of it."""
    rows = embed_pool(model, pool, output="image", progress=False).values
    norms = rows.flatten(2).norm(dim=2)
    for known, over in ((False, norms[20:]), (True, norms)):
        monkeypatch.setattr(choosing, "LABELLED_COUNT_IN_NORMS", known)
        found = choose(model, pool, strategy="alges-img-balanced", labelled=[name for name, _ in pool[:20]])
        expected = (norms[20:] / over.mean(0)).norm(dim=1)
        assert list(found.scores.values()) == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_neighbours_in_a_video_are_not_picked_together(strategy: str, model: nn.Module, pool: Pool) -> None:
    options = {"strategy": strategy, "places": PLACES, "min_gap": 3.0, "labelled": ["frame00", "frame15"]}
    found = choose(model, pool, 8, **options)
    places = [PLACES[str(name)] for name in (*found.ids, "frame00", "frame15")]
    for i, (video, time) in enumerate(places):
        for other, other_time in places[:i]:
            assert video != other or abs(time - other_time) >= 3
    assert found == choose(model, pool, 8, **options)


def test_a_gap_that_leaves_too_few_is_halved_and_said(
    model: nn.Module, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    found = choose(model, pool, 30, places=PLACES, min_gap=8.0)
    assert len(set(found.ids)) == 30
    assert "min_gap is now 4" in caplog.text
    caplog.clear()
    found = choose(model, pool, None, pixels=30 * 130, regions=(3, 2), places=PLACES, min_gap=8.0)
    assert sum(window.pixels for window in found.ids) > 29 * 130
    assert "min_gap is now 4" in caplog.text


def test_a_class_of_weight_zero_has_no_part_and_a_heavy_one_leads(model: nn.Module, pool: Pool) -> None:
    rows = embed_pool(model, pool, output="image", progress=False).values
    alone = choose(model, pool, class_weights=[0, 0, 1])
    assert list(alone.scores.values()) == pytest.approx(rows[:, 2].flatten(1).norm(dim=1).tolist(), rel=1e-5)
    assert choose(model, pool, class_weights=[1e-4, 1e-4, 1]).ids == alone.ids
    assert choose(model, pool, class_weights=[1, 1, 1]).ids == choose(model, pool).ids


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_refused_picks_are_replaced_and_the_others_stay(strategy: str, model: nn.Module, pool: Pool) -> None:
    first = choose(model, pool, strategy=strategy, places=PLACES, min_gap=2.0)
    refused = [first.ids[1], first.ids[4]]
    second = first.reject(refused)
    assert len(set(second.ids)) == len(first.ids)
    assert second.ids[:6] == tuple(name for name in first.ids if name not in refused)
    assert second == first.reject(refused[:1]).reject(refused[1:])
    third = second
    for _ in range(10):
        third = third.reject(third.ids[-1:])
    assert not set(third.ids) & set(refused)
    with pytest.raises(ValueError, match="is not among the picks"):
        second.reject(refused)


@pytest.mark.parametrize(
    ("strategy", "regions"), [("coreset", None), ("entropy", (3, 2)), ("alges-sem", None), ("alges-img", (3, 2))]
)
def test_killed_scoring_is_continued(
    strategy: str, regions: tuple[int, int] | None, model: nn.Module, pool: Pool, tmp_path: Path
) -> None:
    def stop(done: int, total: int | None) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    budget = {"n": 8} if regions is None else {"pixels": 130, "regions": regions}
    options = {**budget, "strategy": strategy, "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        select(model, pool, progress=stop, out=tmp_path, **options)
    seen: list[int] = []
    resumed = {**options, "out": tmp_path, "resume": True}
    found = select(model, pool, progress=lambda done, total: seen.append(done), **resumed)
    assert seen[0] >= 8
    assert found == select(model, pool, progress=False, **options)
    if regions is not None:
        with pytest.raises(ValueError, match="of another model or other arguments"):
            select(model, pool, progress=False, **{**resumed, "regions": (2, 2)})


def test_a_strategy_that_draws_what_it_must_not_is_told_so(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from alges_fast.strategies import Rating, Strategy\n"
        "class Stubborn(Strategy):\n"
        "    name, reference, needs_model = 'stubborn', '-', False\n"
        "    def rate(self, query):\n"
        "        return Rating(query.candidates, {}, lambda n, taken: query.candidates[:n])\n"
    )
    chosen = select(None, pool, 4, strategy=f"{tmp_path}/mine.py:Stubborn")
    with pytest.raises(ValueError, match="different candidates, none of them taken; it gave 1, 0 of them"):
        chosen.reject(chosen.ids[:1])


def test_a_pool_of_arrays_is_named_by_position(model: nn.Module) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 3, 8, 8)).astype(np.uint8)
    for strategy in ("random", "alges-img"):
        assert set(select(model, images, 12, strategy=strategy, progress=False).ids) == set(range(12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "deal"}, "'deal' needs a model"),
        ({"strategy": "algesimg"}, "'algesimg' is unknown"),
        ({"n": 41}, "n: the budget must be between 1 and 40"),
        ({"n": 0}, "n: the budget must be between 1 and 40"),
        ({"labelled": ["nowhere"]}, "labelled: 'nowhere' is not in the pool"),
        ({"class_weights": [1.0]}, "class_weights: expected 3, one per class, got 1"),
        ({"class_weights": [1.0, -1.0, 0.0]}, "not negative"),
        ({"class_weights": [1.0, 1.0, 1.0], "strategy": "entropy"}, "class_weights: entropy has no rows"),
        ({"min_gap": -1.0}, "min_gap must be finite, 0 or more"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str, model: nn.Module, pool: Pool) -> None:
    with pytest.raises(ValueError, match=message):
        choose(model, pool, **options)  # type: ignore[arg-type]
