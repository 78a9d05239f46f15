"""How strategies draw: what counts as picked, what is only closed, and that equal questions get equal answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.errors import UserError
from alges_fast.models.deal import DealModel
from alges_fast.random_streams import stream_seed
from alges_fast.seeding import Seeding, k_center_greedy, kmeans_plusplus
from alges_fast.strategies import Query, Taken, by_score, by_seeding, candidate_images, get_strategy, mean_features
from alges_fast.windows import Window, windows_of
from tests.small_net import Net

NAMES = [f"frame{i:02d}" for i in range(20)]
POINTS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
K, SIZE, REGIONS = 3, (8, 12), (2, 3)


def query(**settings: Any) -> Query:
    return Query(NAMES, [(name, torch.zeros(3, 4, 4)) for name in NAMES], **settings)


def seedings(asked: Query, calls: list[dict[str, Any]]) -> Any:
    def choose(points: Tensor, n: int, **options: Any) -> Seeding:
        calls.append({"points": points, **options})
        return kmeans_plusplus(points, n, **options)

    return by_seeding(asked, POINTS, torch.arange(20), choose)


def test_taken_is_a_set_of_what_was_picked_and_what_is_closed() -> None:
    taken = Taken(["a", "b"], ["c"])
    assert taken == {"a", "b", "c"}
    assert taken.closed == {"c"}
    assert Taken() == set()


def test_what_is_taken_is_a_centre_of_the_seeding_and_what_is_closed_is_not() -> None:
    calls: list[dict[str, Any]] = []
    rating = seedings(query(labelled=NAMES[:2]), calls)
    drawn = rating.draw(5, Taken([NAMES[0], NAMES[1], NAMES[7]], [NAMES[9], NAMES[4]]))
    free = [i for i in range(20) if i not in (0, 1, 7, 9, 4)]
    assert torch.equal(calls[0]["existing"], POINTS[[0, 1, 7]])
    assert torch.equal(calls[0]["points"], POINTS[free])
    assert calls[0]["global_index"].tolist() == free
    assert set(drawn) <= {NAMES[i] for i in free}


def test_the_first_draw_has_the_querys_own_seed_and_later_ones_that_of_how_many_were_drawn() -> None:
    calls: list[dict[str, Any]] = []
    rating = seedings(query(labelled=NAMES[:2], seed=5, round=3), calls)
    rating.draw(4, Taken(NAMES[:2], NAMES[10:12]))
    rating.draw(4, Taken(NAMES[:5]))
    rating.draw(4, Taken(NAMES[:5], NAMES[10:12]))
    assert [call["seed"] for call in calls] == [stream_seed("seeding", 5, 3), *[stream_seed("seeding", 5, 3, 3)] * 2]


@pytest.mark.parametrize("strategy", ["random", "stratified-random", "own score", "own seeding"])
def test_equal_questions_get_equal_answers_and_a_draw_goes_on_where_there_is_too_little(strategy: str) -> None:
    videos = {name: f"video{i % 3}" for i, name in enumerate(NAMES)}
    asked = query(seed=2, videos=videos)
    ratings = {
        "own score": lambda: by_score(asked, {name: float(i * 7 % 20) for i, name in enumerate(NAMES)}),
        "own seeding": lambda: by_seeding(asked, POINTS, torch.arange(20), k_center_greedy),
    }
    rating = ratings[strategy]() if strategy in ratings else get_strategy(strategy)().rate(asked)
    first = list(rating.draw(6, Taken()))
    rest = list(rating.draw(50, Taken(first)))
    assert sorted([*first, *rest]) == NAMES
    assert list(rating.draw(6, Taken())) == first
    assert list(rating.draw(1, Taken(NAMES))) == []


def test_scores_go_from_the_highest_and_of_equal_ones_from_the_first() -> None:
    scores = {name: float(i // 4) for i, name in enumerate(NAMES)}
    rating = by_score(query(), scores)
    assert rating.draw(6, Taken([NAMES[17]], [NAMES[12]])) == [NAMES[i] for i in (16, 18, 19, 13, 14, 15)]
    assert dict(rating.scores) == scores
    assert list(rating.scores) == list(rating.ids) == NAMES


def test_a_candidate_without_a_score_is_not_rated() -> None:
    rating = by_score(query(), dict.fromkeys(NAMES[::2], 1.0))
    assert list(rating.ids) == NAMES[::2]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="NaN or infinity of 2 of the pool's candidates, first of 'frame03'"):
        by_score(query(), {**dict.fromkeys(NAMES, 1.0), NAMES[5]: float("nan"), NAMES[3]: float("inf")})


# Windows: what the long way gives for each.


@pytest.fixture
def windows() -> Query:
    torch.manual_seed(0)
    pool = [(name, torch.rand(3, *SIZE)) for name in NAMES[:6]]
    grid = [window for name, _ in pool for window in windows_of(name, SIZE, REGIONS)]
    return Query(grid, pool, Net(K, 5).eval(), regions=REGIONS, batch_size=4)


def inside(values: Tensor, window: Window) -> Tensor:
    return values[(..., *window.box)]


@torch.no_grad()
@pytest.mark.parametrize("tail", ["resized", "clamped"])
def test_mean_features_below_what_follows_the_last_layer(tail: str, windows: Query) -> None:
    """Through a resize they are those of the resized features; after any other tail those of the layer's own grid."""

    class Half(Net):
        def forward(self, images: Tensor) -> Tensor:
            logits = F.interpolate(self.last(self.half(images)), SIZE, mode="bilinear")
            return logits.clamp(-0.1, 0.1) if tail == "clamped" else logits

        def half(self, images: Tensor) -> Tensor:
            return F.avg_pool2d(self.body(images), 2)

    model = Half(K, 5).eval()
    features = {name: model.half(image[None]) for name, image in windows.pool}
    scale = 2
    if tail == "resized":
        features, scale = {name: F.interpolate(z, SIZE, mode="bilinear") for name, z in features.items()}, 1
    expected = [
        inside(features[w.id][0], Window(w.id, *(side // scale for side in w[1:]))).mean((1, 2))
        for w in windows.candidates
    ]
    asked = Query(windows.candidates, windows.pool, model, regions=REGIONS)
    torch.testing.assert_close(mean_features(asked, windows.candidates), torch.stack(expected))
    with pytest.raises(ValueError, match="'nowhere' is not in the pool"):
        mean_features(asked, ["nowhere"])


@torch.no_grad()
def test_deal_scores_a_window_by_its_own_pixels(windows: Query) -> None:
    model = DealModel(windows.model, K, seed=0).eval()
    asked = Query(windows.candidates, windows.pool, model, regions=REGIONS)
    rating = get_strategy("deal-score")().rate(asked)
    for name, image in windows.pool:
        logits, difficulty = model.difficulty(image[None])
        p = logits.softmax(1)
        product = (-p.xlogy(p).sum(1) * difficulty)[0]
        for window in windows_of(name, SIZE, REGIONS):
            assert rating.scores[window] == pytest.approx(float(inside(product, window).mean()), rel=1e-4)


@torch.no_grad()
def test_the_released_semantic_embedding_of_a_window_sums_over_its_own_pixels(windows: Query) -> None:
    seen: list[Tensor] = []

    def keep(points: Tensor, n: int, **options: object) -> Seeding:
        seen.append(points)
        return kmeans_plusplus(points, n)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alges_fast.strategies.released.kmeans_plusplus", keep)
        get_strategy("alges-sem-released")().rate(windows).draw(3, Taken())
    expected = []
    for name, image in windows.pool:
        z, p = windows.model.body(image[None])[0], windows.model(image[None])[0].softmax(0)
        weight = ((p**2).sum(0) + K * (1 - 2 * p.amax(0))) * (z**2).sum(0)
        of_class = F.one_hot(p.argmax(0), K).movedim(-1, 0) * weight
        expected += [inside(of_class, window).sum((1, 2)) for window in windows_of(name, SIZE, REGIONS)]
    torch.testing.assert_close(seen[0], torch.stack(expected))


def test_candidate_images_are_cut_to_the_window(windows: Query) -> None:
    frames = dict(windows.pool)
    found = dict(candidate_images(windows))
    assert list(found) == list(windows.candidates)
    assert all(torch.equal(image, inside(frames[window.id], window)) for window, image in found.items())


def test_windows_that_are_no_grid_are_refused(windows: Query) -> None:
    bad = [*windows.candidates, Window("frame00", 1, 0, 3, 4)]
    with pytest.raises(ValueError, match="'frame00#xywh=1,0,3,4' is no window of a grid of 2 x 3"):
        get_strategy("entropy")().rate(Query(bad, windows.pool, windows.model, regions=REGIONS))
    with pytest.raises(ValueError, match="'frame00' is no window of a grid of 2 x 3"):
        get_strategy("entropy")().rate(Query(["frame00"], windows.pool, windows.model, regions=REGIONS))
