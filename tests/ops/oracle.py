"""What `pixel_gradients` must return, computed three ways that share no code with the package, and the error budget.

`definition` is the plain PyTorch formula in a given precision: in float64 it is the truth, in float32 the error a
backend is measured by. It is itself held against the stored (pixels x K x d) gradient in the suite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast import PixelGradients

OUTPUTS = PixelGradients._fields
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Inputs:
    """The operands of one call."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None
    logits: Tensor | None = None
    residual: Tensor | None = None
    valid: Tensor | None = None

    def keywords(self) -> dict[str, Tensor | None]:
        return {field: getattr(self, field) for field in self.__dataclass_fields__}

    def to(self, target: torch.dtype | str) -> Inputs:
        """With the floating operands in another type, or everything on another device."""
        changed = {
            name: copy_with_strides(tensor, target) if isinstance(target, str) else tensor.to(target)
            for name, tensor in self.keywords().items()
            if tensor is not None and (isinstance(target, str) or tensor.is_floating_point())
        }
        return replace(self, **changed)

    def image(self, index: int | slice | Sequence[int]) -> Inputs:
        """The images at an index, as a batch."""
        chosen = slice(index, index + 1) if isinstance(index, int) else index
        per_image = ("features", "logits", "residual", "valid")
        cut = {name: tensor[chosen] for name in per_image if (tensor := getattr(self, name)) is not None}
        return replace(self, **cut)


def copy_with_strides(tensor: Tensor, device: str) -> Tensor:
    """On a device, with its strides, stride 0 and distance to an aligned address included: `.to` may make it dense."""
    if tensor.numel() == 0 or tensor.device.type == device:
        return tensor.to(device)
    aligned = tensor.storage_offset() % 16
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    memory = torch.empty(aligned + extent, dtype=tensor.dtype, device=device)
    memory[aligned:] = tensor.detach().as_strided((extent,), (1,))
    copied = memory[aligned:].as_strided(tensor.shape, tensor.stride())
    assert copied.storage_offset() % 16 == tensor.storage_offset() % 16
    return copied.requires_grad_(tensor.requires_grad)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def draw(
    batch: int,
    n_classes: int,
    channels: int,
    spatial: Sequence[int],
    kernel: Sequence[int] = (),
    *,
    dtype: torch.dtype = torch.float32,
    given: Sequence[str] = (),
    seed: int = 0,
) -> Inputs:
    """Normal features and a weight under which logits are of order one; `given` adds logits, residual and valid."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    fan_in = channels * math.prod(kernel)
    return Inputs(
        features=normal(batch, channels, *spatial).to(dtype),
        weight=(normal(n_classes, channels, *kernel) * 1.5 / math.sqrt(fan_in)).to(dtype),
        bias=normal(n_classes).to(dtype),
        logits=(normal(batch, n_classes, *spatial) * 2).to(dtype) if "logits" in given else None,
        residual=normal(batch, n_classes, *spatial).to(dtype) if "residual" in given else None,
        valid=torch.rand(batch, *spatial, generator=generator) > 0.3 if "valid" in given else None,
    )


def last_layer(inputs: Inputs, weight: Tensor | None = None) -> Tensor:
    """Logits (B, K, *spatial) by PyTorch's own convolution."""
    weight = inputs.weight if weight is None else weight
    axes = inputs.features.ndim - 2
    if weight.ndim == 2:
        weight = weight.view(*weight.shape, *[1] * axes)
    padding = [size // 2 for size in weight.shape[2:]]
    return _CONVOLUTIONS[axes](inputs.features, weight, inputs.bias, padding=padding)


def patches(features: Tensor, kernel: Sequence[int]) -> Tensor:
    """The kernel-sized patch of every pixel, zero beyond the edge: (B, d * kernel, pixels)."""
    axes = features.ndim - 2
    kernel = tuple(kernel) or (1,) * axes
    padded = F.pad(features, [size // 2 for size in reversed(kernel) for _ in range(2)])
    for axis, size in enumerate(kernel):
        padded = padded.unfold(2 + axis, size, 1)
    # (B, d, *spatial, *kernel) -> (B, d, *kernel, *spatial)
    moved = padded.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    return moved.reshape(features.shape[0], features.shape[1] * math.prod(kernel), math.prod(features.shape[2:]))


@dataclass(frozen=True)
class Pixels:
    """What is known of every pixel (pixels flattened), in the precision of the inputs."""

    logits: Tensor  # (B, K, P)
    probabilities: Tensor  # (B, K, P)
    prediction: Tensor  # (B, P)
    residual: Tensor  # (B, K, P), 0 where not valid
    patches: Tensor  # (B, d * kernel, P)
    valid: Tensor  # (B, P)

    @property
    def onehot(self) -> Tensor:
        """(B, K, P), 0 where not valid."""
        classes = torch.arange(self.logits.shape[1], device=self.logits.device)
        return ((self.prediction[:, None] == classes[:, None]) & self.valid[:, None]).to(self.logits.dtype)


def pixels(inputs: Inputs, prediction: Tensor | None = None) -> Pixels:
    features = inputs.features
    logits = (last_layer(inputs) if inputs.logits is None else inputs.logits).flatten(2)
    probabilities = logits.softmax(1)
    if prediction is None:
        prediction = (logits == logits.amax(1, keepdim=True)).to(torch.uint8).argmax(1)  # the lowest of the largest
    residual = inputs.residual
    if residual is None:
        residual = probabilities - F.one_hot(prediction, logits.shape[1]).movedim(-1, 1)
    else:
        residual = residual.flatten(2)
    valid = torch.ones_like(features[:, 0], dtype=torch.bool) if inputs.valid is None else inputs.valid
    valid = valid.flatten(1)
    return Pixels(
        logits=logits,
        probabilities=probabilities,
        prediction=prediction,
        residual=residual.masked_fill(~valid[:, None], 0),
        patches=patches(features, inputs.weight.shape[2:]),
        valid=valid,
    )


def definition(inputs: Inputs, dtype: torch.dtype, prediction: Tensor | None = None) -> PixelGradients:
    """What `pixel_gradients` documents of every output, as plain PyTorch in `dtype`."""
    inputs = inputs.to(dtype)
    at = pixels(inputs, prediction)
    counts = at.valid.sum(1).clamp(min=1)
    norms = at.residual.norm(dim=1) * at.patches.norm(dim=1)
    own = at.residual * at.onehot
    largest = at.probabilities.sort(1, descending=True).values
    runner_up = largest[:, 1] if largest.shape[1] > 1 else torch.zeros_like(largest[:, 0])
    log_probabilities = at.logits.log_softmax(1).clamp(min=torch.finfo(dtype).min)  # 0 x -inf is 0 here
    entropy = -(at.probabilities * log_probabilities).sum(1)
    counted = at.probabilities.masked_fill(~at.valid[:, None], 0)
    weight_shape = (len(inputs.features), *inputs.weight.shape)
    masked = [values.masked_fill(~at.valid, 0).sum(1) for values in (entropy, largest[:, 0] - runner_up, largest[:, 0])]
    return PixelGradients(
        image=((at.residual @ at.patches.mT) / counts[:, None, None]).view(weight_shape),
        semantic=torch.einsum("bkp,bp->bk", at.onehot, norms),
        semantic_vector=(own @ at.patches.mT).view(weight_shape),
        norm_map=norms.view_as(inputs.features[:, 0]),
        class_pixels=at.onehot.sum(2).long(),
        entropy=masked[0],
        margin=masked[1],
        confidence=masked[2],
        class_mass=counted.sum(2),
        class_entropy=(counted * entropy.masked_fill(~at.valid, 0)[:, None]).sum(2),
        feature_sum=inputs.features.flatten(2).masked_fill(~at.valid[:, None], 0).sum(2),
    )


def stored_tensor(inputs: Inputs) -> PixelGradients:
    """The same from the gradient of every pixel, stored: (B, P, K, d * kernel). Small sizes only; no scores."""
    at = pixels(inputs)
    gradients = torch.einsum("bkp,bcp->bpkc", at.residual, at.patches)
    weight_shape = (len(inputs.features), *inputs.weight.shape)
    norms = gradients.flatten(2).norm(dim=2)
    counts = at.valid.sum(1).clamp(min=1)
    n_classes = range(at.logits.shape[1])
    chosen = [((at.prediction == k) & at.valid).to(norms.dtype) for k in n_classes]
    vector = torch.stack([(gradients[:, :, k] * chosen[k][..., None]).sum(1) for k in n_classes], 1)
    return PixelGradients(
        image=(gradients.sum(1) / counts[:, None, None]).view(weight_shape),
        semantic=torch.stack([(norms * chosen[k]).sum(1) for k in n_classes], 1),
        semantic_vector=vector.view(weight_shape),
        norm_map=norms.view_as(inputs.features[:, 0]),
        class_pixels=torch.stack([chosen[k].sum(1).long() for k in n_classes], 1),
    )


def tie_slack(inputs: Inputs) -> PixelGradients:
    """How far each element may move when pixels within float32's reach of an argmax tie go to the runner-up.

    Everywhere else the element is held to the budget, so one undecidable pixel does not loosen the rest.
    """
    exact = inputs.to(torch.float64)
    zero = definition(exact, torch.float64)
    none = PixelGradients(*[torch.zeros_like(value, dtype=torch.float64) for value in zero])
    if inputs.logits is not None or inputs.weight.shape[0] == 1:
        return none  # given logits are exact, ties included
    at = pixels(exact)
    magnitude = last_layer(
        Inputs(exact.features.abs(), exact.weight.abs(), None if exact.bias is None else exact.bias.abs())
    ).flatten(2)
    top = at.logits.topk(2, dim=1)
    near = (top.values[:, 0] - top.values[:, 1] < 2**-20 * magnitude.amax(1)) & at.valid
    if not near.any():
        return none
    other = torch.where(top.indices[:, 0] == at.prediction, top.indices[:, 1], top.indices[:, 0])
    slack = none._asdict()
    # One near tie at a time: two of them may cancel.
    for where in near.nonzero():
        only = torch.zeros_like(near)
        only[tuple(where)] = True
        moved = definition(exact, torch.float64, torch.where(only, other, at.prediction))
        for name in OUTPUTS:
            slack[name] = slack[name] + (getattr(moved, name) - getattr(zero, name)).abs()
    return PixelGradients(**slack)


def assert_within_budget(found: PixelGradients, inputs: Inputs) -> None:
    """Error against float64 at most twice the plain float32 formula's, plus 1e-6 of the output's scale.

    Sizes are the largest over the output; elements that an argmax tie can move are given that much and no more. Outputs
    not asked for (None) are not looked at.
    """
    exact, plain, slack = definition(inputs, torch.float64), definition(inputs, torch.float32), tie_slack(inputs)
    for name in OUTPUTS:
        value, truth, room = getattr(found, name), getattr(exact, name), getattr(slack, name)
        if value is None:
            continue
        value = value.cpu()
        assert value.shape == truth.shape, f"{name}: shape {tuple(value.shape)}, not {tuple(truth.shape)}"
        if name == "class_pixels":
            assert value.dtype == torch.int64
            assert ((value - truth).abs() <= room).all(), f"class_pixels: {value} is not {truth}"
            continue
        assert value.dtype == (torch.float64 if inputs.features.dtype == torch.float64 else torch.float32), name
        if value.numel() == 0:
            continue
        error = ((value.double() - truth).abs() - room).clamp(min=0).amax().item()
        allowed = ((getattr(plain, name).double() - truth).abs() - room).clamp(min=0).amax().item()
        scale = truth.abs().amax().item()
        assert error <= 2 * allowed + 1e-6 * scale, (
            f"{name}: error {error:.3g} against float64; plain float32 {allowed:.3g}, scale {scale:.3g}"
        )
