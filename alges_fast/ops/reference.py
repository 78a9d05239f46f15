"""The definition of `pixel_gradients` in plain PyTorch; every other backend is held against it.

One image at a time, in the accumulator's type. Scratch is (K + d) x pixels of one image; no (pixels x K x d) tensor.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.ops.operands import Operands
from alges_fast.ops.problem import Problem
from alges_fast.windows import cell_boxes, class_changes, cut

_PIECE = 4096


def unavailable() -> str | None:
    """Why this backend cannot run on this machine; it always can."""
    return None


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot run these inputs; it always can."""
    return None


def bind(operands: Operands) -> Callable[[Operands], list[Tensor]]:
    """What runs calls of this layout."""
    return run


@torch.no_grad()  # the op's fall-through leaves autograd on
def run(operands: Operands) -> list[Tensor]:
    """The results, in order."""
    problem = operands.problem()
    # An enclosing autocast would run the products below in half precision.
    with torch.autocast(problem.features.device.type, enabled=False):
        if problem.regions is not None:
            results = _windows(problem, problem.regions)
        else:
            images = [_one_image(problem, index) for index in range(problem.batch)]
            results = [torch.stack([image[name] for image in images]) for name in operands.names]
    return [result.view(shape) for result, (shape, _) in zip(results, operands.shapes(), strict=True)]


def _windows(problem: Problem, regions: tuple[int, int]) -> list[Tensor]:
    """What `hidden_windows` returns."""
    boxes = cell_boxes(problem.spatial[1:], regions)
    cuts = [replace(problem, features=cut(problem.features, box)) for box in boxes]
    images = [[_one_image(window, index)["image"] for window in cuts] for index in range(problem.batch)]
    classes = [
        _prediction(_convolve(_features(problem, index), problem.weight, problem.bias))[0, 0]
        for index in range(problem.batch)
    ]
    image = torch.stack([torch.stack(windows) for windows in images])
    return [image, class_changes(torch.stack(classes), regions).to(image)]


def _features(problem: Problem, index: int) -> Tensor:
    features = problem.features[index].to(problem.accumulator)
    if problem.hidden is None:
        return features
    weight, bias = problem.hidden
    features = _convolve(features, weight.view(*weight.shape, 1, 1, 1), bias)
    return torch.where(features < 0, features * 0, features)  # -inf becomes NaN, not 0


def _prediction(logits: Tensor) -> Tensor:
    """(1, D, H, W) int64 of logits (K, D, H, W): ties go to the lowest class (torch.argmax promises no order). A NaN
    equals nothing: the sentinel K is clamped."""
    classes = torch.arange(len(logits), device=logits.device).view(-1, 1, 1, 1)
    largest = logits == logits.amax(0)
    return torch.where(largest, classes, len(logits)).amin(0, keepdim=True).clamp(max=len(logits) - 1)


def _one_image(problem: Problem, index: int) -> dict[str, Tensor]:
    dtype, outputs = problem.accumulator, problem.outputs
    features = _features(problem, index)
    if problem.valid is None:
        valid = torch.ones_like(features[0], dtype=torch.bool)
    else:
        valid = problem.valid[index]
        # What is in no valid pixel's patch is not read: 0 times a NaN there would still be NaN.
        features = features.masked_fill(~_reached(valid, problem.kernel), 0)
    classes = torch.arange(problem.classes, device=features.device).view(-1, 1, 1, 1)
    result: dict[str, Tensor] = {}

    if problem.needs_prediction:
        if problem.logits is None:
            logits = _convolve(features, problem.weight, problem.bias)
        else:
            logits = problem.logits[index].to(dtype)
        prediction = _prediction(logits)  # a NaN reaches every output through `total`
        onehot = classes == prediction
        # e = exp(s - max s) is 1 at the prediction: p there is 1 / total, and 1 - p is others / total.
        shifted = logits - logits.gather(0, prediction)
        exps = shifted.exp()
        exps_others = exps.masked_fill(onehot, 0)
        others = exps_others.sum(0)
        total = exps.gather(0, prediction)[0] + others

    if outputs & {"image", "semantic", "semantic_vector", "norm_map"}:
        if problem.residual is not None:
            residual = problem.residual[index].to(dtype)
        else:
            # r = p - onehot; at the prediction minus the sum of the other classes' p, because p - 1 cancels near p = 1.
            residual = torch.where(onehot, -others, exps) / total
        residual = residual.masked_fill(~valid, 0)
    if "image" in outputs:
        # Eq. 4: the mean over valid pixels of r ⊗ z̃; an image with none is all zeros.
        result["image"] = _outer_sum(residual, features, problem.kernel) / valid.sum().clamp(min=1)
    if outputs & {"semantic", "norm_map"}:
        # The gradient of a pixel is rank one: ‖r ⊗ z̃‖_F = ‖r‖ ‖z̃‖.
        norms = residual.square().sum(0).sqrt() * _patch_sum(features.square().sum(0), problem.kernel).sqrt()
        norms = norms.masked_fill(~valid, 0)
    if "norm_map" in outputs:
        result["norm_map"] = norms
    if outputs & {"semantic", "semantic_vector", "class_pixels"}:
        counted = onehot & valid
    if "semantic" in outputs:
        result["semantic"] = norms.masked_fill(~counted, 0).flatten(1).sum(1)
    if "semantic_vector" in outputs:
        result["semantic_vector"] = _outer_sum(residual.masked_fill(~counted, 0), features, problem.kernel)
    if "class_pixels" in outputs:
        result["class_pixels"] = counted.flatten(1).sum(1)
    if outputs & {"entropy", "class_entropy"}:
        # -Σ p ln p = ln Σe - Σ e ln e / Σe; a class with e = 0 adds nothing, and ln e would be -inf there.
        weighted = torch.where(exps > 0, exps * shifted, exps).masked_fill(onehot, 0).sum(0)
        entropy = (others.log1p() - weighted / total).masked_fill(~valid, 0)
    if "entropy" in outputs:
        result["entropy"] = entropy.sum()
    if "margin" in outputs:
        # p of the best class less p of the runner-up, which for a single class is 0.
        result["margin"] = ((1 - exps_others.amax(0)) / total).masked_fill(~valid, 0).sum()
    if "confidence" in outputs:
        result["confidence"] = total.reciprocal().masked_fill(~valid, 0).sum()
    if outputs & {"class_mass", "class_entropy"}:
        probability = (torch.where(onehot, 1, exps) / total).masked_fill(~valid, 0)
    if "class_mass" in outputs:
        result["class_mass"] = probability.flatten(1).sum(1)
    if "class_entropy" in outputs:
        result["class_entropy"] = (probability * entropy).flatten(1).sum(1)
    if "feature_sum" in outputs:
        result["feature_sum"] = features.masked_fill(~valid, 0).flatten(1).sum(1)
    return result


def _convolve(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The last layer's logits (K, D, H, W), as matrix products: those heed torch.get_float32_matmul_precision(), while
    cuDNN's convolutions use TF32 by default and may differ from run to run.
    """
    kernel = weight.shape[2:]
    windows = _taps(_pad(features, kernel), features.shape[1:], kernel)
    taps = [tap @ window.flatten(1) for tap, window in zip(weight.flatten(2).unbind(-1), windows, strict=True)]
    logits = torch.stack(taps).sum(0).view(-1, *features.shape[1:])
    return logits if bias is None else logits + bias.view(-1, 1, 1, 1)


def _outer_sum(residual: Tensor, features: Tensor, kernel: Sequence[int]) -> Tensor:
    """Σ over pixels of r ⊗ z̃: residual (K, D, H, W), features (d, D, H, W) -> (K, d, *kernel)."""
    # In pieces: one float32 running sum over a megapixel loses its third digit.
    flat = residual.flatten(1).split(_PIECE, 1)
    taps = []
    for window in _taps(_pad(features, kernel), residual.shape[1:], kernel):
        pieces = zip(flat, window.flatten(1).split(_PIECE, 1), strict=True)
        taps.append(functools.reduce(torch.add, (ours @ theirs.mT for ours, theirs in pieces)))
    return torch.stack(taps, -1).view(*taps[0].shape, *kernel)


def _patch_sum(image: Tensor, kernel: Sequence[int]) -> Tensor:
    """Zero-padded box sum of (D, H, W)."""
    return torch.stack(_taps(_pad(image, kernel), image.shape, kernel)).sum(0)


def _reached(valid: Tensor, kernel: Sequence[int]) -> Tensor:
    """Which pixels are in some valid pixel's patch."""
    return torch.stack(_taps(_pad(valid, kernel), valid.shape, kernel)).any(0)


def _pad(tensor: Tensor, kernel: Sequence[int]) -> Tensor:
    margins = [size // 2 for size in reversed(kernel) for _ in range(2)]
    return F.pad(tensor, margins)


def _taps(padded: Tensor, shape: torch.Size, kernel: Sequence[int]) -> list[Tensor]:
    """The padded map seen from each kernel offset, in the order of the kernel's elements."""
    depth, height, width = shape
    return [
        padded[..., z : z + depth, y : y + height, x : x + width]
        for z, y, x in itertools.product(*(range(size) for size in kernel))
    ]
