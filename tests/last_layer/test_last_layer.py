"""`LastLayer`: any architecture's image-level embedding is autograd's gradient, and the model is left as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast import LastLayer, pixel_gradients
from alges_fast.losses import IGNORE, Loss, cross_entropy, cross_entropy_with_dice, focal
from alges_fast.ops import OUTPUTS

CLASSES = 5
# smp architectures and the smallest convenient image side
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


class Head(nn.Module):
    """A hand-written model: two layers of features, a head, and what follows it."""

    def __init__(self, head: nn.Module, tail: Callable[[Tensor], Tensor] = lambda logits: logits, channels: int = 6):
        super().__init__()
        dimensions = next((n for n, layer in _CONVOLUTIONS.items() if isinstance(head, layer)), 2)
        convolution = _CONVOLUTIONS[dimensions]
        self.stem = convolution(3, channels, 3, padding=1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.head = head
        self.tail = tail

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.head(self.relu(self.stem(images))))


_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def resized(size: tuple[int, ...], mode: str = "bilinear", align_corners: bool | None = False):
    return lambda logits: F.interpolate(logits, size=size, mode=mode, align_corners=align_corners)


class Tokens(nn.Module):
    """A transformer's shape: features as (B, tokens, d), a linear head, logits on the image's grid."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, CLASSES)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        grid = self.patches(images)
        tokens = grid.flatten(2).transpose(1, 2)
        logits = self.head(tokens).transpose(1, 2).unflatten(2, grid.shape[2:])
        if self.scale > 1:
            logits = F.interpolate(logits, scale_factor=self.scale, mode="bilinear")
        return logits


class LastLinear(nn.Module):
    """A linear head over channels-last maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


HAND_WRITTEN: dict[str, Callable[[], nn.Module]] = {
    "plain 1 x 1": lambda: Head(nn.Conv2d(6, CLASSES, 1)),
    "plain 3 x 5": lambda: Head(nn.Conv2d(6, CLASSES, (3, 5), padding=(1, 2))),
    "volume 1 x 1 x 1": lambda: Head(nn.Conv3d(6, CLASSES, 1)),
    "volume 3 x 3 x 3, trilinear": lambda: Head(nn.Conv3d(6, CLASSES, 3, padding=1), resized((9, 14, 10), "trilinear")),
    "sequence, linear": lambda: Head(nn.Conv1d(6, CLASSES, 3, padding="same"), resized((24,), "linear", True)),
    "bilinear, sizes that do not divide": lambda: Head(nn.Conv2d(6, CLASSES, 3, padding=1), resized((27, 19))),
    "bilinear, aligned corners": lambda: Head(
        nn.Conv2d(6, CLASSES, 3, padding=1), resized((27, 19), align_corners=True)
    ),
    "bilinear, downwards": lambda: Head(nn.Conv2d(6, CLASSES, 1), resized((5, 9))),
    "nearest": lambda: Head(nn.Conv2d(6, CLASSES, 3, padding=1), resized((24, 20), "nearest", None)),
    "sum with a constant": lambda: Head(nn.Conv2d(6, CLASSES, 3, padding=1), lambda logits: logits + 0.25),
    "tokens": lambda: Tokens(1),
    "tokens, bilinear": lambda: Tokens(4),
    "channels-last linear": LastLinear,
}


def images_for(model: nn.Module, n: int = 3) -> Tensor:
    dimensions = next((d for d, layer in _CONVOLUTIONS.items() if isinstance(getattr(model, "head", None), layer)), 2)
    size = {1: (20,), 2: (24, 20), 3: (8, 12, 10)}[dimensions]
    return torch.randn(n, 3, *size, dtype=torch.float64)


def reference_outputs(model: nn.Module, layer: LastLayer, images: Tensor, **arguments) -> dict[str, Tensor]:
    """Every output on the logits' grid, from upsampled patches that are stored whole."""
    seen = []
    handle = layer.module.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        logits = model.eval()(images)
    handle.remove()
    (features,) = seen
    weight = layer.module.weight.detach()
    if isinstance(layer.module, nn.Linear):
        features = features.movedim(-1, 1)
        if features.ndim == 3:
            features = features.unflatten(2, [side // 4 for side in images.shape[2:]])
    kernel = weight.shape[2:]
    for axis, size in enumerate(kernel, start=2):
        margins = [0, 0] * (features.ndim - 1 - axis) + [size // 2] * 2
        features = F.pad(features, margins).unfold(axis, size, 1)
    n_axes = len(kernel) or 2
    patches = features.movedim(list(range(2 + n_axes, features.ndim)), list(range(2, features.ndim - n_axes)))
    patches = patches.flatten(1, -1 - n_axes)
    if patches.shape[2:] != logits.shape[2:]:
        tail = model.tail if isinstance(model, Head) else lambda x: F.interpolate(x, scale_factor=4, mode="bilinear")
        patches = tail(patches)
    found = pixel_gradients(
        patches, weight.flatten(1), logits=logits, outputs=ALL, backend="reference", **arguments
    )._asdict()
    for name in ("image", "semantic_vector"):
        found[name] = found[name].view(len(images), *weight.shape)
    if "feature_sum" in found:  # of the pixels themselves: the middle of their patches
        n_taps = math.prod(kernel)
        found["feature_sum"] = found["feature_sum"].view(len(images), -1, n_taps)[..., n_taps // 2]
    return found


ALL = OUTPUTS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_image_level_equals_autograd(architecture: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = getattr(smp, architecture)("resnet18", encoder_weights=None, classes=CLASSES).double()
    side = ARCHITECTURES[architecture]
    layer = assert_equals_autograd(model, torch.randn(2, 3, side, side, dtype=torch.float64))
    assert layer.name == "segmentation_head.0"


def test_image_level_equals_autograd_dpt() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, classes=CLASSES, dynamic_img_size=True).double()
    layer = assert_equals_autograd(model, torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert layer.name == "segmentation_head.head.4"


@pytest.mark.parametrize(
    ("builder", "options", "name"),
    [
        ("fcn_resnet50", {"aux_loss": True}, "classifier.4"),
        ("deeplabv3_resnet50", {"aux_loss": True}, "classifier.4"),
        ("lraspp_mobilenet_v3_large", {}, "classifier.high_classifier"),
    ],
)
def test_image_level_equals_autograd_torchvision(builder: str, options: dict[str, bool], name: str) -> None:
    """Dict outputs; an auxiliary head that runs after the classifier; two classifiers that are summed."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    build = getattr(torchvision.models.segmentation, builder)
    model = build(weights=None, weights_backbone=None, num_classes=CLASSES, **options).double()
    layer = assert_equals_autograd(model, torch.randn(2, 3, 64, 64, dtype=torch.float64))
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


# What cannot be found, or served.


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


def test_a_weight_used_elsewhere_too_is_refused() -> None:
    """Its gradient is a sum over its uses, which the last layer alone does not know."""

    class Tied(Head):
        def forward(self, images: Tensor) -> Tensor:
            features = self.relu(self.stem(images))
            if self.other is None:
                return self.head(features) + F.conv2d(features.flip(-1), self.head.weight)
            return self.head(features) + self.other(features.flip(-1))

    model = Tied(nn.Conv2d(6, CLASSES, 1))
    model.other = None
    with pytest.raises(ValueError, match=r"'head'.*used again, in a function"):
        LastLayer.find(model, torch.randn(1, 3, 16, 16))
    model.other = nn.Conv2d(6, CLASSES, 1)
    model.other.weight = model.head.weight
    with pytest.raises(ValueError, match=r"'other'.*used again, in head"):
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


def test_a_layer_called_twice_is_refused() -> None:
    class Twice(Head):
        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images)
            return self.head(features) + self.head(features.flip(-1))

    with pytest.raises(ValueError, match=r"'head'.*calls it 2 times"):
        LastLayer.find(Twice(nn.Conv2d(6, CLASSES, 1)), torch.randn(1, 3, 16, 16))


def test_a_layer_that_is_not_what_it_says_is_refused() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, features: Tensor) -> Tensor:
            return F.conv2d(features, self.weight - self.weight.mean(), self.bias)

    with pytest.raises(ValueError, match=r"not weight \* input \+ bias"):
        LastLayer.find(Head(Standardised(6, CLASSES, 1)), torch.randn(1, 3, 16, 16))


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


def test_one_bad_image_spoils_itself_alone() -> None:
    torch.manual_seed(12)
    for kind in ("plain 3 x 5", "bilinear, aligned corners"):
        model = HAND_WRITTEN[kind]().double()
        images = images_for(model)
        layer = LastLayer.find(model, images)
        clean = layer.pixel_gradients(images)
        images[1, 0, 3, 3] = float("nan")
        spoiled = layer.pixel_gradients(images)
        assert spoiled.image[1].isnan().any()
        for name in ("image", "semantic"):
            torch.testing.assert_close(getattr(spoiled, name)[::2], getattr(clean, name)[::2], rtol=1e-12, atol=1e-15)
