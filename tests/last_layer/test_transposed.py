"""Transposed convolutions as last layers, such as that of MONAI's `UNet`, against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from last_layer_nets import autograd_embeddings
from torch import Tensor, nn

from alges_fast import LastLayer, embed_pool
from alges_fast.losses import Loss, cross_entropy, cross_entropy_with_dice, focal
from alges_fast.windows import windows_of

CLASSES = 3
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
UP = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}


class MonaiUnet(nn.Module):
    """The shape of MONAI's `UNet(strides=(2, 2), num_res_units=0)`: strided convolutions down, transposed ones up."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv, transposed, norm = CONVOLUTIONS[dimensions], TRANSPOSED[dimensions], NORMS[dimensions]
        self.down = nn.Sequential(conv(1, 4, 3, stride=2, padding=1), norm(4), nn.PReLU())
        self.down_again = nn.Sequential(conv(4, 6, 3, stride=2, padding=1), norm(6), nn.PReLU())
        self.bottom = nn.Sequential(conv(6, 8, 3, padding=1), norm(8), nn.PReLU())
        self.up = nn.Sequential(transposed(14, 4, **UP), norm(4), nn.PReLU())
        self.head = transposed(8, CLASSES, **UP)

    def forward(self, images: Tensor) -> Tensor:
        half = self.down(images)
        quarter = self.down_again(half)
        up = self.up(torch.cat([quarter, self.bottom(quarter)], 1))
        return self.head(torch.cat([half, up], 1))


class Head(nn.Module):
    """A stem, a transposed convolution and what follows it."""

    def __init__(
        self, head: nn.Module, tail: Callable[[Tensor], Tensor] = lambda logits: logits, **options: Any
    ) -> None:
        super().__init__()
        dimensions = next(n for n, kind in TRANSPOSED.items() if isinstance(head, kind))
        self.stem = CONVOLUTIONS[dimensions](2, 4, 3, padding=1)
        self.head = head
        self.tail = tail
        self.options = options

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.head(self.stem(images).tanh(), **self.options))


def pixel_by_pixel(model: nn.Module, layer: LastLayer, image: Tensor) -> tuple[Tensor, Tensor]:
    """Autograd's gradient of every pixel's loss (pixels, K, d, *kernel), and the pixels' classes."""
    logits = model.eval()(image[None])
    prediction = logits.argmax(1)
    losses = F.cross_entropy(logits, prediction, reduction="none").flatten()
    rows = [torch.autograd.grad(loss, layer.module.weight, retain_graph=True)[0].transpose(0, 1) for loss in losses]
    return torch.stack(rows), prediction.flatten()


def images_of(dimensions: int, channels: int = 2, n: int = 2) -> Tensor:
    size = {1: (11,), 2: (7, 5), 3: (4, 3, 5)}[dimensions]
    return torch.randn(n, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


GEOMETRIES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "MONAI's": (2, UP, {}),
    "MONAI's, volume": (3, UP, {}),
    "sequence": (1, {"kernel_size": 4, "stride": 3, "padding": 1, "output_padding": 2}, {}),
    "patches side by side": (2, {"kernel_size": 2, "stride": 2}, {}),
    "each axis its own": (2, {"kernel_size": (4, 3), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}, {}),
    "dilated and strided": (2, {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "output_padding": 1}, {}),
    "pixels that nothing reaches": (2, {"kernel_size": (1, 2), "stride": 3, "output_padding": 2}, {}),
    "much padding": (2, {"kernel_size": 5, "stride": 2, "padding": 4, "bias": False}, {}),
    "size of the caller's": (2, {"kernel_size": 3, "stride": 2, "padding": 1}, {"output_size": [14, 9]}),
}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES)


def model_of(geometry: str) -> tuple[Head, Tensor]:
    torch.manual_seed(1)
    dimensions, arguments, options = GEOMETRIES[geometry]
    return Head(TRANSPOSED[dimensions](4, CLASSES, **arguments), **options).double(), images_of(dimensions)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_unet_in_monais_shape_equals_autograd(dimensions: int) -> None:
    torch.manual_seed(0)
    model = MonaiUnet(dimensions).double()
    images = torch.randn(2, 1, *(16, 8, 12)[:dimensions], dtype=torch.float64)
    layer = LastLayer.find(model, images)
    assert (layer.name, layer.n_classes) == ("head", CLASSES)
    found = layer.pixel_gradients(images, outputs=("image",)).image
    assert found.shape == (2, CLASSES, 8, *[3] * dimensions)
    torch.testing.assert_close(found, autograd_embeddings(model, layer, images), rtol=1e-10, atol=1e-15)


@every_geometry
@pytest.mark.parametrize("loss", [None, cross_entropy_with_dice, focal])
def test_every_geometry_equals_autograd(geometry: str, loss: Loss | None) -> None:
    model, images = model_of(geometry)
    layer = LastLayer.find(model, images)
    with torch.no_grad():
        valid = torch.rand_like(model(images)[:, 0]) < 0.7
    for counted in (None, valid):
        found = layer.pixel_gradients(images, outputs=("image",), loss=loss, valid=counted).image
        expected = autograd_embeddings(model, layer, images, loss or cross_entropy, counted)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)


@every_geometry
def test_outputs_per_class_and_pixel_are_those_of_each_pixels_own_gradient(geometry: str) -> None:
    model, images = model_of(geometry)
    layer = LastLayer.find(model, images)
    found = layer.pixel_gradients(images, outputs=("semantic", "semantic_vector", "norm_map", "class_pixels"))
    for index, image in enumerate(images):
        gradients, prediction = pixel_by_pixel(model, layer, image)
        norms = gradients.flatten(1).norm(dim=1)
        torch.testing.assert_close(found.norm_map[index].flatten(), norms, rtol=1e-9, atol=1e-14)
        for one_class in range(CLASSES):
            of_class = prediction == one_class
            assert found.class_pixels[index, one_class] == of_class.sum()
            torch.testing.assert_close(found.semantic[index, one_class], norms[of_class].sum())
            torch.testing.assert_close(
                found.semantic_vector[index, one_class], gradients[of_class, one_class].sum(0), rtol=1e-9, atol=1e-14
            )


@pytest.mark.parametrize("geometry", [name for name, (dimensions, *_) in GEOMETRIES.items() if dimensions == 2])
def test_windows(geometry: str) -> None:
    model, images = model_of(geometry)
    layer = LastLayer.find(model, images)
    outputs = ("image", "semantic", "semantic_vector", "entropy")
    regions = (4, 3)
    found = layer.window_gradients(images, regions, outputs=outputs)
    with torch.no_grad():
        shape = tuple(model(images)[:, 0].shape)
    for at, window in enumerate(windows_of("image", shape[1:], regions)):
        valid = torch.zeros(shape, dtype=torch.bool)
        valid[(slice(None), *window.box)] = True
        expected = layer.pixel_gradients(images, outputs=outputs, valid=valid)
        for name in outputs:
            value = getattr(found, name)[:, at]
            torch.testing.assert_close(value, getattr(expected, name), rtol=1e-9, atol=1e-13, msg=name)


@pytest.mark.parametrize(
    ("tail", "defined", "why"),
    [
        (nn.Upsample(scale_factor=2, mode="bilinear"), ("image", "semantic_vector", "entropy"), "transposed.*Upsample"),
        (nn.Tanh(), ("image",), "Tanh"),
    ],
)
def test_what_a_tail_leaves_undefined_is_refused_by_name(tail: nn.Module, defined: tuple[str, ...], why: str) -> None:
    torch.manual_seed(2)
    model, images = Head(nn.ConvTranspose2d(4, CLASSES, **UP), tail).double(), images_of(2)
    layer = LastLayer.find(model, images)
    found = layer.pixel_gradients(images, outputs=defined).image
    torch.testing.assert_close(found, autograd_embeddings(model, layer, images), rtol=1e-10, atol=1e-15)
    for output in ("semantic", "norm_map", "feature_sum"):
        assert not layer.defines(output, images)
        with pytest.raises(ValueError, match=rf"outputs: {output} not defined.*{why}"):
            layer.pixel_gradients(images, outputs=("image", output))


def test_groups_are_refused_and_a_forward_of_its_own_is_found_out() -> None:
    class Standardised(nn.ConvTranspose2d):
        def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
            return F.conv_transpose2d(features, self.weight - self.weight.mean(), self.bias, stride=2)

    images = torch.randn(1, 2, 7, 5)
    with pytest.raises(ValueError, match=r"'head'.*it has 2 groups"):
        LastLayer.find(Head(nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)), images)
    with pytest.raises(ValueError, match=r"not weight \* input \+ bias"):
        LastLayer.find(Head(Standardised(4, CLASSES, 2, stride=2)), images)


def test_images_do_not_depend_on_their_batch_nor_spoil_each_other() -> None:
    torch.manual_seed(5)
    model, images = MonaiUnet(2), torch.randn(3, 1, 16, 12)
    layer = LastLayer.find(model, images)
    features, _ = layer.features_and_logits(images)
    head = nn.Sequential(model.head)  # without the model's own convolutions, which may depend on it
    layer = LastLayer.find(head, features)
    outputs = ("image", "semantic", "semantic_vector", "norm_map")
    together = layer.pixel_gradients(features, outputs=outputs)
    for index in range(3):
        alone = layer.pixel_gradients(features[index : index + 1], outputs=outputs)
        for name in outputs:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[index], rtol=1e-6, atol=1e-7)
    features[1, 0, 2, 2] = torch.nan
    spoiled = layer.pixel_gradients(features, outputs=outputs)
    for name in outputs:
        assert getattr(spoiled, name)[1].isnan().any()
        assert torch.equal(getattr(spoiled, name)[::2], getattr(together, name)[::2])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_pool_is_embedded_in_any_precision(precision: str) -> None:
    torch.manual_seed(6)
    model, images = MonaiUnet(3).eval(), torch.randn(3, 1, 8, 8, 8)
    found = embed_pool(model, images, output=("image", "semantic"), precision=precision, progress=False)
    exact = MonaiUnet(3).double()
    exact.load_state_dict(model.state_dict())
    layer = LastLayer.find(exact, images.double())
    expected = autograd_embeddings(exact, layer, images.double())
    bound = 1e-5 if precision == "32-true" else 0.1  # bfloat16 also changes some predictions
    assert (found.values - expected).norm() <= bound * expected.norm()
