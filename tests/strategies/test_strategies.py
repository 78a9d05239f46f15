"""Every strategy's picks against its definition, computed the long way on a small pool."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from alges_fast import models
from alges_fast.errors import UserError
from alges_fast.models.deal import DealModel, attention
from alges_fast.random_streams import stream_seed
from alges_fast.seeding import kmeans_plusplus
from alges_fast.strategies import Query, Taken, get_strategy
from alges_fast.strategies.deal import difficulty_entropy
from alges_fast.strategies.embedding import forward
from tests.small_net import Net

N, K, SIZE, PICKS = 14, 4, 12, 5


def net(kernel: int = 1) -> Net:
    return Net(K, kernel=kernel, norm=True)


def make_query(model: nn.Module) -> Query:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(6, generator=generator)
            module.running_var = 0.5 + torch.rand(6, generator=generator)
    images = torch.randn(N + 3, 3, SIZE, SIZE, generator=generator)
    images *= torch.linspace(0.5, 2, N + 3).view(-1, 1, 1, 1)
    items = [(f"frame{i:02d}", image) for i, image in enumerate(images)]
    names = [name for name, _ in items]
    settings = {"seed": 3, "round": 2, "batch_size": 4}
    return Query(candidates=names[:N], pool=items, model=model.eval(), labelled=names[N:], **settings)


@pytest.fixture(params=[1, 3], ids=["1x1 head", "3x3 head"])
def query(request: pytest.FixtureRequest) -> Query:
    return make_query(net(request.param))


@dataclass(frozen=True)
class Answer:
    ids: tuple[str, ...]
    scores: Mapping[str, float]


def unlabelled(query: Query) -> list[tuple[str, torch.Tensor]]:
    frames = dict(query.pool)
    return [(name, frames[name]) for name in query.candidates]


def labelled(query: Query) -> list[tuple[str, torch.Tensor]]:
    frames = dict(query.pool)
    return [(name, frames[name]) for name in query.labelled]


def ids(query: Query, positions: Iterable[int]) -> tuple[str, ...]:
    return tuple(query.candidates[int(i)] for i in positions)


def ask(name: str, query: Query, n: int = PICKS) -> Answer:
    rating = get_strategy(name)().rate(query)
    return Answer(tuple(rating.draw(n, Taken())), rating.scores)


def seeded(query: Query, points: torch.Tensor, **options: int) -> tuple[str, ...]:
    seed = stream_seed("seeding", query.seed, query.round)
    return ids(query, kmeans_plusplus(points.flatten(1).float(), PICKS, **{"seed": seed, **options}).indices)


def pixel_gradients(query: Query) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each frame: every pixel's gradient (pixels, K, d * kernel area) and prediction (pixels,)."""
    found = []
    kernel = query.model.last.kernel_size[0]
    for _, image in unlabelled(query):
        with torch.no_grad():
            patches = F.unfold(query.model.body(image[None]), kernel, padding=kernel // 2)[0].T
            logits = query.model(image[None])[0].flatten(1).T
        residual = logits.softmax(1) - F.one_hot(logits.argmax(1), K)
        found.append((residual[:, :, None] * patches[:, None, :], logits.argmax(1)))
    return found


def test_alges_img_seeds_the_gradient_of_each_frame(query: Query) -> None:
    points = []
    for _, image in unlabelled(query):
        logits = query.model(image[None])
        loss = F.cross_entropy(logits, logits.argmax(1))
        points.append(torch.autograd.grad(loss, query.model.last.weight)[0])
    assert ask("alges-img", query).ids == seeded(query, torch.stack(points))


def test_alges_sem_seeds_the_gradient_norms_summed_by_predicted_class(query: Query) -> None:
    points = torch.zeros(N, K)
    for i, (gradient, predicted) in enumerate(pixel_gradients(query)):
        points[i].index_add_(0, predicted, gradient.flatten(1).norm(dim=1))
    assert ask("alges-sem", query).ids == seeded(query, points)


def test_alges_sem_vector_seeds_the_own_class_gradient_summed_by_predicted_class(query: Query) -> None:
    points = []
    for gradient, predicted in pixel_gradients(query):
        own = gradient[torch.arange(len(predicted)), predicted]
        points.append(torch.zeros(K, own.shape[1]).index_add_(0, predicted, own))
    assert ask("alges-sem-vector", query).ids == seeded(query, torch.stack(points))


def test_alges_img_released_norms_a_running_sum_over_the_pool_in_train_mode() -> None:
    query = make_query(net())
    model = copy.deepcopy(query.model).train()
    points, summed = [], torch.zeros_like(model.last.weight)
    for _, image in unlabelled(query):
        logits = model(image[None])
        summed = summed + torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), model.last.weight)[0]
        points.append(summed.flatten(1).norm(dim=1))
    before = copy.deepcopy(query.model.state_dict())
    picks = ask("alges-img-released", query)
    assert picks.ids == seeded(query, torch.stack(points), seed=0, trials=2 + int(math.log(PICKS)))
    assert all(torch.equal(before[name], value) for name, value in query.model.state_dict().items())


@pytest.mark.parametrize("name", ["alges-img-released", "alges-sem-released"])
def test_the_released_seeding_is_the_same_every_round_and_every_seed(name: str) -> None:
    query = make_query(net())
    others = [replace(query, seed=seed, round=round) for seed, round in ((0, 0), (3, 5), (7, 2))]
    assert {ask(name, other).ids for other in others} == {ask(name, query).ids}


def test_alges_img_released_needs_more_than_one_value_a_channel() -> None:
    query = make_query(net())
    dots = [(name, image[:, :1, :1]) for name, image in unlabelled(query)]
    with pytest.raises(UserError, match="one value of it: raise --image_size"):
        ask("alges-img-released", replace(query, pool=dots))


def test_alges_sem_released_has_k_where_the_paper_has_one_and_no_root() -> None:
    query = make_query(net())
    points = torch.zeros(N, K)
    with torch.no_grad():
        for i, (_, image) in enumerate(unlabelled(query)):
            z = query.model.body(image[None])[0].flatten(1)
            p = query.model(image[None])[0].flatten(1).softmax(0)
            for pixel in range(SIZE * SIZE):
                weight = (p[:, pixel] ** 2).sum() + K * (1 - 2 * p[:, pixel].max())
                points[i, p[:, pixel].argmax()] += weight * (z[:, pixel] ** 2).sum()
    assert ask("alges-sem-released", query).ids == seeded(query, points, seed=0, trials=3)


@pytest.mark.parametrize("name", ["entropy", "margin", "least-confidence"])
def test_uncertainty_picks_the_highest_mean_over_pixels(query: Query, name: str) -> None:
    scores = []
    for _, image in unlabelled(query):
        with torch.no_grad():
            p = query.model(image[None])[0].flatten(1).softmax(0).double()
        first, second = p.topk(2, dim=0).values
        entropy = -p.xlogy(p).sum(0)
        scores.append(
            float({"entropy": entropy, "margin": 1 - (first - second), "least-confidence": 1 - first}[name].mean())
        )
    picks = ask(name, query)
    assert picks.ids == ids(query, np.argsort(scores)[::-1][:PICKS])
    assert list(picks.scores.values()) == pytest.approx(scores, rel=1e-4)


@pytest.mark.parametrize(("name", "most"), [("entropy", math.log(K)), ("margin", 1.0), ("least-confidence", 1 - 1 / K)])
def test_a_sure_model_scores_zero_an_undecided_one_the_most_and_ties_go_to_the_earlier_frame(
    name: str, most: float
) -> None:
    query = make_query(net())
    query.model.last.weight.data.zero_()
    sure = torch.tensor([0.0, 1e4, -1e4, 0.0])  # p ln p of an underflown p is 0, not NaN
    for bias, score in ((sure, 0.0), (torch.zeros(K), most)):
        query.model.last.bias.data = bias
        picks = ask(name, query)
        assert list(picks.scores.values()) == pytest.approx([score] * N)
        assert picks.ids == ids(query, range(PICKS))


@pytest.mark.parametrize("labelled_frames", [True, False])
def test_coreset_picks_the_farthest_from_labelled_frames_and_picks(query: Query, labelled_frames: bool) -> None:
    """Without labelled frames it starts anywhere."""
    query = query if labelled_frames else replace(query, labelled=(), round=0)
    with torch.no_grad():
        points = [query.model.body(image[None])[0].mean((1, 2)) for _, image in unlabelled(query)]
        centres = [query.model.body(image[None])[0].mean((1, 2)) for _, image in labelled(query)]
    found = [query.candidates.index(name) for name in ask("coreset", query).ids]
    for at in found:
        if centres:
            nearest = [min(float((point - centre).norm()) for centre in centres) for point in points]
            assert at == int(np.argmax(nearest))
        centres.append(points[at])


@pytest.fixture
def deal_query() -> Query:
    query = make_query(DealModel(net(), K, seed=0))
    query.model.gamma.data.fill_(0.7)
    return query


def difficulty(model: DealModel, image: torch.Tensor) -> torch.Tensor:
    """(S, S), with the attention matrix written out."""
    p = F.interpolate(model.segmentation(image[None]).softmax(1), scale_factor=0.25, mode="bilinear")[0].flatten(1)
    q = model.gamma * p @ (p.T @ p).softmax(1).T + p
    head = F.conv2d(q.view(1, K, SIZE // 4, SIZE // 4), model.head.weight, model.head.bias)
    return F.interpolate(head, (SIZE, SIZE), mode="bilinear")[0, 0].sigmoid()


@torch.no_grad()
def test_deal_picks_the_largest_entropy_of_the_difficulty_histogram(deal_query: Query) -> None:
    scores = []
    for _, image in unlabelled(deal_query):
        counts, _ = np.histogram(difficulty(deal_query.model, image).numpy(), bins=10)
        share = counts[counts > 0] / counts.sum()
        scores.append(-(share * np.log(share)).sum())
    picks = ask("deal", deal_query)
    one_pixel = 2 * math.log(SIZE * SIZE) / (SIZE * SIZE)  # a value at a bin's edge may change sides
    assert list(picks.scores.values()) == pytest.approx(scores, abs=one_pixel)
    assert picks.ids == tuple(sorted(picks.scores, key=picks.scores.__getitem__, reverse=True)[:PICKS])


@torch.no_grad()
def test_deal_score_picks_the_largest_mean_of_entropy_times_difficulty(deal_query: Query) -> None:
    scores = []
    for _, image in unlabelled(deal_query):
        p = deal_query.model.segmentation(image[None])[0].softmax(0)
        scores.append(float((-p.xlogy(p).sum(0) * difficulty(deal_query.model, image)).mean()))
    picks = ask("deal-score", deal_query)
    assert list(picks.scores.values()) == pytest.approx(scores, rel=1e-4)
    assert picks.ids == ids(deal_query, np.argsort(scores)[::-1][:PICKS])


def test_a_difficulty_map_of_one_value_has_no_entropy_and_ten_even_bins_have_the_most() -> None:
    flat, even = torch.full((1, 10, 10), 0.3), torch.linspace(0, 1, 100).view(1, 10, 10)
    assert difficulty_entropy(torch.cat((flat, even))).tolist() == pytest.approx([0.0, math.log(10)], abs=1e-3)


def test_deal_keeps_its_histograms_digits_in_bfloat16(deal_query: Query) -> None:
    """A young branch's difficulties lie close together: rounded to bfloat16 they would fill few of the ten bins."""
    deal_query.model.head.weight.data *= 0.05
    exact = ask("deal", deal_query).scores
    mixed = ask("deal", replace(deal_query, precision="bf16-mixed")).scores
    assert list(mixed.values()) == pytest.approx(list(exact.values()), abs=0.3)


@pytest.mark.parametrize("name", ["deal", "deal-score"])
def test_a_score_that_is_no_number_is_named_and_not_ranked(deal_query: Query, name: str) -> None:
    broken = list(deal_query.pool)
    broken[3] = (broken[3][0], broken[3][1] * math.nan)
    with pytest.raises(UserError, match="NaN or infinity of 1 of the pool's candidates, first of 'frame03'"):
        ask(name, replace(deal_query, pool=broken))


def test_a_models_precision_ends_with_the_model(query: Query) -> None:
    mixed = replace(query, precision="bf16-mixed")
    for logits in forward(mixed, query.model):
        assert logits.dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")


def test_deal_attends_over_a_quarter_of_the_side_56_for_the_papers_224(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []
    monkeypatch.setattr(models.deal, "attention", lambda p: grids.append(tuple(p.shape[2:])) or torch.zeros_like(p))
    DealModel(net(), K, seed=0).eval().difficulty(torch.zeros(1, 3, 224, 224))
    assert grids == [(56, 56)]


def test_deal_attention_runs_in_a_kernel_that_stores_no_square_matrix() -> None:
    p = torch.rand(2, 13, 20, 20, requires_grad=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):  # raises where it cannot
        attention(p).sum().backward()
    flat = p.detach().flatten(2)
    expected = flat @ (flat.transpose(1, 2) @ flat).softmax(2).transpose(1, 2)
    torch.testing.assert_close(attention(p).flatten(2).detach(), expected)


def test_deal_loss_trains_both_branches_and_ignores_unlabelled_pixels() -> None:
    torch.manual_seed(0)
    model = DealModel(net(), K, seed=0).train()
    images, masks = torch.randn(2, 3, SIZE, SIZE), torch.randint(0, K, (2, SIZE, SIZE))
    masks[:, :3] = 255
    logits, branch = model(images)
    error = (logits.argmax(1) != masks).float()
    error[:, :3] = 0
    known = masks != 255
    of_labels = F.cross_entropy(logits.movedim(1, -1)[known], masks[known])
    loss = get_strategy("deal")().loss(model, images, masks)
    torch.testing.assert_close(loss, of_labels + F.binary_cross_entropy(branch.sigmoid(), error))
    loss.backward()
    assert float(model.gamma.grad.abs()) > 0
    assert float(model.head.weight.grad.abs().sum()) > 0
    joint = model.segmentation.last.weight.grad
    alone = torch.autograd.grad(of_labels, model.segmentation.last.weight)[0]
    assert float((joint - alone).abs().max()) > 0.01 * float(alone.abs().max())  # not detached from the difficulty


def test_deal_trains_the_network_through_its_difficulty_too() -> None:
    """The gradient of the difficulty loss in the network's weights, against differences of the loss along it."""
    torch.manual_seed(1)
    model = DealModel(net(), K, seed=0).eval()
    model.gamma.data.fill_(0.5)
    images, wrong = torch.randn(1, 3, SIZE, SIZE), torch.rand(1, SIZE, SIZE) < 0.4
    weight = model.segmentation.last.weight

    def difficulty_loss() -> torch.Tensor:
        return F.binary_cross_entropy(model.difficulty(images)[1], wrong.float())

    difficulty_loss().backward()
    slope = weight.grad.norm()
    step = 0.05 * weight.grad / slope
    with torch.no_grad():
        weight += step
        above = difficulty_loss()
        weight -= 2 * step
        below = difficulty_loss()
    assert float((above - below) / 0.1) == pytest.approx(float(slope), rel=0.05)


def test_random_depends_on_seed_and_round_alone(query: Query) -> None:
    assert ask("random", query).ids == ask("random", make_query(net(5))).ids
    others = {ask("random", replace(query, seed=s)).ids for s in range(20)}
    assert len(others) > 15


@pytest.mark.parametrize("name", ["random", "stratified-random"])
def test_random_draws_each_frame_equally_often(name: str) -> None:
    """Chi-square over 600 seeds; with no videos known, stratified-random is random."""
    query, counts = make_query(net()), dict.fromkeys((f"frame{i:02d}" for i in range(N)), 0)
    for seed in range(600):
        for picked in ask(name, replace(query, seed=seed)).ids:
            counts[picked] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_stratified_random_evens_out_the_videos() -> None:
    names = [f"{video}{i}" for video, n in (("a", 40), ("b", 6), ("c", 2)) for i in range(n)]
    videos = {name: name[0] for name in names}
    labelled = ["a0", "a1", "a2", "b0"]
    pool = [(name, torch.zeros(3, 4, 4)) for name in names]
    query = Query([name for name in names if name not in labelled], pool, labelled=labelled, videos=videos)
    picks = ask("stratified-random", query, 8).ids
    counts = {video: sum(name[0] == video for name in [*picks, *labelled]) for video in "abc"}
    assert counts == {"a": 5, "b": 5, "c": 2}
    assert len(set(picks)) == 8
