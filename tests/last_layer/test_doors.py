"""What callers ask a `LastLayer` for besides gradients: its input, the logits, and which outputs a model defines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from last_layer_nets import Tokens
from torch import Tensor, nn

from alges_fast import LastLayer


class InPlace(nn.Module):
    """Works in place on the last layer's input after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, stride=2)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv2d(6, 4, 1)

    def trunk(self, images: Tensor) -> Tensor:
        return self.dropout(self.stem(images).relu())

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images)
        logits = self.head(features)
        features.zero_()
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear")


def test_features_and_logits_are_the_models_own() -> None:
    torch.manual_seed(0)
    model, images = InPlace().train(), torch.randn(2, 3, 12, 8)
    layer = LastLayer.find(model, images)
    with torch.no_grad():
        expected = model.eval().trunk(images), model(images)
    model.train()
    torch.testing.assert_close(layer.features(images), expected[0], rtol=0, atol=0)
    torch.testing.assert_close(layer.features_and_logits(images), expected, rtol=0, atol=0)
    assert model.training
    assert model.dropout.training
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.features(images).dtype == torch.bfloat16


def test_features_stop_the_model_at_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = InPlace(), torch.randn(2, 3, 12, 8)
    layer = LastLayer.find(model, images)
    calls: list[int] = []
    monkeypatch.setattr(model.head, "forward", lambda features: calls.append(1))
    assert layer.features(images).shape == (2, 6, 6, 4)
    assert not calls


def test_tokens_are_laid_out_on_their_grid_channels_first() -> None:
    torch.manual_seed(1)
    model, images = Tokens(1).eval(), torch.randn(2, 3, 12, 8)
    layer = LastLayer.find(model, images)
    with torch.no_grad():
        torch.testing.assert_close(layer.features(images), model.patches(images))


@pytest.mark.parametrize(
    ("tail", "defined", "reason"),
    [
        (nn.Identity(), {"image", "semantic", "semantic_vector", "norm_map", "entropy"}, None),
        (nn.Upsample(scale_factor=2, mode="bilinear"), {"image", "semantic", "norm_map", "entropy"}, None),
        (nn.Tanh(), {"image", "entropy", "class_pixels"}, "between '1' and the logits it runs Tanh"),
        (nn.Softmax2d(), set(), "returns probabilities"),
    ],
)
def test_what_a_tail_defines_is_what_pixel_gradients_gives(
    tail: Callable[[Tensor], Tensor], defined: set[str], reason: str | None
) -> None:
    torch.manual_seed(2)
    model, images = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1), tail), torch.randn(1, 3, 8, 8)
    layer = LastLayer.find(model, images)
    for output in defined:
        assert layer.defines(output, images)
        layer.pixel_gradients(images, outputs=(output,))
    for output in {"image", "semantic", "norm_map"} - defined:
        assert not layer.defines(output, images)
        assert reason in (layer.why_undefined(output, images) or "")
        with pytest.raises(ValueError, match=reason):
            layer.pixel_gradients(images, outputs=(output,))


def test_an_unknown_output_is_a_mistake_not_an_undefined_one() -> None:
    images = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="unknown name 'norms'"):
        LastLayer.find(InPlace(), images).defines("norms", images)
