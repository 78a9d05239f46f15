"""Training: what fixes its result, and batches that would break it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from alges_fast.data import FrameSet
from alges_fast.strategies import get_strategy
from alges_fast.training.errors import Diverged, TooFewLabels
from alges_fast.training.evaluation import evaluate
from alges_fast.training.whole_network import shuffled_batches, train

FABRIC = Fabric(accelerator="cpu", devices=1)
LOSS = get_strategy("random")().loss


def frames(n: int) -> FrameSet:
    """Frames whose class is their brighter channel."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    names = tuple(f"frame{i}" for i in range(n))
    return FrameSet(names, ("v",) * n, ("v",) * n, images, (images[:, 0] > images[:, 1]).astype(np.uint8))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 2, 1))


def fit(n: int = 6, **settings: object) -> nn.Module:
    model = network()
    options = {"epochs": 3, "batch_size": 4, "lr": 0.05, "seed": 0, "round": 0, "loss": LOSS, **settings}
    train(FABRIC, model, frames(n), **options)
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_it_learns() -> None:
    test = frames(12)
    before = evaluate(FABRIC, network().eval(), test, 2).metrics(["a", "b"])["dice"]
    after = evaluate(FABRIC, fit(12, epochs=40), test, 2).metrics(["a", "b"])["dice"]
    assert after > max(0.9, before)


def test_weights_depend_on_seed_and_round_and_not_on_global_generators() -> None:
    first = weights(fit())
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(first, weights(fit()))
    assert not torch.equal(first, weights(fit(seed=1)))
    assert not torch.equal(first, weights(fit(round=1)))


@pytest.mark.parametrize(("n", "sizes"), [(8, [4, 4]), (7, [4, 3]), (9, [4, 5]), (5, [5]), (1, [1])])
def test_every_frame_is_in_one_batch_and_a_last_batch_of_one_joins_the_one_before(n: int, sizes: list[int]) -> None:
    batches = shuffled_batches(n, 4, seed=3)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(np.concatenate(batches)) == list(range(n))


def test_batch_normalisation_that_needs_two_images_is_a_line_not_a_traceback() -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Upsample(8), nn.Conv2d(3, 2, 1))
    options = {"epochs": 1, "batch_size": 4, "lr": 0.1, "seed": 0, "round": 0, "loss": LOSS}
    train(FABRIC, pooled, frames(5), **options)  # 4 + 1
    with pytest.raises(TooFewLabels, match="one image"):
        train(FABRIC, pooled, frames(1), **options)


def test_divergence_is_said_with_its_remedy() -> None:
    with pytest.raises(Diverged, match=r"diverged in epoch \d+"):
        fit(lr=1e30, epochs=5)


def test_a_batch_without_a_labelled_pixel_trains_nothing_and_spoils_nothing() -> None:
    unlabelled = frames(4)
    unlabelled.masks[:] = 255
    model = network()
    train(FABRIC, model, unlabelled, epochs=1, batch_size=4, lr=0.1, seed=0, round=0, loss=LOSS)
    assert torch.isfinite(weights(model)).all()
