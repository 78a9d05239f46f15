"""`LastLayer`: any architecture's image-level embedding is autograd's gradient, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alges_fast import LastLayer
from alges_fast.losses import IGNORE, Loss, cross_entropy

smp = pytest.importorskip("segmentation_models_pytorch")

CLASSES = 5
# name, image side
ARCHITECTURES = {
    "Unet": 64,
    "UnetPlusPlus": 64,
    "MAnet": 64,
    "Linknet": 64,
    "FPN": 64,
    "DeepLabV3": 64,
    "DeepLabV3Plus": 64,
    "PSPNet": 64,
    "PAN": 128,
    "UPerNet": 64,
    "Segformer": 64,
}


def autograd_embeddings(
    model: nn.Module, layer: LastLayer, images: Tensor, loss: Loss = cross_entropy, valid: Tensor | None = None
) -> Tensor:
    """The definition: one backward pass per image through the whole model."""
    model.eval()
    rows = []
    for index in range(len(images)):
        logits = model(images[index : index + 1])
        logits = logits["out"] if isinstance(logits, dict) else logits
        target = logits.argmax(1)
        if valid is not None:
            target = target.masked_fill(~valid[index : index + 1], IGNORE)
        rows.append(torch.autograd.grad(loss(logits, target), layer.module.weight)[0])
    return torch.stack(rows)


def assert_equals_autograd(model: nn.Module, images: Tensor, bound: float = 1e-12) -> LastLayer:
    layer = LastLayer.find(model, images[:1])
    found = layer.pixel_gradients(images, outputs=("image",)).image
    assert found is not None
    expected = autograd_embeddings(model, layer, images)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= bound * expected.norm()
    return layer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_image_level_equals_autograd(architecture: str) -> None:
    torch.manual_seed(0)
    model = getattr(smp, architecture)("resnet18", encoder_weights=None, classes=CLASSES).double()
    side = ARCHITECTURES[architecture]
    layer = assert_equals_autograd(model, torch.randn(2, 3, side, side, dtype=torch.float64))
    assert layer.name == "segmentation_head.0"
