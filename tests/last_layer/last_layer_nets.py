"""Small models with every kind of head and tail, and the definitions that their embeddings are held against."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from alges_fast import LastLayer, pixel_gradients
from alges_fast.losses import IGNORE, Loss, cross_entropy
from alges_fast.ops import OUTPUTS

CLASSES = 5


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
    found = torch.stack(rows)
    return found.transpose(1, 2) if isinstance(layer.module, _ConvTransposeNd) else found  # classes first


def assert_equals_autograd(model: nn.Module, images: Tensor, bound: float = 1e-12) -> LastLayer:
    layer = LastLayer.find(model, images[:1])
    found = layer.pixel_gradients(images, outputs=("image",)).image
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
