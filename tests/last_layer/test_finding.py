"""Which layer is found, what cannot be served, and what a tail may hide from the example."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from last_layer_nets import (
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


def test_a_name_is_the_way_out() -> None:
    class Prototypes(nn.Module):
        """A prototype classifier: the logits come from a parameter, not from a layer."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 8, 3, padding=1)
            self.prototypes = nn.Parameter(torch.randn(CLASSES, 8))

        def forward(self, images: Tensor) -> Tensor:
            return torch.einsum("bdhw,kd->bkhw", self.body(images), self.prototypes)

    torch.manual_seed(9)
    model = Prototypes().double()
    images = images_for(model)
    with pytest.raises(ValueError, match=r"prototypes.*name=(?s:.*)body: Conv2d"):
        LastLayer.find(model, images)
    layer = LastLayer.find(model, images, name="body")
    found = layer.pixel_gradients(images, outputs=("image", "entropy"))
    torch.testing.assert_close(found.image, autograd_embeddings(model, layer, images), rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match=r"semantic not defined.*'body'"):
        layer.pixel_gradients(images, outputs=("image", "semantic"))
    with pytest.raises(ValueError, match=r"no layer 'head'(?s:.*)body: Conv2d"):
        LastLayer.find(model, images, name="head")


def test_a_pixel_shuffle_head() -> None:
    """The only layer before the logits, with more channels than classes: exact at image level."""
    torch.manual_seed(10)
    model = Head(nn.Conv2d(6, CLASSES * 4, 3, padding=1), nn.PixelShuffle(2)).double()
    assert assert_equals_autograd(model, images_for(model)).name == "head"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Head(nn.Conv2d(6, 1, 1)), "one output channel"),
        (Head(nn.ConvTranspose2d(6, 6, 2, stride=2, groups=2)), r"'head'.*2 groups(?s:.*)stem: Conv2d"),
        (Head(nn.Conv2d(6, CLASSES, 3, padding=2, dilation=2)), r"'head'.*dilation is \(2, 2\)"),
        (Head(nn.Conv2d(6, CLASSES, 3, padding=1, stride=2)), r"'head'.*stride"),
        (Head(nn.Conv2d(6, CLASSES, 3)), r"'head'.*padding is \(0, 0\)"),
        (Head(nn.Conv2d(6, CLASSES, 3, padding=1, padding_mode="reflect")), r"'head'.*reflect"),
        (Head(nn.Conv2d(6, CLASSES, 2)), r"'head'.*kernel is \(2, 2\)"),
        (Head(nn.Conv2d(6, 6, 1, groups=2)), r"'head'.*2 groups"),
        (Head(nn.Conv2d(6, CLASSES, 1, padding=1)), r"'head'.*padding is \(1, 1\)"),
        (Head(nn.Conv2d(6, CLASSES, 1), lambda logits: logits.argmax(1)), "torch.int64 values of shape"),
        (Head(nn.Conv2d(6, CLASSES, 1), lambda logits: {"masks": logits}), "it returned a dict of 'masks'"),
        (Head(nn.Conv2d(6, CLASSES, 1), lambda logits: logits / 0), "NaN or infinity of the example"),
        (Head(nn.Conv2d(6, CLASSES, 1), lambda logits: logits.mean((2, 3))), r"must return logits.*\(1, 5\)"),
        (Head(nn.Conv2d(6, CLASSES, 1), lambda logits: [{"masks": logits}]), "must return logits"),
        (Head(nn.Conv2d(6, CLASSES, 1), lambda logits: logits.detach()), "name the layer"),
        (Head(nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()), lambda logits: logits @ logits.mT), None),
    ],
)
def test_what_cannot_be_served_says_so(model: nn.Module, message: str | None) -> None:
    if message is None:
        assert LastLayer.find(model, torch.randn(1, 3, 16, 16)).name == "head.0"
        return
    with pytest.raises(ValueError, match=message):
        LastLayer.find(model, torch.randn(1, 3, 16, 16))


class ProbabilityModel(Head):
    """The logits' softmax, resized; its own cross-entropy is that of probabilities."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__(nn.Conv2d(6, CLASSES, 1), lambda logits: F.interpolate(activation(logits), scale_factor=2))


@pytest.mark.parametrize("activation", [nn.Softmax2d(), torch.sigmoid])
def test_probabilities_are_no_logits(activation: Callable[[Tensor], Tensor]) -> None:
    """The default loss would take a second softmax of them; a loss of probabilities is welcome."""

    def likelihood(probabilities: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(probabilities.log(), target)

    torch.manual_seed(13)
    model = ProbabilityModel(activation).double()
    images = images_for(model)
    layer = LastLayer.find(model, images)
    with pytest.raises(ValueError, match=r"returns probabilities.*(Softmax|Sigmoid)"):
        layer.pixel_gradients(images, outputs=("image",))
    found = layer.pixel_gradients(images, outputs=("image",), loss=likelihood).image
    torch.testing.assert_close(found, autograd_embeddings(model, layer, images, likelihood), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("tail", [lambda logits: logits, resized((12, 12))])
@pytest.mark.parametrize("wrap", ["compile", "compile in place", "compiled trunk", "DataParallel", "no_grad"])
def test_wrapped_models(wrap: str, tail: Callable[[Tensor], Tensor]) -> None:
    """Compiled code was made without our hooks and never calls them, so it is passed by."""
    torch.manual_seed(14)
    plain = Head(nn.Conv2d(6, CLASSES, 3, padding=1), tail).double().eval()
    images = images_for(plain)
    expected = autograd_embeddings(plain, LastLayer.find(plain, images), images)
    model: nn.Module = plain
    if wrap == "compile":
        model = torch.compile(plain, backend="eager")
    elif wrap == "compile in place":
        plain.compile(backend="eager")
    elif wrap == "compiled trunk":
        plain.stem.compile(backend="eager")
    elif wrap == "DataParallel":
        model = nn.DataParallel(plain)
    else:
        plain.forward = torch.no_grad()(plain.forward)
    with torch.no_grad():
        model(images)
        model(images[:1])
    found = LastLayer.find(model, images).pixel_gradients(images, outputs=("image",)).image
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


class Twice(Head):
    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        return self.head(features) + self.head(features.flip(-1))


class InAFunction(Head):
    """Its gradient is a sum over its uses, which the last layer alone does not know."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.stem(images))
        return self.head(features) + F.conv2d(features.flip(-1), self.head.weight)


class InTwoLayers(Head):
    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.stem(images))
        return self.head(features) + self.other(features.flip(-1))


class Standardised(nn.Conv2d):
    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        (Twice, nn.Conv2d, r"'head'.*calls it 2 times"),
        (InAFunction, nn.Conv2d, r"'head'.*used again, in a function"),
        (InTwoLayers, nn.Conv2d, r"'other'.*used again, in head"),
        (Head, Standardised, r"not weight \* input \+ bias"),
    ],
)
def test_a_layer_whose_use_is_not_its_own_is_refused(kind: type[Head], layer: type[nn.Conv2d], message: str) -> None:
    model = kind(layer(6, CLASSES, 1))
    model.other = nn.Conv2d(6, CLASSES, 1)
    if kind is InTwoLayers:
        model.other.weight = model.head.weight
    with pytest.raises(ValueError, match=message):
        LastLayer.find(model, torch.randn(1, 3, 16, 16))


def test_statistics_of_the_batch_mix_its_images() -> None:
    torch.manual_seed(15)
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    model = Head(nn.Sequential(norm, nn.Conv2d(6, CLASSES, 1))).double()
    images = images_for(model)
    layer = LastLayer.find(model, images)
    with pytest.raises(ValueError, match=r"BatchNorm2d 'head.0' has no running statistics.*batches of one"):
        layer.pixel_gradients(images)
    found = torch.cat([layer.pixel_gradients(image[None]).image for image in images])
    torch.testing.assert_close(found, autograd_embeddings(model, layer, images), rtol=1e-10, atol=1e-14)


def test_an_example_that_is_broken_or_missing() -> None:
    torch.manual_seed(16)
    model = HAND_WRITTEN["bilinear, aligned corners"]()
    images = images_for(model).float()
    images[0] = float("nan")
    found = LastLayer.find(model, images).pixel_gradients(images)
    clean = LastLayer.find(model, images[1:]).pixel_gradients(images[1:])
    torch.testing.assert_close(found.image[1:], clean.image)
    torch.testing.assert_close(found.semantic[1:], clean.semantic)
    with pytest.raises(ValueError, match=r"example must hold an image, got shape \(0, 3, 24, 20\)"):
        LastLayer.find(model, images[:0])


@pytest.mark.parametrize(
    "tail", [torch.tanh, lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), lambda x: 2 * x]
)
def test_outputs_that_a_tail_does_not_allow(tail: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(11)
    model = Head(nn.Conv2d(6, CLASSES, 1), tail).double()
    images = images_for(model)
    layer = assert_equals_autograd(model, images)
    layer.pixel_gradients(images, outputs=("entropy", "class_pixels"))
    with pytest.raises(ValueError, match=r"norm_map not defined.*(Tanh|Bicubic|Mul)"):
        layer.pixel_gradients(images, outputs=("image", "norm_map"))


@pytest.mark.parametrize(
    "tail",
    [
        lambda logits, images: logits.clamp(-0.8, 0.8),
        lambda logits, images: F.leaky_relu(logits + 2),
        lambda logits, images: logits.masked_fill(images.mean(1, keepdim=True) > 1, -10.0),
        lambda logits, images: logits + images.relu().sum(1, keepdim=True) * torch.arange(CLASSES).view(-1, 1, 1),
    ],
    ids=["clamp", "leaky", "masked field of view", "a branch that is silent"],
)
def test_a_tail_that_does_nothing_to_the_example_may_do_something_to_another_image(
    tail: Callable[[Tensor, Tensor], Tensor],
) -> None:
    class Model(Head):
        def forward(self, images: Tensor) -> Tensor:
            return tail(self.head(self.stem(images).tanh()), images[..., ::2, ::2])

    torch.manual_seed(17)
    model = Model(nn.Conv2d(6, CLASSES, 1)).double()
    images = 3 * images_for(model)
    layer = LastLayer.find(model, torch.zeros_like(images[:1]))
    found = layer.pixel_gradients(images, outputs=("image",)).image
    torch.testing.assert_close(found, autograd_embeddings(model, layer, images), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("side", "scale", "mode", "align_corners"),
    [(14, 4, "bilinear", True), (14, 4, "bilinear", False), (64, 2, "bilinear", True), (14, 4, "nearest", None)],
)
def test_a_resize_is_told_from_its_like_in_few_digits(
    side: int, scale: int, mode: str, align_corners: bool | None, dtype: torch.dtype
) -> None:
    """Norms are those of the patches that were resized as the model resizes."""
    torch.manual_seed(18)
    size = (side * scale, side * scale)
    model = Head(nn.Conv2d(6, CLASSES, 1), resized(size, mode, align_corners))
    images = torch.randn(1, 3, 2 * side, 2 * side)
    exact = copy.deepcopy(model).double()
    expected = reference_outputs(exact, LastLayer.find(exact, images.double()), images.double())["norm_map"]
    found = LastLayer.find(model.to(dtype), images.to(dtype)).pixel_gradients(images.to(dtype), outputs=("norm_map",))
    assert (found.norm_map - expected).norm() <= 0.02 * expected.norm()


def test_a_resize_is_known_where_algorithms_must_be_deterministic() -> None:
    """On a GPU torch then has other operations in its place, which are called for here."""

    def resize(logits: Tensor) -> Tensor:
        if torch.are_deterministic_algorithms_enabled():
            return torch._decomp.decompositions._upsample_linear_vec(logits, (48, 40), True, None)
        return F.interpolate(logits, size=(48, 40), mode="bilinear", align_corners=True)

    torch.manual_seed(20)
    model = Head(nn.Conv2d(6, CLASSES, 1), resize).double()
    images = images_for(model)
    expected = LastLayer.find(model, images).pixel_gradients(images)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = LastLayer.find(model, images).pixel_gradients(images)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scaled_logits_have_a_scaled_gradient_in_few_digits_too(dtype: torch.dtype) -> None:
    torch.manual_seed(19)
    model = Head(nn.Conv2d(6, CLASSES, 1), lambda logits: 1.3 * logits)
    images = images_for(model).float()
    expected = autograd_embeddings(model, LastLayer.find(model, images), images)
    model, images = model.to(dtype), images.to(dtype)
    found = LastLayer.find(model, images).pixel_gradients(images, outputs=("image",)).image
    assert (found - expected).norm() <= 0.12 * expected.norm()  # 0.23 without the factor


def test_no_images_give_empties_at_any_size() -> None:
    for kind in ("plain 3 x 5", "bilinear, aligned corners"):
        model = HAND_WRITTEN[kind]()
        layer = LastLayer.find(model, images_for(model).float())
        found = layer.pixel_gradients(torch.zeros(0, 3, 16, 16), outputs=("image", "semantic"))
        assert found.image.shape == (0, *layer.module.weight.shape)
        assert found.semantic.shape == (0, CLASSES)


def test_bad_arguments() -> None:
    model = HAND_WRITTEN["bilinear, aligned corners"]()
    images = images_for(model).float()
    layer = LastLayer.find(model, images)
    with pytest.raises(ValueError, match="outputs: unknown name 'imgae'"):
        layer.pixel_gradients(images, outputs=("imgae",))
    with pytest.raises(TypeError, match="sequence of names"):
        layer.pixel_gradients(images, outputs="image")
    with pytest.raises(ValueError, match=r"valid must have shape \(3, 27, 19\)"):
        layer.pixel_gradients(images, valid=torch.ones(3, 12, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match="loss must return one value"):
        layer.pixel_gradients(images, loss=lambda logits, target: logits)
