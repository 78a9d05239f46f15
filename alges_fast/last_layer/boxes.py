"""Outputs of boxes of a batch's logits, from one pass of the model: a whole image is one box, its windows are many.

`OnOwnGrid` is for convolutions and linear layers whose output is the logits, or is summed with something: the op reads
views of features and logits, cut to the box and what patches reach beyond it. `ThroughTail` is for all others: a box's
residual is pulled back through the tail to the layer's output first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alges_fast.last_layer.layouts import (
    CONVOLUTIONS,
    TRANSPOSED,
    channels_first,
    kernel_of,
    on_grid,
    to_compute_dtype,
)
from alges_fast.last_layer.running import Pass
from alges_fast.last_layer.tail import Tail, resize_matrices, resize_transposed
from alges_fast.last_layer.transposed import transposed_patch_norms, transposed_weight_sum
from alges_fast.last_layer.upsampled_norms import upsampled_patch_norms
from alges_fast.losses import Loss, loss_residual
from alges_fast.ops import hidden_pixel_gradients, hidden_windows, pixel_gradients
from alges_fast.windows import Box, cut, inside, padded, rim, whole_box

__all__ = ["OnOwnGrid", "Request", "ThroughTail"]


@dataclass(frozen=True)
class Request:
    """What is asked of a batch; fields as the arguments of `LastLayer.pixel_gradients`."""

    outputs: Sequence[str]
    loss: Loss | None
    valid: Tensor | None
    backend: str | None

    def valid_in(self, box: Box) -> Tensor | None:
        return None if self.valid is None else cut(self.valid, box)


class OnOwnGrid:
    """Boxes of a batch whose logits lie on the layer's own grid.

    Args:
        layer: a convolution or a linear layer.
        features: its input (B, d, *size).
        logits: (B, K, *size); None where the layer's output is the logits, which the op then makes itself.
        request: what is asked.
        hidden: a layer of single pixels, whose ReLU is the layer's input; `features` are then its own. None: none.
    """

    def __init__(
        self,
        layer: nn.Module,
        features: Tensor,
        logits: Tensor | None,
        request: Request,
        hidden: nn.Module | None = None,
    ) -> None:
        assert logits is not None or request.loss is None
        assert logits is None or hidden is None
        self.size = tuple(features.shape[2:])
        self.features = features
        self.logits = None if logits is None else to_compute_dtype(logits, features)
        self.weight, bias = _parameters(layer)
        self.bias = bias if logits is None else None
        self.hidden = None if hidden is None else _parameters(hidden)
        self.request = request

    def outputs_of(self, box: Box) -> dict[str, Tensor]:
        request = self.request
        around = rim(box, kernel_of(self.weight, self.size), self.size)
        valid, residual = request.valid_in(box), None
        if request.loss is not None:
            assert self.logits is not None
            residual = loss_residual(cut(self.logits, box), loss=request.loss, valid=valid)
            residual = to_compute_dtype(padded(residual, box, around), self.features)
        valid = (
            inside(box, around, len(self.features), self.features.device)
            if valid is None
            else padded(valid, box, around)
        )
        features = cut(self.features, around)
        if self.hidden is not None:
            found = hidden_pixel_gradients(
                features,
                *self.hidden,
                self.weight,
                self.bias,
                outputs=request.outputs,
                valid=valid,
                backend=request.backend,
            )
        else:
            found = pixel_gradients(
                features,
                self.weight,
                self.bias,
                outputs=request.outputs,
                logits=None if self.logits is None else cut(self.logits, around),
                residual=residual,
                valid=valid,
                backend=request.backend,
            )
        return {name: getattr(found, name) for name in request.outputs}

    def sums_of_windows(self, regions: tuple[int, int]) -> dict[str, Tensor]:
        """`image`, and by the name "outline" the changes of predicted class, of every window of a grid, by
        `hidden_windows`; of images behind a hidden layer."""
        assert self.hidden is not None
        image, outline = hidden_windows(
            self.features, *self.hidden, self.weight, self.bias, regions=regions, backend=self.request.backend
        )
        return {"image": image.view(*image.shape[:2], *self.weight.shape), "outline": outline}


class ThroughTail:
    """Boxes of a batch whose logits are made from the layer's output by a tail, or by a transposed convolution.

    Args:
        layer: any last layer.
        run: one pass; where the tail is no resize, the logits' graph begins at the layer's output.
        tail: what follows the layer.
        request: what is asked.
    """

    def __init__(self, layer: nn.Module, run: Pass, tail: Tail, request: Request) -> None:
        logits = run.logits.detach()
        self.logits = logits if logits.dtype == torch.float64 else logits.float()
        self.size = tuple(logits.shape[2:])
        self.features = on_grid(run.features, layer, tail.grid)
        self.layer = layer
        self.run = run
        self.tail = tail
        self.request = request

    def outputs_of(self, box: Box) -> dict[str, Tensor]:
        request = self.request
        logits, valid = cut(self.logits, box), request.valid_in(box)
        residual = loss_residual(logits, loss=request.loss, valid=valid)
        found: dict[str, Tensor] = {}
        if "image" in request.outputs:
            n_pixels = math.prod(logits.shape[2:]) if valid is None else valid.flatten(1).sum(1)
            gradient = self._weight_sum(residual, box)
            scale = torch.as_tensor(n_pixels, dtype=gradient.dtype, device=gradient.device).clamp(min=1)
            found["image"] = gradient / scale.view(-1, *[1] * (gradient.ndim - 1))
        if "semantic_vector" in request.outputs:
            found["semantic_vector"] = self._weight_sum(_own_class(residual, logits), box)
        if "feature_sum" in request.outputs:
            counted = torch.ones_like(logits[:, :1]) if valid is None else valid.unsqueeze(1).to(logits.dtype)
            found["feature_sum"] = self._feature_sum(counted, box)
        if others := [name for name in request.outputs if name not in found]:
            # They need no more of a patch than its norm: ‖r ⊗ z̃‖ = ‖r‖ ‖z̃‖. So one channel that holds ‖z̃‖ stands for
            # all d of them.
            norms = cut(self._patch_norms, box)
            rest = pixel_gradients(
                norms,
                norms.new_zeros(logits.shape[1], 1),
                outputs=others,
                logits=to_compute_dtype(logits, norms),
                residual=None if request.loss is None else to_compute_dtype(residual, norms),
                valid=valid,
                backend=request.backend,
            )
            found.update({name: getattr(rest, name) for name in others})
        return found

    def _weight_sum(self, residual: Tensor, box: Box) -> Tensor:
        """Σ over pixels of δ ⊗ z̃, δ the tail's vector-Jacobian product with a residual (B, K, *box) that is zero
        outside the box: (B, *weight's shape)."""
        delta, where = self._pull_back(residual, box)
        if isinstance(self.layer, TRANSPOSED):
            return transposed_weight_sum(self.features, delta, where, self.layer, backend=self.request.backend)
        return self._outer_sum(delta, where, _parameters(self.layer)[0])

    def _feature_sum(self, counted: Tensor, box: Box) -> Tensor:
        """Σ over a box of the resized features, by the share (B, 1, *box) to which its pixels count: (B, d)."""
        shares, where = self._pull_back(counted, box)
        return self._outer_sum(shares, where, shares.new_zeros(1, self.features.shape[1])).squeeze(1)

    def _outer_sum(self, delta: Tensor, where: Box, weight: Tensor) -> Tensor:
        """Σ over a box of the layer's grid of δ ⊗ z̃, z̃ the patches of the weight's kernel; its values are not read."""
        grid = tuple(self.features.shape[2:])
        around = rim(where, kernel_of(weight, grid), grid)
        crop = cut(self.features, around)
        residual = to_compute_dtype(padded(delta, where, around), crop)
        found = pixel_gradients(crop, weight, outputs=("image",), residual=residual, backend=self.request.backend).image
        assert found is not None
        return found * math.prod(crop.shape[2:])  # the op returns the mean over the crop

    def _pull_back(self, values: Tensor, box: Box) -> tuple[Tensor, Box]:
        """The tail's vector-Jacobian product with values (B, C, *box), and the box of the layer's output it lies in."""
        if self.tail.keeps_grid:
            return values, box
        if self.tail.resize is not None:
            return resize_transposed(values, box, self._resize_matrices)
        if box != whole_box(self.size):
            everywhere = values.new_zeros(self.run.logits.shape)
            cut(everywhere, box).copy_(values)
            values = everywhere
        values = values.to(self.run.logits.dtype)
        (delta,) = torch.autograd.grad(self.run.logits, self.run.output, values, retain_graph=True)
        delta = channels_first(delta, self.layer)
        return delta, whole_box(delta.shape[2:])

    @functools.cached_property
    def _resize_matrices(self) -> list[Tensor]:
        return resize_matrices(self.logits, self.tail, self.size)

    @functools.cached_property
    def _patch_norms(self) -> Tensor:
        """(B, 1, *size): ‖z̃‖ of every pixel, or zeros where no output needs it."""
        if not {"semantic", "norm_map"} & set(self.request.outputs):
            return torch.zeros_like(self.logits[:, :1])
        if isinstance(self.layer, TRANSPOSED):
            return transposed_patch_norms(self.features, self.size, self.layer).unsqueeze(1)
        resize = self.tail.resize
        assert resize is not None
        kernel = kernel_of(_parameters(self.layer)[0], self.tail.grid)
        return upsampled_patch_norms(
            self.features, kernel, self.size, mode=resize.mode, align_corners=resize.align_corners
        ).unsqueeze(1)


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(layer, (*CONVOLUTIONS, nn.Linear))
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


def _own_class(residual: Tensor, logits: Tensor) -> Tensor:
    """The residual of the predicted class alone, 0 elsewhere."""
    predicted = logits.argmax(1, keepdim=True)
    return torch.zeros_like(residual).scatter_(1, predicted, residual.gather(1, predicted))
