"""Training of whole networks: what fixes its result, what counts in it, and batches that would break it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from alges_fast.data import FrameSet, to_input
from alges_fast.labels import UNLABELLED
from alges_fast.losses import IGNORE, cross_entropy, labelled_cross_entropy
from alges_fast.training.config import TrainConfig
from alges_fast.training.errors import Diverged, TooFewLabels
from alges_fast.training.evaluation import evaluate
from alges_fast.training.labelled import Labelled
from alges_fast.training.learner import Training, WholeNetwork
from alges_fast.training.optimising import plain_loss
from alges_fast.training.whole_network import shuffled_batches, taught_loss, train
from alges_fast.windows import windows_of

FABRIC = Fabric(accelerator="cpu", devices=1)
EPOCHS = {"epochs": 3, "lr": 0.05}
STEPS = {"steps": 6, "lr": 0.05}


def frames(n: int, size: int = 8) -> FrameSet:
    """Frames whose class is their brighter channel."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    names = tuple(f"frame{i}" for i in range(n))
    return FrameSet(names, ("v",) * n, ("v",) * n, images, (images[:, 0] > images[:, 1]).astype(np.uint8))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 2, 1))


def fit(shown: FrameSet | None = None, *, model: nn.Module | None = None, **given: Any) -> nn.Module:
    """A model trained on six frames, or others; what is no setting of TrainConfig is an argument of train."""
    model = network() if model is None else model
    options = {
        name: given.pop(name)
        for name in ("seed", "round", "loss", "partial", "by_share", "soft", "on_batch")
        if name in given
    }
    config = TrainConfig(**{"batch_size": 4, **(given or EPOCHS)})
    train(
        FABRIC,
        model,
        frames(6) if shown is None else shown,
        config,
        **{"seed": 0, "round": 0, "loss": plain_loss, **options},
    )
    return model


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("budget", [{"epochs": 40, "lr": 0.05}, {"steps": 120, "lr": 0.05}])
def test_it_learns(budget: dict[str, Any]) -> None:
    test = frames(12)
    before = evaluate(FABRIC, network().eval(), test, 2).metrics(["a", "b"])["dice"]
    after = evaluate(FABRIC, fit(test, **budget, augment="flip,scale"), test, 2).metrics(["a", "b"])["dice"]
    assert after > max(0.9, before)


@pytest.mark.parametrize("budget", [EPOCHS, STEPS])
def test_weights_depend_on_seed_and_round_and_not_on_global_generators(budget: dict[str, Any]) -> None:
    first = weights(fit(**budget))
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    assert torch.equal(first, weights(fit(**budget)))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, weights(fit(seed=1, **budget)))
    assert not torch.equal(first, weights(fit(round=1, **budget)))


def test_how_frames_are_moved_is_a_setting() -> None:
    assert (TrainConfig(epochs=1).augment, TrainConfig(epochs=1).lr) == ("none", 1e-3)  # the paper's way
    assert TrainConfig(steps=1).augment == TrainConfig().augment == "flip,scale,colour"
    assert not torch.equal(weights(fit(**STEPS)), weights(fit(**STEPS, augment="none")))


def test_what_is_kept_is_an_average_of_the_last_weights() -> None:
    model, seen = network(), list[Tensor]()
    fit(model=model, on_batch=lambda images: seen.append(weights(model)), steps=40, lr=0.05)
    passed = torch.stack(seen)
    kept = weights(model)
    assert ((kept >= passed.amin(0) - 1e-6) & (kept <= passed.amax(0) + 1e-6)).all()
    assert not torch.equal(kept, passed[-1])
    assert (kept - passed[-1]).norm() < (kept - passed[0]).norm() / 4


@pytest.mark.parametrize(("n", "sizes"), [(8, [4, 4]), (7, [4, 3]), (9, [4, 5]), (5, [5]), (1, [1])])
def test_every_frame_is_in_one_batch_and_a_last_batch_of_one_joins_the_one_before(n: int, sizes: list[int]) -> None:
    batches = shuffled_batches(n, 4, seed=3)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(np.concatenate(batches)) == list(range(n))


def test_batch_normalisation_that_needs_two_images_is_told() -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Upsample(8), nn.Conv2d(3, 2, 1))
    fit(frames(5), model=pooled)  # 4 + 1
    with pytest.raises(TooFewLabels, match="one image"):
        fit(frames(1), model=pooled)


def test_divergence_is_told() -> None:
    with pytest.raises(Diverged, match=r"diverged in step \d+"):
        fit(lr=1e30, epochs=5)


def test_a_batch_without_a_labelled_pixel_trains_nothing_and_spoils_nothing() -> None:
    unlabelled = frames(4)
    unlabelled.masks[:] = UNLABELLED
    assert torch.isfinite(weights(fit(unlabelled, epochs=1))).all()
    with pytest.raises(TooFewLabels, match="no pixel"):
        fit(unlabelled, steps=1)


def in_part() -> Labelled:
    """Of six frames one is labelled whole, and of another seven windows."""
    return Labelled(frames(6, 16), ("frame3", *windows_of("frame0", (16, 16), (4, 4))[2:9]))


@pytest.mark.parametrize("budget", [EPOCHS, STEPS])
def test_pixels_that_are_not_labelled_are_in_no_loss(budget: dict[str, Any]) -> None:
    """Whatever the pool's masks hold outside the windows, the weights end alike; frames are shown whole."""
    first, other = in_part(), in_part()
    outside = first.frames().masks[1] == UNLABELLED
    other.pool.masks[0][outside] = 1 - other.pool.masks[0][outside]
    other.pool.masks[1] = 0
    seen: list[Tensor] = []

    def loss(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        seen.append(masks)
        return plain_loss(model, images, masks)

    assert torch.equal(*(weights(fit(each.frames(), partial=True, loss=loss, **budget)) for each in (first, other)))
    assert {mask.shape[-1] for mask in seen} == {16}
    assert any((mask == UNLABELLED).any() for mask in seen)


@pytest.mark.parametrize("budget", [{"epochs": 1}, {"steps": 2}])
def test_every_labelled_pixel_counts_alike(budget: dict[str, Any]) -> None:
    """However few its frame has: the mean gradient of a pass's steps is that of the mean over all labelled pixels."""
    shown = in_part().with_pieces(("frame1", *windows_of("frame5", (16, 16), (4, 4))[:1])).frames()
    model = nn.Conv2d(3, 2, 1)
    logits = model(to_input(torch.from_numpy(shown.images)))
    loss = labelled_cross_entropy(logits, torch.from_numpy(shown.masks).long())
    (expected,) = torch.autograd.grad(loss, model.weight)
    steps: list[Tensor] = []
    model.weight.register_hook(lambda gradient: steps.append(gradient.clone()))
    fit(shown, model=model, partial=True, augment="none", batch_size=2, lr=1e-12, **budget)
    assert len(steps) == 2
    torch.testing.assert_close(torch.stack(steps).mean(0), expected)


def test_frames_drawn_by_their_share_count_every_labelled_pixel_alike() -> None:
    """The gradient of a long training's steps is, on average, that of the mean over all labelled pixels."""
    shown = in_part().with_pieces(("frame1", *windows_of("frame5", (16, 16), (4, 4))[:4])).frames()
    model = nn.Conv2d(3, 2, 1)
    logits, masks = model(to_input(torch.from_numpy(shown.images))), torch.from_numpy(shown.masks).long()
    (expected,) = torch.autograd.grad(labelled_cross_entropy(logits, masks), model.weight)
    by_frame = cross_entropy(model(to_input(torch.from_numpy(shown.images))), masks.where(masks != UNLABELLED, IGNORE))
    (of_frames,) = torch.autograd.grad(by_frame, model.weight)
    steps: list[Tensor] = []
    model.weight.register_hook(lambda gradient: steps.append(gradient.clone()))
    fit(shown, model=model, by_share=True, steps=400, augment="none", batch_size=2, lr=1e-12)
    found = torch.stack(steps).mean(0)
    assert (found - expected).norm() < 0.25 * (of_frames - expected).norm()


def test_a_teacher_is_believed_where_nothing_is_labelled() -> None:
    shown = frames(6)
    shown.masks[:, :4] = UNLABELLED
    soft = np.zeros((6, 2, 8, 8), np.float16)
    soft[:, 0] = 1  # the teacher says class 0 of every pixel
    constant = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Rows(), nn.Conv2d(17, 2, 1))
    shown.masks[:, 4:] = 1
    model = fit(shown, model=constant, steps=200, lr=0.05, augment="none", soft=soft)
    predicted = model(to_input(torch.from_numpy(shown.images))).argmax(1)
    assert (predicted[:, :4] == 0).float().mean() > 0.9
    assert (predicted[:, 4:] == 1).float().mean() > 0.9  # and not where something is


class Rows(nn.Module):
    """Adds a channel that says in which half of the frame a pixel is."""

    def forward(self, features: Tensor) -> Tensor:
        rows = torch.arange(features.shape[2]).view(1, 1, -1, 1).expand(len(features), 1, -1, features.shape[3])
        return torch.cat([features, (rows >= features.shape[2] // 2).float()], 1)


class Small(WholeNetwork):
    def new_network(self, n_classes: int, seed: int) -> nn.Module:
        return network()


def test_a_network_taught_by_itself_learns_of_frames_without_labels() -> None:
    """Their pixels move its weights, whatever their masks hold; those of frames that it is tested on do not."""

    def fitted(pool: FrameSet, self_training: int) -> Tensor:
        learner = Small(TrainConfig(8, self_training=self_training, augment="none", **STEPS), 2)
        model = learner.new_network(2, 0)
        labelled = Labelled(pool, ("frame2",))
        learner.train(FABRIC, model, Training(labelled, pool.images, seed=0, unseen=[5]))
        return weights(model)

    def changed(position: int, part: str) -> FrameSet:
        pool = frames(6)
        values = getattr(pool, part)[position]
        values[:] = values.max() - values
        return pool

    plain, again = fitted(frames(6), 0), fitted(frames(6), 1)
    assert torch.equal(again, fitted(frames(6), 1))
    assert not torch.equal(plain, again)
    assert torch.equal(plain, fitted(changed(4, "images"), 0))
    assert not torch.equal(again, fitted(changed(4, "images"), 1))
    assert torch.equal(again, fitted(changed(4, "masks"), 1))
    assert torch.equal(again, fitted(changed(5, "images"), 1))


def test_the_taught_loss_is_cross_entropy_with_labels_in_their_place() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 4, generator=generator)
    soft = torch.randn(2, 3, 5, 4, generator=generator).softmax(1)
    masks = torch.randint(0, 3, (2, 5, 4), generator=generator)
    torch.testing.assert_close(taught_loss(logits, masks, soft), F.cross_entropy(logits, masks))
    none = torch.full_like(masks, UNLABELLED)
    torch.testing.assert_close(taught_loss(logits, none, soft), F.cross_entropy(logits, soft))
    half = masks.clone()
    half[:, 2:] = UNLABELLED
    parts = F.cross_entropy(logits[:, :, :2], masks[:, :2]), F.cross_entropy(logits[:, :, 2:], soft[:, :, 2:])
    torch.testing.assert_close(taught_loss(logits, half, soft), 0.4 * parts[0] + 0.6 * parts[1])
