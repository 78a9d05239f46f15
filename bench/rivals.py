"""Other ways to the same numbers: (features, weight, bias) -> (image, semantic) as `pixel_gradients` defines them.

`tests/bench/test_rivals.py` holds each against the reference, so that the benchmark compares equal work.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rival = Callable[[Tensor, Tensor, Tensor], "tuple[Tensor | None, Tensor | None]"]


def eager(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes with care in PyTorch: softmax, the one-hot taken off in place, one product per image."""
    kernel = weight.shape[2:]
    residual = F.conv2d(features, weight, bias, padding=kernel[0] // 2).softmax(1)
    prediction = residual.argmax(1, keepdim=True)
    residual.scatter_add_(1, prediction, residual.new_full((1,), -1.0).expand(prediction.shape))
    energy = features.square().sum(1, keepdim=True)
    if kernel.numel() == 1:
        image = residual.flatten(2) @ features.flatten(2).mT
    else:
        energy = F.avg_pool2d(energy, tuple(kernel), 1, kernel[0] // 2, divisor_override=1)
        image = torch.stack([_weight_gradient(z, r, weight) for z, r in zip(features, residual, strict=True)])
    norms = (residual.square().sum(1) * energy[:, 0]).sqrt()
    semantic = norms.new_zeros(len(features), len(weight))
    semantic.scatter_add_(1, prediction.flatten(1), norms.flatten(1))
    return image.view(len(features), *weight.shape) / norms[0].numel(), semantic


def _weight_gradient(features: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    padding = weight.shape[2] // 2
    return torch.nn.grad.conv2d_weight(features[None], list(weight.shape), residual[None], padding=padding)


compiled: Rival = torch.compile(eager, dynamic=False)


def naive(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Stores the gradient of every pixel of an image, (K, d, kernel area, pixels), and reduces it."""
    images, semantics = [], []
    for z in features:
        logits = F.conv2d(z[None], weight, bias, padding=weight.shape[2] // 2)[0].flatten(1)
        prediction = logits.argmax(0)
        residual = logits.softmax(0) - F.one_hot(prediction, len(weight)).mT
        patches = F.unfold(z[None], list(weight.shape[2:]), padding=weight.shape[2] // 2)[0]
        gradients = residual[:, None] * patches
        images.append(gradients.mean(-1).view_as(weight))
        semantics.append(logits.new_zeros(len(weight)).index_add(0, prediction, gradients.flatten(0, 1).norm(dim=0)))
    return torch.stack(images), torch.stack(semantics)


def autograd(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, None]:
    """Backward of the mean cross-entropy, an image at a time. Says nothing of single pixels: no `semantic`."""
    images = []
    for z in features:
        leaf = weight.detach().requires_grad_()
        logits = F.conv2d(z[None], leaf, bias, padding=weight.shape[2] // 2)
        images.append(torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), leaf)[0])
    return torch.stack(images), None


def backpack_batch_grad(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, None]:
    """BackPACK's gradients of single samples (Dangel et al., ICLR 2020), all images in one backward: no `semantic`."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    layer = extend(nn.Conv2d(*weight.shape[1::-1], tuple(weight.shape[2:]), padding=weight.shape[2] // 2))
    _set(layer, weight, bias)
    logits = layer(features)
    with backpack(BatchGrad()):
        F.cross_entropy(logits, logits.argmax(1)).backward()
    return layer.weight.grad_batch * len(features), None


def backpack_batch_l2(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[None, Tensor]:
    """BackPACK's norms of single gradients, every pixel a sample of a linear layer over its patch: no `image`."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    patches = F.unfold(features, list(weight.shape[2:]), padding=weight.shape[2] // 2)
    layer = extend(nn.Linear(patches.shape[1], len(weight)))
    _set(layer, weight.flatten(1), bias)
    logits = layer(patches.mT.flatten(0, 1))
    prediction = logits.argmax(1)
    with backpack(BatchL2Grad()):
        F.cross_entropy(logits, prediction, reduction="sum").backward()
    norms = layer.weight.batch_l2.sqrt()
    semantic = norms.new_zeros(len(features), len(weight))
    return None, semantic.scatter_add_(1, prediction.view(len(features), -1), norms.view(len(features), -1))


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        layer.to(weight).weight.copy_(weight)
        layer.bias.copy_(bias)


def missing(rival: str) -> str | None:
    """Why a rival cannot run here."""
    if rival.startswith("backpack") and importlib.util.find_spec("backpack") is None:
        return "BackPACK is not installed (pip install 'alges_fast[bench]')"
    return None


RIVALS: dict[str, Rival] = {
    "compiled": compiled,
    "eager": eager,
    "naive": naive,
    "autograd": autograd,
    "backpack_batch_grad": backpack_batch_grad,
    "backpack_batch_l2": backpack_batch_l2,
}
