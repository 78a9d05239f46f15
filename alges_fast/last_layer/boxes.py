"""Outputs of boxes of a batch's logits, from one pass of the model: a whole image is one box, its windows are many.

`OnOwnGrid` is for convolutions and linear layers whose output is the logits, or is summed with something: the op reads
views of features and logits, cut to the box and what patches reach beyond it. `BehindHidden` is for heads of which not
even the features are stored. `ThroughTail` is for all others: a box's residual is pulled back through the tail to the
layer's output first.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alges_fast.last_layer.cells import CellBatch
from alges_fast.last_layer.layouts import CONVOLUTIONS, TRANSPOSED, channels_first, kernel_of, on_grid, to_compute_dtype
from alges_fast.last_layer.running import Pass
from alges_fast.last_layer.tail import Tail, resize_matrices, resize_transposed, vector_jacobian
from alges_fast.last_layer.transposed import transposed_patch_norms, transposed_weight_sum
from alges_fast.last_layer.upsampled_norms import upsampled_patch_norms
from alges_fast.losses import Loss, loss_residual
from alges_fast.ops import PixelGradients, hidden_pixel_gradients, hidden_windows, pixel_gradients
from alges_fast.ops.outputs import TABLE
from alges_fast.windows import Box, cell_boxes, class_changes, cut, inside, padded, rim, whole_box

OUTLINE = "outline"
"""An output beside those of the op: what an annotator would draw if the model were right."""


@dataclass(frozen=True)
class Request:
    """What is asked of a batch; fields as the arguments of `LastLayer.pixel_gradients` and `window_gradients`."""

    outputs: Sequence[str]
    """Of the op."""
    outline: bool
    regions: tuple[int, int] | None
    loss: Loss | None
    valid: Tensor | None
    backend: str | None


class Boxes(ABC):
    """What a batch is measured by, box by box of its logits' grid."""

    def __init__(self, request: Request, size: Sequence[int]) -> None:
        self.request = request
        self.size = tuple(size)

    @abstractmethod
    def outputs_of(self, box: Box, outputs: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of the op for a box, (B, ...)."""

    @abstractmethod
    def logits_for_outline(self) -> Tensor:
        """The model's logits (B, K, *size)."""

    def measure(self) -> dict[str, Tensor]:
        """All that is asked, (B, boxes, ...): of every window of the grid of regions, or of the whole image."""
        regions = self.request.regions
        cells = [whole_box(self.size)] if regions is None else _cells(self.size, tuple(regions))
        results = self.measure_cells(cells, regions or (1, 1))
        if self.request.outline:
            changes = results[OUTLINE]
            sides = changes.new_tensor([sum(map(len, cell)) / 2 for cell in cells])
            results[OUTLINE] = torch.stack([changes, sides.expand_as(changes)], 2)
        return results

    def measure_cells(self, cells: Sequence[Box], regions: tuple[int, int]) -> dict[str, Tensor]:
        """The same, of the outline the changes of class alone."""
        results = self.op_in_cells(cells, self.request.outputs)
        if self.request.outline:
            results[OUTLINE] = class_changes(self.logits_for_outline().max(1).indices, regions)
        return results

    def op_in_cells(self, cells: Sequence[Box], outputs: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of the op, (B, cells, ...)."""
        each = [self.outputs_of(cell, outputs) for cell in cells] if outputs else []
        if len(each) == 1:
            return {name: values.unsqueeze(1) for name, values in each[0].items()}
        return {name: torch.stack([one[name] for one in each], 1) for name in outputs}

    def valid_in(self, box: Box) -> Tensor | None:
        valid = self.request.valid
        return None if valid is None else cut(valid, box)


class OnOwnGrid(Boxes):
    """Boxes of a batch whose logits lie on the layer's own grid.

    Args:
        features: its input (B, d, *size).
        logits: (B, K, *size); where the layer's output is the logits and no loss is given, the op makes them itself.
        own: whether it is.
    """

    def __init__(
        self, layer: nn.Module, features: Tensor, request: Request, logits: Tensor | None, *, own: bool = False
    ) -> None:
        super().__init__(request, features.shape[2:])
        self.features = features
        self.weight, bias = _parameters(layer)
        self.whole_logits = logits
        self.logits = None if own or logits is None else to_compute_dtype(logits, features)
        self.bias = bias if self.logits is None else None

    def logits_for_outline(self) -> Tensor:
        assert self.whole_logits is not None
        return self.whole_logits.detach()

    def outputs_of(self, box: Box, outputs: Sequence[str]) -> dict[str, Tensor]:
        around = rim(box, kernel_of(self.weight, self.size), self.size)
        valid = self.valid_in(box)
        given: dict[str, Tensor] = {}
        if self.logits is not None:
            given["logits"] = cut(self.logits, around)
            if self.request.loss is not None:
                residual = loss_residual(cut(self.logits, box), loss=self.request.loss, valid=valid)
                given["residual"] = to_compute_dtype(padded(residual, box, around), self.features)
        if valid is None:
            valid = inside(box, around, len(self.features), self.features.device)
        else:
            valid = padded(valid, box, around)
        results = self.run_op(
            cut(self.features, around), outputs=outputs, valid=valid, backend=self.request.backend, **given
        )
        return {name: getattr(results, name) for name in outputs}

    def op_in_cells(self, cells: Sequence[Box], outputs: Sequence[str]) -> dict[str, Tensor]:
        if not outputs or len(cells) == 1 or self.request.loss is not None or not at_once(self.features):
            return super().op_in_cells(cells, outputs)
        batch = CellBatch(cells, kernel_of(self.weight, self.size), self.size, self.features.device)
        given = {} if self.logits is None else {"logits": batch.cut(self.logits)}
        valid = batch.valid(len(self.features), self.request.valid)
        results = self.run_op(
            batch.cut(self.features), outputs=outputs, valid=valid, backend=self.request.backend, **given
        )
        return {name: getattr(results, name).unflatten(0, (-1, len(cells))) for name in outputs}

    def run_op(self, features: Tensor, **how: Any) -> PixelGradients:
        return pixel_gradients(features, self.weight, self.bias, **how)


class BehindHidden(OnOwnGrid):
    """Boxes of a batch on which a head of single pixels, two layers and a ReLU, is all that the model does.

    Args:
        layer: the head's last layer.
        hidden: its first.
        inputs: (B, c, *size), read as they are kept.
        windows: whether `hidden_windows` reads these inputs; asked for an outline, it must.
    """

    def __init__(self, layer: nn.Module, hidden: nn.Module, inputs: Tensor, request: Request, *, windows: bool) -> None:
        super().__init__(layer, inputs, request, None)
        self.hidden = _parameters(hidden)
        self.windows = windows and request.valid is None and (request.regions is not None or request.outline)

    def measure_cells(self, cells: Sequence[Box], regions: tuple[int, int]) -> dict[str, Tensor]:
        if not self.windows:
            return super().measure_cells(cells, regions)
        image, outline = hidden_windows(
            self.features, *self.hidden, self.weight, self.bias, regions=regions, backend=self.request.backend
        )
        others = [name for name in self.request.outputs if name != "image"]
        results = self.op_in_cells(cells, others)
        return {**results, "image": image.view(*image.shape[:2], *self.weight.shape), OUTLINE: outline}

    def run_op(self, features: Tensor, **how: Any) -> PixelGradients:
        return hidden_pixel_gradients(features, *self.hidden, self.weight, self.bias, **how)


class ThroughTail(Boxes):
    """Boxes of a batch whose logits are made from the layer's output by a tail, or by a transposed convolution.

    Args:
        run: one pass; where the tail is no resize, the logits' graph begins at the layer's output.
        tail: what follows the layer.
    """

    def __init__(self, layer: nn.Module, run: Pass, tail: Tail, request: Request) -> None:
        logits = run.logits.detach()
        super().__init__(request, logits.shape[2:])
        self.logits = logits if logits.dtype == torch.float64 else logits.float()
        self.features = on_grid(run.features, layer, tail.grid)
        self.layer = layer
        self.run = run
        self.tail = tail

    def logits_for_outline(self) -> Tensor:
        return self.run.logits.detach()

    def outputs_of(self, box: Box, outputs: Sequence[str]) -> dict[str, Tensor]:
        request = self.request
        logits, valid = cut(self.logits, box), self.valid_in(box)
        residual = loss_residual(logits, loss=request.loss, valid=valid)

        def gradient() -> Tensor:
            n_pixels = math.prod(logits.shape[2:]) if valid is None else valid.flatten(1).sum(1)
            total = self._weight_sum(residual, box)
            scale = torch.as_tensor(n_pixels, dtype=total.dtype, device=total.device).clamp(min=1)
            return total / scale.view(-1, *[1] * (total.ndim - 1))

        def middle() -> Tensor:
            counted = torch.ones_like(logits[:, :1]) if valid is None else valid.unsqueeze(1).to(logits.dtype)
            return self._feature_sum(counted, box)

        of_patches: dict[str | None, Callable[[], Tensor]] = {
            "gradient": gradient,
            "own row": lambda: self._weight_sum(_own_class(residual, logits), box),
            "middle": middle,
        }
        results = {name: of_patches[patch]() for name in outputs if (patch := TABLE[name].patch) in of_patches}
        if others := [name for name in outputs if name not in results]:
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
            results |= {name: getattr(rest, name) for name in others}
        return results

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
        mean = pixel_gradients(crop, weight, outputs=("image",), residual=residual, backend=self.request.backend).image
        assert mean is not None
        return mean * math.prod(crop.shape[2:])  # over the crop

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
        delta = vector_jacobian(values, self.run.logits, self.run.output, retain_graph=True)
        delta = channels_first(delta, self.layer)
        return delta, whole_box(delta.shape[2:])

    @functools.cached_property
    def _resize_matrices(self) -> list[Tensor]:
        return resize_matrices(self.logits, self.tail, self.size)

    @functools.cached_property
    def _patch_norms(self) -> Tensor:
        """(B, 1, *size): ‖z̃‖ of every pixel, or zeros where no output needs it."""
        if not any(TABLE[name].patch == "norm" for name in self.request.outputs):
            return torch.zeros_like(self.logits[:, :1])
        if isinstance(self.layer, TRANSPOSED):
            return transposed_patch_norms(self.features, self.size, self.layer).unsqueeze(1)
        resize = self.tail.resize
        assert resize is not None
        kernel = kernel_of(_parameters(self.layer)[0], self.tail.grid)
        return upsampled_patch_norms(
            self.features, kernel, self.size, mode=resize.mode, align_corners=resize.align_corners
        ).unsqueeze(1)


_cells = functools.lru_cache(16)(cell_boxes)
"""A frame takes a millisecond to measure, of which making the boxes anew would be a third."""


def at_once(features: Tensor) -> bool:
    """Whether cells are copied into a batch and asked for in one call: on a GPU, where a call costs the host more than
    a cell costs the device. On the CPU views of them cost nothing."""
    return features.is_cuda


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(layer, (*CONVOLUTIONS, nn.Linear))
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


def _own_class(residual: Tensor, logits: Tensor) -> Tensor:
    """The residual of the predicted class alone, 0 elsewhere."""
    predicted = logits.argmax(1, keepdim=True)
    return torch.zeros_like(residual).scatter_(1, predicted, residual.gather(1, predicted))
