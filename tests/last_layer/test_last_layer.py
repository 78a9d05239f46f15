"""`LastLayer`: any architecture's image-level embedding is autograd's gradient, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from last_layer_nets import (
    ALL,
    CLASSES,
    HAND_WRITTEN,
    Head,
    assert_equals_autograd,
    autograd_embeddings,
    images_for,
    reference_outputs,
    resized,
)
from torch import Tensor, nn

from alges_fast import LastLayer
from alges_fast.losses import IGNORE, Loss, cross_entropy, cross_entropy_with_dice, focal

SMP, TORCHVISION = "segmentation_models_pytorch", "torchvision.models.segmentation"
NAMES = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "DeepLabV3", "DeepLabV3Plus", "PSPNet", "PAN", "UPerNet")
ARCHITECTURES: dict[str, tuple[str, dict[str, object], str]] = {
    **dict.fromkeys((*NAMES, "Segformer"), (SMP, {"encoder_name": "resnet18"}, "segmentation_head.0")),
    "DPT": (SMP, {"encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True}, "segmentation_head.head.4"),
    # Dict outputs, and an auxiliary head that runs after the classifier; two classifiers that are summed.
    "fcn_resnet50": (TORCHVISION, {"aux_loss": True}, "classifier.4"),
    "lraspp_mobilenet_v3_large": (TORCHVISION, {}, "classifier.high_classifier"),
}
"""name -> (library, options, the last layer)"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_image_level_equals_autograd(architecture: str) -> None:
    library, options, name = ARCHITECTURES[architecture]
    build = getattr(pytest.importorskip(library), architecture)
    if library == SMP:
        options = {**options, "encoder_weights": None, "classes": CLASSES}
    else:
        options = {**options, "weights": None, "weights_backbone": None, "num_classes": CLASSES}
    torch.manual_seed(0)
    side = 128 if architecture == "PAN" else 64
    layer = assert_equals_autograd(build(**options).double(), torch.randn(2, 3, side, side, dtype=torch.float64))
    assert layer.name == name


@pytest.mark.parametrize("kind", HAND_WRITTEN)
@pytest.mark.parametrize("masked", [False, True])
def test_every_output_through_every_tail(kind: str, masked: bool) -> None:
    torch.manual_seed(1)
    model = HAND_WRITTEN[kind]().double()
    images = images_for(model)
    layer = assert_equals_autograd(model, images)
    valid = None
    if masked:
        with torch.no_grad():
            valid = torch.rand_like(model(images)[:, 0]) < 0.7
        valid[1] = False
    found = layer.pixel_gradients(images, outputs=ALL, valid=valid)
    expected = reference_outputs(model, layer, images, valid=valid)
    for name in ALL:
        torch.testing.assert_close(getattr(found, name), expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain 3 x 5", "bilinear, aligned corners", "tokens, bilinear"])
@pytest.mark.parametrize("loss", [cross_entropy, cross_entropy_with_dice, focal, nn.CrossEntropyLoss(reduction="sum")])
def test_any_loss(kind: str, loss: Loss) -> None:
    """Also per pixel: norms are those of n dL/ds, n the valid pixels, so the default loss and its callable agree."""
    torch.manual_seed(2)
    model = HAND_WRITTEN[kind]().double()
    images = images_for(model)
    layer = LastLayer.find(model, images)
    with torch.no_grad():
        logits = model(images)
    valid = torch.rand_like(logits[:, 0]) < 0.7
    found = layer.pixel_gradients(
        images, outputs=("image", "norm_map", "semantic", "semantic_vector"), loss=loss, valid=valid
    )
    expected = autograd_embeddings(model, layer, images, loss, valid)
    torch.testing.assert_close(found.image, expected, rtol=1e-9, atol=1e-12)
    logits.requires_grad_()
    residual = torch.zeros_like(logits)
    for index in range(len(images)):
        target = logits[index : index + 1].argmax(1).masked_fill(~valid[index : index + 1], IGNORE)
        (gradient,) = torch.autograd.grad(loss(logits[index : index + 1], target), logits)
        residual += gradient * valid[index].sum()
    per_pixel = reference_outputs(model, layer, images, residual=residual, valid=valid)
    for name in ("norm_map", "semantic", "semantic_vector"):
        torch.testing.assert_close(getattr(found, name), per_pixel[name], rtol=1e-9, atol=1e-12)


def test_a_loss_cannot_mix_images() -> None:
    """A loss that averages over the batch in a non-linear way is still each image's own."""

    def coupled(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target).exp() * logits.square().mean().sqrt()

    torch.manual_seed(3)
    model = HAND_WRITTEN["plain 1 x 1"]().double()
    images = images_for(model)
    layer = LastLayer.find(model, images)
    found = layer.pixel_gradients(images, outputs=("image",), loss=coupled).image
    torch.testing.assert_close(found, autograd_embeddings(model, layer, images, coupled), rtol=1e-10, atol=0)


def snapshot(model: nn.Module) -> dict[str, object]:
    modules = dict(model.named_modules())
    return {
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: [len(value) for key, value in vars(module).items() if key.endswith("hooks")]
            for name, module in modules.items()
        },
        "forwards": {name: "forward" in vars(module) for name, module in modules.items()},
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "trainable": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "generator": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("tail", [lambda logits: logits, resized((12, 12)), torch.tanh])
def test_the_model_is_left_as_it_was(tail: Callable[[Tensor], Tensor]) -> None:
    class Counting(nn.Module):
        """Counts its calls in a buffer, eval mode or not."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += not self.frozen
            return x

    torch.manual_seed(4)
    counting = Counting()
    model = Head(nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.5), counting, nn.Conv2d(6, CLASSES, 3, padding=1)), tail)
    model.train()
    model.head[0].eval()  # a user who keeps one norm frozen
    model.stem.weight.requires_grad_(False)
    images = torch.randn(2, 3, 16, 16)
    counting.frozen = False
    model(images).sum().backward()
    before = snapshot(model)

    layer = LastLayer.find(model, images)
    counting.frozen = True
    outputs = ("image", "entropy")
    layer.pixel_gradients(images, outputs=outputs)
    layer.pixel_gradients(images, outputs=outputs, loss=focal)
    with pytest.raises(ValueError, match="no such thing"):
        layer.pixel_gradients(images, outputs=outputs, loss=_fails)
    with pytest.raises(RuntimeError):
        layer.pixel_gradients(torch.zeros(2, 4, 16, 16), outputs=outputs)

    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)


def _fails(logits: Tensor, target: Tensor) -> Tensor:
    raise ValueError("no such thing")


def test_models_that_work_in_place() -> None:
    """On the layer's output, and after it on the layer's input, which the embedding needs unchanged."""

    class InPlace(Head):
        def forward(self, images: Tensor) -> Tensor:
            features = self.relu(self.stem(images))
            logits = self.head(features)
            features.mul_(0.5)
            logits += features.mean(1, keepdim=True)
            return logits

    torch.manual_seed(5)
    model = InPlace(nn.Conv2d(6, CLASSES, 3, padding=1)).double()
    images = images_for(model)
    layer = LastLayer.find(model, images)
    found = layer.pixel_gradients(images, outputs=("image",)).image
    plain = Head(model.head, lambda logits: logits).double()
    plain.stem = model.stem

    def shifted(images: Tensor) -> Tensor:
        features = plain.relu(plain.stem(images))
        return plain.head(features) + 0.5 * features.mean(1, keepdim=True)

    for index in range(len(images)):
        logits = shifted(images[index : index + 1])
        (expected,) = torch.autograd.grad(cross_entropy(logits, logits.argmax(1)), model.head.weight)
        torch.testing.assert_close(found[index], expected, rtol=1e-10, atol=1e-14)


def test_frozen_weights_and_inference_mode() -> None:
    torch.manual_seed(6)
    for kind in ("plain 1 x 1", "bilinear, aligned corners"):
        model = HAND_WRITTEN[kind]().double()
        images = images_for(model)
        expected = autograd_embeddings(model, LastLayer.find(model, images), images)
        model.requires_grad_(False)
        with torch.inference_mode():
            found = LastLayer.find(model, images.clone()).pixel_gradients(images.clone(), outputs=("image",)).image
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_image_size_may_change() -> None:
    """A tail is looked at again for a new size: upsampling to a fixed size is nothing at that size."""
    torch.manual_seed(7)
    model = Head(nn.Conv2d(6, CLASSES, 3, padding=1), resized((12, 12))).double()
    layer = LastLayer.find(model, torch.randn(1, 3, 24, 24, dtype=torch.float64))
    for side in (24, 40, 16):
        images = torch.randn(2, 3, side, side, dtype=torch.float64)
        found = layer.pixel_gradients(images, outputs=ALL)
        expected = reference_outputs(model, layer, images)
        for name in ALL:
            torch.testing.assert_close(getattr(found, name), expected[name], rtol=1e-9, atol=1e-12)


def test_autocast_stays_close() -> None:
    """bfloat16 inside the model costs bfloat16's digits, whatever the tail."""
    torch.manual_seed(8)
    for kind in ("plain 3 x 5", "bilinear, aligned corners", "tokens, bilinear"):
        model = HAND_WRITTEN[kind]()
        images = images_for(model).float()
        layer = LastLayer.find(model, images)
        exact = layer.pixel_gradients(images, outputs=("image", "semantic"))
        for loss in (None, cross_entropy):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = layer.pixel_gradients(images, outputs=("image", "semantic"), loss=loss)
            assert found.image.dtype == torch.float32
            assert (found.image - exact.image).norm() <= 0.05 * exact.image.norm()
            assert (found.semantic.sum(1) - exact.semantic.sum(1)).abs().max() <= 0.05 * exact.semantic.sum(1).max()


def test_a_plain_head_runs_once_and_the_model_stops_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HAND_WRITTEN["plain 3 x 5"]()
    images = images_for(model).float()
    layer = LastLayer.find(model, images)
    calls = []
    monkeypatch.setattr(model.head, "forward", lambda x: calls.append(1))
    monkeypatch.setattr(model, "tail", lambda x: calls.append(1))
    layer.pixel_gradients(images)
    assert not calls
