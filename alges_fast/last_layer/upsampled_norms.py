"""Norms of the patches of an upsampled map, from the map itself.

A pixel of a (bi-, tri-)linearly resized map is a weighted sum of up to 2^n neighbouring low-resolution pixels, so the
squared norm of its patch is a quadratic form in them: a few Gram maps (a pixel with itself, with its right neighbour,
its lower one, and across both diagonals) resized with products of the interpolation weights. The d upsampled channels
are never stored: a resized map costs one channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def upsampled_patch_norms(
    features: Tensor, kernel: Sequence[int], size: Sequence[int], *, mode: str, align_corners: bool | None
) -> Tensor:
    """‖resize(z̃)‖ at every pixel of the resized grid, z̃ the zero-padded kernel-sized patches of features.

    Args:
        features: (B, d, *spatial), 1 to 3 spatial axes.
        kernel: odd size per axis; a convolution with it followed by the resize is the layer this belongs to.
        size: the resized grid.
        mode: "linear" for the linear mode of any number of axes, or "nearest".
        align_corners: as `torch.nn.functional.interpolate` takes it.

    Returns:
        (B, *size), float32, or float64 for float64 features.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    axes = len(size)
    weights = [
        _axis_weights(features, source, target, mode, align_corners)
        for source, target in zip(features.shape[2:], size, strict=True)
    ]
    squared = features.new_zeros(features.shape[0], *size)
    for crossed in itertools.product((False, True), repeat=axes):
        gram = _box_sum(_gram(features, crossed), kernel)
        for axis in range(axes):
            own, neighbours = weights[axis]
            gram = (gram.movedim(axis + 1, -1) @ (neighbours if crossed[axis] else own)).movedim(-1, axis + 1)
        # A pair of different pixels occurs in both orders.
        squared += 2 * gram if any(crossed) else gram
    return squared.clamp(min=0).sqrt()


def resize_matrix(like: Tensor, source: int, target: int, *, mode: str, align_corners: bool | None) -> Tensor:
    """(source, target) in the type of `like`: the weight of each source pixel in each pixel of a resized axis."""
    eye = torch.eye(source, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], size=target, mode=mode, align_corners=align_corners)[0]


def _axis_weights(
    features: Tensor, source: int, target: int, mode: str, align_corners: bool | None
) -> tuple[Tensor, Tensor]:
    """(source, target): the squared weight of each source pixel, and the product of its weight with the next one's."""
    matrix = resize_matrix(features, source, target, mode=mode, align_corners=align_corners)
    following = torch.cat([matrix[1:], matrix.new_zeros(1, target)])
    return matrix.square(), matrix * following


def _gram(features: Tensor, crossed: Sequence[bool]) -> Tensor:
    """Sum over the diagonals across these axes of ⟨z at one end, z at the other⟩, kept at the lower corner."""
    ends = [range(2) if cross else range(1) for cross in crossed]
    total: Tensor | None = None
    for corner in itertools.product(*ends):
        opposite = tuple(1 - end if cross else 0 for end, cross in zip(corner, crossed, strict=True))
        if corner > opposite:
            continue  # the same diagonal from its other end
        product = (_from(features, corner, crossed) * _from(features, opposite, crossed)).sum(1)
        total = product if total is None else total + product
    assert total is not None
    return F.pad(total, [margin for cross in reversed(crossed) for margin in (0, int(cross))])


def _from(features: Tensor, corner: Sequence[int], crossed: Sequence[bool]) -> Tensor:
    for axis, (start, cross) in enumerate(zip(corner, crossed, strict=True), start=2):
        if cross:
            features = features.narrow(axis, start, features.shape[axis] - 1)
    return features


def _box_sum(image: Tensor, kernel: Sequence[int]) -> Tensor:
    """Zero-padded box sum of (B, *spatial)."""
    padded = F.pad(image, [size // 2 for size in reversed(kernel) for _ in range(2)])
    for axis, size in enumerate(kernel, start=1):
        padded = padded.unfold(axis, size, 1).sum(-1)
    return padded
