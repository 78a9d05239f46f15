"""Frozen encoders: a pretrained trunk that is never trained, and a small head that is.

    model(images) = upsample(head(projection(trunk(images))))

`FrozenModel` is the whole, for export and for models from files. Inside, what trunk and projection make of a frame is
made once and kept (features_cache.py); from then on a pool's items are these maps and the model is the head alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.errors import UserError, one_line
from alges_fast.models.weights import (
    PACKAGED,
    PACKAGED_ENCODER,
    digest,
    encoder_with_tag,
    fetched,
    load_weights,
    normalisation_of,
    read_weights,
)
from alges_fast.normalisation import Normalisation

STRIDE = 4
"""Pixels of a mask's side to one of the features'."""
HIDDEN = 32
LEVELS = 4
"""Maps of the encoder that are joined: those at 1/2, 1/4, 1/8 and 1/16 of the image's side."""


@dataclass(frozen=True)
class View:
    """What a frozen encoder is shown of a frame, and what is kept of its maps.

    Attributes:
        scale: sides of the picture that it sees over those of the masks, on the same grid of features.
        components: principal components kept, at most: an encoder that has fewer channels keeps its own number.
        reach: half the side of a square, over the frame's; the components' means over it are kept too. 0: they are not.
        coordinates: whether x, y, x² and y², from -1 to 1, are kept too.
    """

    scale: int
    components: int
    reach: float
    coordinates: bool


PLAIN = View(scale=1, components=64, reach=0.0, coordinates=False)
"""Of heads saved before there were others."""
RAISED = View(scale=2, components=32, reach=3 / 32, coordinates=True)
"""Chosen on validation frames of three data sets: bench/results/HEAD.md."""


class Trunk(nn.Module):
    """A pretrained encoder in eval mode, without gradients: images (B, 3, S, S), normalised, to its first maps.

    Attributes:
        name: the encoder's.
        weights: what was given for its weights.
        digest: of its weights, whatever they came from.
        normalisation: what they want.
    """

    def __init__(self, encoder: nn.Module, name: str, weights: str, normalisation: Normalisation) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.name, self.weights, self.normalisation = name, weights, normalisation
        self.digest = digest(encoder)
        self.channels = tuple(int(n) for n in cast(Sequence[int], encoder.out_channels)[1:] if n)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [level for level in self.encoder(images)[1:] if level.shape[1]]

    def train(self, mode: bool = True) -> Trunk:
        """Frozen: its statistics are those of its weights, in training too."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.parameters()).device

    def built(self) -> Trunk:
        """The same, with its encoder in memory."""
        return self

    def thawed(self) -> Trunk:
        """A copy whose weights can be trained, but for those that the maps at 1/2 and 1/4 come from, of an encoder that
        has such: the early layers serve any picture, and take half of a step's time and memory."""
        trunk = copy.deepcopy(self.built())
        trunk.encoder.requires_grad_(True)
        early, *late = trunk(torch.zeros(1, 3, 64, 64, device=trunk.device))[1:]
        if early.shape[2] > late[0].shape[2]:
            weights = list(trunk.encoder.parameters())
            found = torch.autograd.grad(early.sum(), weights, allow_unused=True)
            for weight, gradient in zip(weights, found, strict=True):
                weight.requires_grad_(gradient is None)
        return trunk


class PackagedTrunk(Trunk):
    """The packaged encoder, built when it first runs: where all features are kept, the seconds that its library takes
    to import are not spent. What names kept features is known without it."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.name, self.weights = PACKAGED_ENCODER, PACKAGED
        self.normalisation = normalisation_of(self.name, self.weights)
        self.digest, self.channels = "ae4d9a1ef554c9e3a44f93fb113328c4", (16, 24, 40, 112)
        self._place = torch.device("cpu")

    def forward(self, images: Tensor) -> list[Tensor]:
        self.built()
        return super().forward(images)

    @property
    def device(self) -> torch.device:
        return self._place

    def built(self) -> Trunk:
        if "encoder" not in self._modules:
            encoder = _encoder_of(self.name, self.weights)
            self.encoder = encoder.eval().requires_grad_(False).to(self._place)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._place = fn(torch.empty(0, device=self._place)).device
        return super()._apply(fn, recurse)


class Projection(nn.Module):
    """Maps of a trunk, joined on a grid, standardised and projected: an affine map of channels, and what a view adds.

    Each map is projected before it is enlarged, which is linear too and then has fewer channels to work on.

    Args:
        weight: (components, channels of all maps).
        bias: (components,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, channels: Sequence[int], view: View) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.channels = tuple(channels)
        self.view = view

    @property
    def n_features(self) -> int:
        """Channels of the features."""
        return len(self.weight) * (2 if self.view.reach else 1) + (4 if self.view.coordinates else 0)

    def forward(self, levels: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """(B, n_features, *grid)."""
        joined = self.bias.view(1, -1, 1, 1)
        for level, weight in zip(levels, self.weight.split(self.channels, 1), strict=True):
            joined = joined + _brought_to(level, grid, weight)
        parts = [joined]
        if self.view.reach:
            reach = [round(self.view.reach * cells) for cells in grid]
            sides = [2 * cells + 1 for cells in reach]
            parts.append(F.avg_pool2d(joined, sides, 1, reach, count_include_pad=False))
        if self.view.coordinates:
            y, x = ((2 * torch.arange(cells, device=joined.device) + 1) / cells - 1 for cells in grid)
            x, y = x.expand(grid), y[:, None].expand(grid)
            parts.append(torch.stack((x, y, x * x, y * y)).expand(joined.shape[0], -1, -1, -1))
        return torch.cat(parts, 1) if len(parts) > 1 else joined


class FrozenHead(nn.Module):
    """What a round trains: features (B, channels, h, w) to logits (B, n_classes, h, w), pixel by pixel.

    Args:
        projection: that made the features; kept with the head's weights, so that one goes nowhere without the other.
        seed: fixes the weights. No global generator is read or advanced.
    """

    def __init__(self, projection: Projection, n_classes: int, seed: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise UserError(f"the data set has {n_classes} class(es): segmentation needs at least 2")
        self.projection = projection
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(projection.n_features, HIDDEN, 1), nn.ReLU(inplace=True), nn.Conv2d(HIDDEN, n_classes, 1)
            )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(features)
        return logits


class FrozenModel(nn.Module):
    """Images (B, 3, H, W) of any size, normalised as the trunk's weights want it, to logits (B, n_classes, H, W).

    Args:
        head: trained over features of its own view.
        image_size: side of the masks that it was trained on.

    Attributes:
        side: of the square that the trunk is shown.
    """

    def __init__(self, trunk: Trunk, head: FrozenHead, image_size: int) -> None:
        super().__init__()
        self.trunk = trunk.built()
        self.head = head
        self.side = image_size * head.projection.view.scale

    def forward(self, images: Tensor) -> Tensor:
        shown = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        logits = self.head(features(self.trunk, self.head.projection, shown))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


def features(trunk: Trunk, projection: Projection, images: Tensor) -> Tensor:
    """(B, n_features, *grid) of normalised images (B, 3, S, S) at the view's scale."""
    maps: Tensor = projection(trunk(images), grid_size(images.shape[2:], projection.view.scale))
    return maps


def grid_size(size: Sequence[int], scale: int = 1) -> tuple[int, int]:
    """Sides of the features of images of this size, which are those of masks enlarged by the scale."""
    return math.ceil(size[0] / (STRIDE * scale)), math.ceil(size[1] / (STRIDE * scale))


def build_trunk(encoder: str, encoder_weights: str) -> Trunk:
    """An encoder of segmentation-models-pytorch (of timm: with the prefix tu-) with pretrained weights; also a plain
    vision transformer of timm, such as tu-vit_small_patch14_dinov2.lvd142m.

    Raises:
        UserError: an unknown encoder, or weights that cannot be had.
    """
    if (encoder, encoder_weights) == (PACKAGED_ENCODER, PACKAGED):
        return PackagedTrunk()
    model = _encoder_of(encoder, encoder_weights)
    return Trunk(model, encoder, encoder_weights, normalisation_of(encoder, encoder_weights))


def untrained_trunk(encoder: str, normalisation: Normalisation) -> Trunk:
    """A trunk whose weights are to be loaded. Raises UserError: an unknown encoder."""
    return Trunk(_encoder_of(encoder, None), encoder, "", normalisation)


def _encoder_of(encoder: str, encoder_weights: str | None) -> nn.Module:
    import segmentation_models_pytorch as smp

    state = read_weights(encoder, encoder_weights)
    name = fetched(encoder, encoder_weights)
    try:
        weights = True if name is not None and encoder.startswith("tu-") else name
        if is_transformer(encoder):
            model: nn.Module = Transformer(encoder_with_tag(encoder, name), pretrained=weights is True)
        else:
            model = smp.encoders.get_encoder(encoder_with_tag(encoder, name), depth=LEVELS, weights=weights)
            _cut_after_last_level(model)
    except Exception as error:
        raise UserError(
            f"encoder {encoder} with {encoder_weights!r} weights cannot be had ({one_line(error)[:200]}): check its "
            "name and the network, or give a file or packaged as --encoder_weights"
        ) from error
    if state is not None:
        load_weights(model, state, str(encoder_weights))
    return model


class Transformer(nn.Module):
    """A plain vision transformer of timm as an encoder: the patch tokens of its last layers, after its own last norm.

    These are the maps that DINOv2 is judged by in segmentation (Oquab et al. 2023, 7.4, "+ms" without its scales). All
    have one side, that of the image over the patch's; images are resized to whole patches first.

    Args:
        name: timm's, with the prefix tu-.
        pretrained: whether timm fetches its weights.
    """

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        import timm

        model: Any = cast(Any, timm.create_model(_timm_name(name), pretrained=pretrained, dynamic_img_size=True))
        self.model = model
        self.patch: tuple[int, int] = tuple(model.patch_embed.patch_size)
        self.out_channels = (3, *[int(model.num_features)] * LEVELS)

    def forward(self, images: Tensor) -> list[Tensor]:
        size = [math.ceil(side / patch) * patch for side, patch in zip(images.shape[2:], self.patch, strict=True)]
        if size != list(images.shape[2:]):
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        maps = self.model.forward_intermediates(images, indices=LEVELS, norm=True, intermediates_only=True)
        return [images, *maps]


def is_transformer(encoder: str) -> bool:
    """Whether an encoder's name is that of a plain vision transformer of timm, which has no maps of halving sides."""
    if not encoder.startswith("tu-"):
        return False
    from timm.models import is_model_in_modules

    return bool(is_model_in_modules(_timm_name(encoder), ("vision_transformer", "eva", "beit", "deit")))


def _timm_name(encoder: str) -> str:
    return encoder.removeprefix("tu-")


def fit_projection(joined: Tensor, channels: Sequence[int], view: View) -> Projection:
    """Principal components of standardised channels.

    Args:
        joined: (positions, channels of all maps), what maps joined on the grid hold there.
        view: how many, and what else is kept.
    """
    points = joined.double()
    mean, deviation = points.mean(0), points.std(0, correction=0).clamp(min=1e-6)
    standard = (points - mean) / deviation
    _, vectors = torch.linalg.eigh(standard.T @ standard)
    components = vectors.flip(1)[:, : view.components].T
    # Either sign is a component; the one whose largest entry is positive is the same on every machine.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    weight = components * largest.sign() / deviation
    return Projection(weight.float().contiguous(), -(weight @ mean).float(), channels, view)


def join(levels: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """(B, channels of all maps, *grid): the maps as `Projection` sees them, before it projects."""
    return torch.cat([_brought_to(level, grid, None) for level in levels], 1)


def _brought_to(level: Tensor, grid: tuple[int, int], weight: Tensor | None) -> Tensor:
    """A map at another size, its channels projected where a weight is given."""
    if level.shape[2] > grid[0]:
        level = F.adaptive_avg_pool2d(level, grid)
    if weight is not None:
        level = F.conv2d(level, weight[:, :, None, None])
    if level.shape[2:] != grid:
        level = F.interpolate(level, grid, mode="bilinear", align_corners=False)
    return level


def _cut_after_last_level(encoder: nn.Module) -> None:
    """Take away the stages after the last map: timm's EfficientNets would run them for nothing."""
    model = getattr(encoder, "model", None)
    info = getattr(model, "feature_info", None)
    blocks = getattr(model, "blocks", None)
    if info is None or not isinstance(blocks, nn.Sequential):
        return
    stages = [level.get("stage") for level in info.get_dicts()]
    if all(isinstance(stage, int) for stage in stages):
        model.blocks = blocks[: max(stages)]  # type: ignore[union-attr]
