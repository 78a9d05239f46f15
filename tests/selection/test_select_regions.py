"""`alges_fast.select` with regions: windows where gradient mass is, within a budget of pixels."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alges_fast import LastLayer, Selection, Window, kmeans_plusplus, select
from alges_fast.random_streams import stream_seed
from alges_fast.strategies import strategy_names
from alges_fast.windows import windows_of

Pool = list[tuple[str, Tensor]]

SIZE, REGIONS = (13, 10), (3, 2)  # neither side divides evenly
PIXELS = SIZE[0] * SIZE[1]
STRATEGIES = [name for name in strategy_names() if not name.startswith(("deal", "full"))]


PLACES = {f"frame{i:02d}": (f"video{i // 10}", float(i % 10)) for i in range(40)}
WINDOWS = [window for name in PLACES for window in windows_of(name, SIZE, REGIONS)]


def choose(model: nn.Module, pool: Pool, budget: int = 4 * PIXELS, **options: Any) -> Selection:
    return select(
        model, pool, pixels=budget, regions=REGIONS, progress=False, **{"strategy": "alges-effort", **options}
    )


def cost(windows: tuple[Window, ...]) -> int:
    return sum(window.pixels for window in windows)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_budget_is_spent_to_less_than_a_window_and_never_exceeded(
    strategy: str, model: nn.Module, pool: Pool
) -> None:
    for budget in (2 * PIXELS, 2 * PIXELS + 3, 40 * PIXELS):
        found = choose(model, pool, budget, strategy=strategy, places=PLACES)
        assert len(set(found.ids)) == len(found.ids)
        assert set(found.ids) <= set(WINDOWS)
        assert budget - max(window.pixels for window in WINDOWS) < cost(found.ids) <= budget
    assert set(found.ids) == set(WINDOWS)


def test_picks_are_seeded_from_the_windows_embeddings(model: nn.Module, pool: Pool) -> None:
    images = torch.stack([image for _, image in pool])
    rows = LastLayer.find(model, images).window_gradients(images, REGIONS).image
    points = rows.flatten(0, 1).flatten(1)
    found = choose(model, pool, seed=3, strategy="alges-img")
    expected = kmeans_plusplus(points, len(found.ids), seed=stream_seed("seeding", 3, 0)).indices
    assert found.ids == tuple(WINDOWS[at] for at in expected.tolist())
    assert [found.scores[window] for window in WINDOWS] == pytest.approx(points.norm(dim=1).tolist(), rel=1e-4)


def test_windows_are_random_where_no_strategy_is_named(model: nn.Module, pool: Pool) -> None:
    given = {"regions": REGIONS, "pixels": 4 * PIXELS, "progress": False}
    assert select(model, pool, **given).ids == choose(model, pool, strategy="random").ids


def test_a_larger_budget_goes_on_from_the_smaller_ones_picks(model: nn.Module, pool: Pool) -> None:
    few, many = choose(model, pool, 3 * PIXELS).ids, choose(model, pool, 6 * PIXELS).ids
    assert many[: len(few)] == few


def test_windows_with_gradient_are_picked_over_windows_without(model: nn.Module) -> None:
    """In frames that are black but for one corner, where the model is sure of the rest, the corners are picked."""
    head = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        head.weight.zero_()
    pool = torch.zeros(12, 3, 12, 12)  # z = 0: no gradient
    pool[:, :, :4, 8:] = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = select(head, pool, pixels=12 * 16, regions=(3, 3), strategy="alges-effort", progress=False, seed=1)
    assert {window for window in found.ids[1:] if (window.x, window.y) != (8, 0)} == set()
    assert len(found.ids) == 12


@pytest.mark.parametrize("strategy", ["random", "alges-effort", "entropy", "typical"])
def test_windows_are_of_few_frames_where_that_is_asked(
    strategy: str, model: nn.Module, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """The first frames that are drawn from; rejecting a window does not open another frame."""
    anywhere = choose(model, pool, strategy=strategy)
    few = choose(model, pool, strategy=strategy, frames_at_most=5)
    frames = list(dict.fromkeys(window.id for window in anywhere.ids))
    assert len({window.id for window in few.ids}) == 5 < len(frames)
    assert few.ids[:5] == anywhere.ids[:5] or frames[:5] != [window.id for window in anywhere.ids[:5]]
    assert 4 * PIXELS - max(window.pixels for window in WINDOWS) < cost(few.ids) <= 4 * PIXELS
    again = few.reject([few.ids[3]])
    assert {window.id for window in again.ids} <= {window.id for window in few.ids}
    assert not caplog.records
    least = choose(model, pool, strategy=strategy, frames_at_most=2)
    assert {window.id for window in least.ids} <= set(frames)
    assert cost(least.ids) == 2 * PIXELS  # both frames whole, and no more
    assert "2 frames have no more windows" in caplog.text


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labelled_images_and_windows_are_never_picked(strategy: str, model: nn.Module, pool: Pool) -> None:
    labelled: list[str | Window] = ["frame03", "frame17", WINDOWS[0], WINDOWS[7]]
    gone = {*windows_of("frame03", SIZE, REGIONS), *windows_of("frame17", SIZE, REGIONS), WINDOWS[0], WINDOWS[7]}
    budget = 40 * PIXELS - cost(tuple(gone))
    found = choose(model, pool, budget, strategy=strategy, labelled=labelled, places=PLACES)
    assert set(found.ids) == set(WINDOWS) - gone


def test_a_labelled_window_of_another_grid_takes_those_that_it_shares_a_pixel_with(
    model: nn.Module, pool: Pool
) -> None:
    found = choose(model, pool, 39 * PIXELS, labelled=[Window("frame00", 1, 4, 2, 3)], strategy="coreset")
    assert {window for window in WINDOWS[:6] if window in found.ids} == set(WINDOWS[:6]) - {WINDOWS[2]}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images_that_are_neighbours_are_not_both_cut_up_but_one_may_give_many_windows(
    strategy: str, model: nn.Module, pool: Pool
) -> None:
    options = {"strategy": strategy, "places": PLACES, "min_gap": 3.0, "labelled": ["frame00", WINDOWS[15 * 6]]}
    found = choose(model, pool, 5 * PIXELS, **options)
    touched = {window.id for window in found.ids} | {"frame00", "frame15"}
    places = sorted(PLACES[str(id)] for id in touched)
    for (video, time), (next_video, next_time) in itertools.pairwise(places):
        assert video != next_video or next_time - time >= 3
    assert len(found.ids) > len(touched)  # some image gave several
    assert found == choose(model, pool, 5 * PIXELS, **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_refused_windows_and_images_are_replaced_for_their_pixels(strategy: str, model: nn.Module, pool: Pool) -> None:
    first = choose(model, pool, strategy=strategy, places=PLACES, min_gap=2.0)
    window, image = first.ids[1], first.ids[-1].id
    second = first.reject([window, image])
    kept = [one for one in first.ids if one != window and one.id != image]
    assert list(second.ids[: len(kept)]) == kept
    assert window not in second.ids
    assert image not in {one.id for one in second.ids}
    assert second.budget - max(one.pixels for one in WINDOWS) < cost(second.ids) <= second.budget
    assert second == first.reject([window]).reject([image])
    with pytest.raises(ValueError, match="is not among the picks"):
        second.reject([window])


def test_windows_are_in_the_sizes_given(model: nn.Module, pool: Pool) -> None:
    """The pool holds frames as the model wants them; windows and budget are of the frames as the annotator has them."""
    sizes = {name: (130 + 10 * (at % 2), 100) for at, (name, _) in enumerate(pool)}
    found = choose(model, pool, 40_000, sizes=sizes)
    assert all(window in windows_of(window.id, sizes[str(window.id)], REGIONS) for window in found.ids)
    assert 40_000 - 50 * 47 < cost(found.ids) <= 40_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "deal"}, "'deal' needs a model that was trained for it"),
        ({"budget": 3}, "pixels: the budget must be between 20 and 5200"),
        ({"budget": 5201}, "pixels: the budget must be between 20 and 5200"),
        ({"labelled": ["nowhere"]}, "labelled: 'nowhere' is not in the pool"),
        ({"sizes": {"frame00": SIZE}}, "sizes: has no size of image 'frame01'"),
        ({"class_weights": [1.0]}, "class_weights: expected 3, one per class, got 1"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str, model: nn.Module, pool: Pool) -> None:
    with pytest.raises(ValueError, match=message):
        choose(model, pool, **options)
