"""The strategies beyond the paper against their definitions, computed the long way on a small pool: frames and windows.

What each family does with its numbers is tested beside it; here they come from a model and a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.random_streams import stream_seed
from alges_fast.seeding import kmeans_plusplus
from alges_fast.seeding.race import exponentials
from alges_fast.strategies import Candidate, Query, Rating, Taken, get_strategy
from alges_fast.strategies.bait import greedy
from alges_fast.strategies.claspe import stratified
from alges_fast.strategies.classwise import seed_by_class
from alges_fast.strategies.herding import Coverage, typical_width
from alges_fast.strategies.typical import typical
from alges_fast.windows import Window, windows_of
from tests.small_net import Net

N, K, SIZE, REGIONS = 12, 4, 12, (2, 3)
NAMES = (
    *("power-entropy", "balanced-entropy", "foreground-random", "claspe", "alges-img-balanced", "alges-effort"),
    *("alges-frugal", "alges-half", "alges-class", "herding", "uherding", "typical", "strided", "bait"),
)


class Frames(list[tuple[str, Tensor]]):
    @property
    def ids(self) -> list[str]:
        return [id for id, _ in self]


@pytest.fixture(params=["frames", "windows"])
def query(request: pytest.FixtureRequest) -> Query:
    return make_query(request.param)


def make_query(candidates_are: str) -> Query:
    """Of N + 2 frames the last two are labelled; a window's frame has others that are."""
    generator = torch.Generator().manual_seed(1)
    model = Net(K, stride=2).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    images = torch.randn(N + 2, 3, SIZE, SIZE, generator=generator) * torch.linspace(0.5, 2, N + 2).view(-1, 1, 1, 1)
    pool = Frames((f"frame{i:02d}", image) for i, image in enumerate(images))
    candidates: list[Candidate] = [*pool.ids[:N]]
    labelled: list[Candidate] = [*pool.ids[N:]]
    if candidates_are == "windows":
        windows = [window for id in pool.ids[:N] for window in windows_of(id, (SIZE, SIZE), REGIONS)]
        candidates, labelled = [*windows[4:]], [*labelled, *windows[:4]]
    return Query(
        candidates=candidates,
        pool=pool,
        model=model,
        labelled=labelled,
        regions=REGIONS if candidates_are == "windows" else None,
        class_shares=torch.tensor([0.6, 0.3, 0.1, 0.0]),
        videos={id: f"video{i % 3}" for i, id in enumerate(pool.ids)},
        seed=3,
        round=2,
        n_rounds=5,
        batch_size=5,
    )


def maps(query: Query, candidates: Sequence[Candidate]) -> list[tuple[Tensor, Tensor]]:
    """(features (d, pixels), logits (K, rows, columns)) of each candidate, in float64."""
    model, found = query.model.double(), []
    for candidate in candidates:
        id = candidate.id if isinstance(candidate, Window) else candidate
        with torch.no_grad():
            features = model.body(dict(query.pool)[id][None].double())[0]
            logits = model.last(features[None])[0]
        if isinstance(candidate, Window):  # the logits have half the side, and the grid divides it
            box = candidate.x // 2, candidate.y // 2, candidate.width // 2, candidate.height // 2
            cut = slice(box[1], box[1] + box[3]), slice(box[0], box[0] + box[2])
            features, logits = features[:, cut[0], cut[1]], logits[:, cut[0], cut[1]]
        found.append((features.flatten(1), logits))
    query.model.float()
    return found


def rate(name: str, query: Query) -> Rating:
    return get_strategy(name)().rate(query)


Measure = Callable[[Tensor, Tensor], Any]


def each(query: Query, measure: Measure, candidates: Sequence[Candidate] | None = None) -> Tensor:
    """measure(features, logits) of every candidate."""
    rows = [measure(*pair) for pair in maps(query, query.candidates if candidates is None else candidates)]
    return torch.stack([torch.as_tensor(row).double() for row in rows])


def gumbels(query: Query) -> Tensor:
    seed = stream_seed("gumbel", query.seed, query.round)
    return -exponentials(range(len(query.candidates)), seed, 0, 0, torch.device("cpu")).log()


def best(query: Query, keys: Tensor, n: int) -> list[Candidate]:
    return [query.candidates[at] for at in keys.argsort(descending=True)[:n].tolist()]


def entropy_by_class(features: Tensor, logits: Tensor) -> Tensor:
    p = logits.flatten(1).softmax(0)
    return (p * -(p.log() * p).sum(0)).sum(1)


def image_rows(features: Tensor, logits: Tensor) -> Tensor:
    p = logits.flatten(1).softmax(0)
    residual = p - F.one_hot(p.argmax(0), K).T
    return residual @ features.T / p.shape[1]


def own_mass(features: Tensor, logits: Tensor) -> Tensor:
    return logits.flatten(1).softmax(0).sum(1)


def test_draws_in_proportion_to_what_is_summed(query: Query) -> None:
    """Entropy; entropy of a class the more the less of it is labelled, or predicted; all but the largest class."""
    keys = each(query, entropy_by_class).sum(1).log() + gumbels(query)
    found = rate("power-entropy", query)
    assert found.draw(8, Taken()) == best(query, keys, 8)
    assert list(found.scores.values()) == pytest.approx(keys.tolist(), abs=1e-4)
    mass = each(query, own_mass)
    for shares, known in ((query.class_shares.double(), query.class_shares), (mass.sum(0) / mass.sum(), None)):
        keys = (each(query, entropy_by_class) / (shares + 0.01)).sum(1).log() + gumbels(query)
        found = rate("balanced-entropy", replace(query, class_shares=known))
        assert found.draw(8, Taken()) == best(query, keys, 8)
    background = mass.sum(0).argmax()
    keys = (mass.sum(1) - mass[:, background]).log() + gumbels(query)
    assert rate("foreground-random", query).draw(8, Taken()) == best(query, keys, 8)


def test_claspe_takes_turns_from_the_rarest_class_on(query: Query) -> None:
    entropy, noise = each(query, entropy_by_class), gumbels(query) / 100 ** (2 / 3)  # query 2 of 4
    turns = each(query, own_mass).sum(0).argsort().tolist()
    keys = [entropy[:, k].log() + noise for k in turns]
    nothing = torch.zeros(len(query.candidates), dtype=torch.bool)
    expected = stratified(keys, entropy.sum(1).log() + noise, 9, nothing, 0)
    assert rate("claspe", query).draw(9, Taken()) == [query.candidates[at] for at in expected]


def balanced_rows(query: Query, candidates: Sequence[Candidate] | None = None) -> Tensor:
    norms = each(query, image_rows).norm(dim=2).mean(0)
    return each(query, image_rows, candidates) / norms[:, None]


def seeded(query: Query, points: Tensor, n: int) -> list[Candidate]:
    seed = stream_seed("seeding", query.seed, query.round)
    picks = kmeans_plusplus(points.flatten(1).float(), n, seed=seed).indices
    return [query.candidates[at] for at in picks.tolist()]


def test_alges_img_balanced_seeds_rows_of_mean_norm_one(query: Query) -> None:
    points = balanced_rows(query)
    assert points.norm(dim=2).mean(0).tolist() == pytest.approx([1] * K)
    found = rate("alges-img-balanced", query)
    assert found.draw(8, Taken()) == seeded(query, points, 8)
    weights = torch.tensor([1.0, 10, 0, 2])
    weighted = rate("alges-img-balanced", replace(query, class_weights=weights.tolist()))
    assert weighted.draw(8, Taken()) == seeded(query, points * weights[:, None], 8)


@pytest.mark.parametrize(("name", "power"), [("alges-effort", 0.5), ("alges-frugal", 1.0)])
def test_embeddings_are_divided_by_a_power_of_predicted_outline_and_a_quarter_of_the_side(
    name: str, power: float, query: Query
) -> None:
    def outline(features: Tensor, logits: Tensor) -> float:
        classes = logits.argmax(0).tolist()
        rows, columns = len(classes), len(classes[0])
        beside = sum(classes[y][x] != classes[y][x + 1] for y in range(rows) for x in range(columns - 1))
        below = sum(classes[y][x] != classes[y + 1][x] for y in range(rows - 1) for x in range(columns))
        return beside + below + (rows + columns) / 2 / 4

    cost = each(query, outline)
    points = balanced_rows(query) / cost.pow(power)[:, None, None]
    found = rate(name, query)
    assert found.draw(8, Taken()) == seeded(query, points, 8)
    scale = 2 if query.regions is not None else 1  # windows are paid for in pixels of the image
    expected = points.flatten(1).norm(dim=1) / scale**power
    assert list(found.scores.values()) == pytest.approx(expected.tolist(), rel=1e-4)


def test_half_of_the_picks_are_those_of_alges_frugal_and_half_are_random_ones(query: Query) -> None:
    frugal, chance = rate("alges-frugal", query), rate("random", query)
    asked_for = frugal.draw(4, Taken())
    others = chance.draw(3, Taken(asked_for))
    found = rate("alges-half", query)
    picks = found.draw(7, Taken())
    assert (picks[::2], picks[1::2]) == (asked_for, others)
    assert dict(found.scores) == dict(frugal.scores)
    more = found.draw(4, Taken(picks))
    assert more[::2] == frugal.draw(2, Taken(picks))
    assert more[1::2] == chance.draw(2, Taken({*picks, *more[::2]}))


def test_alges_effort_needs_no_more_passes_of_the_model_than_its_embeddings(query: Query) -> None:
    seen = []
    query.model.body.register_forward_hook(lambda _, images, output: seen.append(len(images[0])))
    passes = []
    for name in ("alges-img-balanced", "alges-effort"):
        seen.clear()
        rate(name, query)
        passes.append(list(seen))
    assert passes[0] == passes[1]


def test_alges_class_seeds_every_classs_row_around_what_is_labelled(query: Query) -> None:
    turns = each(query, own_mass).sum(0).argsort().tolist()
    expected = seed_by_class(
        balanced_rows(query).float(),
        torch.arange(len(query.candidates)),
        9,
        balanced_rows(query, query.labelled).float(),
        classes=turns,
        begun=0,
        seed=stream_seed("seeding", query.seed, query.round),
        group=None,
    )
    assert rate("alges-class", query).draw(9, Taken()) == [query.candidates[at] for at in expected]


@pytest.mark.parametrize("over", ["model", "features"])
@pytest.mark.parametrize("name", ["herding", "typical"])
def test_herding_and_typical_look_at_mean_features(name: str, over: str, query: Query) -> None:
    if over == "features":
        with torch.no_grad():
            frozen = Frames((id, 3 + query.model.body(image[None])[0].sin().half()) for id, image in query.pool)
        query = replace(query, features=frozen, model=None)

    def mean(features: Tensor, logits: Tensor) -> Tensor:
        return (features if over == "model" else 3 + features.sin()).mean(1)

    with_model = query if over == "model" else replace(query, model=Net(K, stride=2))
    if over == "features":
        points = torch.stack([cut.double().mean((1, 2)) for cut in windowed(query, query.candidates)])
        known = torch.stack([cut.double().mean((1, 2)) for cut in windowed(query, query.labelled)])
    else:
        points, known = each(with_model, mean), each(with_model, mean, query.labelled)
    closed = torch.zeros(len(points), dtype=torch.bool)
    if name == "herding":
        expected = Coverage(points, None, typical_width(points), known).pick(7, [], closed)
    else:
        seed = stream_seed("k-means", query.seed, query.round)
        expected = typical(points.float(), 7, known.float(), closed, seed)
    assert rate(name, query).draw(7, Taken()) == [query.candidates[at] for at in expected]


def windowed(query: Query, candidates: Sequence[Candidate]) -> list[Tensor]:
    """The candidates' parts of the query's features, which have half the side of the image."""
    found, of = [], dict(query.features)
    for item in candidates:
        if isinstance(item, Window):
            found.append(of[item.id][:, item.y // 2 :, item.x // 2 :][:, : item.height // 2, : item.width // 2])
        else:
            found.append(of[item])
    return found


def test_uherding_weighs_what_is_covered_by_its_entropy(query: Query) -> None:
    def mean(features: Tensor, logits: Tensor) -> Tensor:
        return features.mean(1)

    points, known = each(query, mean), each(query, mean, query.labelled)
    coverage = Coverage(points, each(query, entropy_by_class).sum(1), typical_width(points), known)
    expected = coverage.pick(7, [], torch.zeros(len(points), dtype=torch.bool))
    assert rate("uherding", query).draw(7, Taken()) == [query.candidates[at] for at in expected]


def test_bait_reduces_the_pools_variance(query: Query) -> None:
    def information(features: Tensor, logits: Tensor) -> Tensor:
        likely = logits.flatten(1).softmax(0).amax(0)
        return (features * likely * (1 - likely)) @ features.T

    candidates, known = each(query, information), each(query, information, query.labelled).sum(0)
    ridge = 1e-3 * candidates.sum(0).trace() / 6 / len(candidates)
    closed = torch.zeros(len(candidates), dtype=torch.bool)
    start = known + ridge * torch.eye(6).double()
    expected = greedy(candidates, start, candidates.sum(0) + known, 7, closed)
    assert rate("bait", query).draw(7, Taken()) == [query.candidates[at] for at in expected]


def test_strided_takes_videos_in_turn_and_frames_far_from_labelled_ones(query: Query) -> None:
    """video0: frames 0 3 6 9 and 12, labelled; video1: 1 4 7 10 and 13, labelled; video2: 2 5 8 11."""
    whole = replace(
        query, candidates=[f"frame{i:02d}" for i in range(N)], labelled=["frame12", "frame13"], regions=None, model=None
    )
    # video2 is behind by one; then each in turn. Of five frames with the last labelled the first is farthest.
    assert rate("strided", whole).draw(1, Taken()) == ["frame08"]
    assert rate("strided", whole).draw(3, Taken(["frame08"])) == ["frame00", "frame01", "frame02"]
    windows = replace(
        whole, regions=REGIONS, candidates=[w for id in whole.candidates for w in windows_of(id, (SIZE, SIZE), REGIONS)]
    )
    found = rate("strided", windows).draw(8, Taken())
    assert found == [*windows_of("frame08", (SIZE, SIZE), REGIONS), *windows_of("frame00", (SIZE, SIZE), REGIONS)[:2]]


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_keeps_to_what_is_open_and_repeats(name: str, query: Query) -> None:
    found = rate(name, query)
    first = found.draw(5, Taken())
    assert len(set(first)) == 5
    assert rate(name, query).draw(5, Taken()) == first
    assert found.draw(5, Taken()) == first
    taken = Taken(first[:3], closed=first[3:])
    rest = found.draw(10**6, taken)
    assert sorted(map(str, rest)) == sorted(str(item) for item in query.candidates if item not in taken)
    assert list(found.draw(3, Taken(query.candidates))) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_closed_is_no_centre(name: str, query: Query) -> None:
    """A candidate that was refused leaves the pool as if no pick had been made of it."""
    found = rate(name, query)
    refused = query.candidates[3]
    first = found.draw(4, Taken(closed=[refused]))
    if refused not in (plain := found.draw(4, Taken())) and name != "typical":
        assert first == plain
    assert refused not in first


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_draws_otherwise_where_chance_is_in_it(name: str, query: Query) -> None:
    draws = {tuple(rate(name, replace(query, seed=seed)).draw(4, Taken())) for seed in range(4)}
    assert (len(draws) == 1) == (name in ("herding", "uherding", "strided", "bait"))
    assert get_strategy(name).needs_model == (name not in ("herding", "typical", "strided"))


def test_without_model_and_features_it_says_what_is_missing(query: Query) -> None:
    with pytest.raises(ValueError, match="features: there is no trained model"):
        rate("herding", replace(query, model=None))
