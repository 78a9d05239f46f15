"""Views of training frames: an image, its mask and what a teacher says of it are moved together, by torchvision.

What is drawn comes from torch's global generators, which a training seeds and puts back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alges_fast.errors import UserError

if TYPE_CHECKING:
    from torchvision.transforms import v2

KINDS = ("flip", "scale", "colour")
"""What suits endoscopy and most else: left and right are alike, the camera comes nearer, the light changes."""

LEAST_AREA = 0.5
"""Of a frame, in a crop: a network must see what surrounds a pixel."""


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds that a flag names, with commas between; none for "none". Raises UserError: one is unknown."""
    kinds = () if text == "none" else tuple(kind.strip() for kind in text.split(","))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--augment {unknown[0]} is unknown: use {', '.join(KINDS)} with commas between, or none")
    return kinds


def augmentation(kinds: Sequence[str], size: Sequence[int]) -> v2.Transform | None:
    """What moves a frame and its labels; None for no kind.

    Args:
        kinds: of `KINDS`: left for right; a crop of half the frame at least, enlarged; brightness, contrast and hue.
        size: of the frames.
    """
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(tuple(size), scale=(LEAST_AREA, 1), ratio=(0.8, 1.25), antialias=True)
    colour = v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03)
    moves = {"flip": v2.RandomHorizontalFlip(), "scale": crop, "colour": colour}
    return v2.Compose([moves[kind] for kind in KINDS if kind in kinds]) if kinds else None


def augmented(move: v2.Transform | None, images: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
    """A batch of images (B, 3, H, W) uint8 and labels of them (B, ..., H, W), every frame moved by itself."""
    if move is None:
        return images, *labels
    from torchvision import tv_tensors

    views = [
        move(tv_tensors.Image(image), *map(tv_tensors.Mask, of_image))
        for image, *of_image in zip(images, *labels, strict=True)
    ]
    return tuple(torch.stack([part.as_subclass(Tensor) for part in parts]) for parts in zip(*views, strict=True))
