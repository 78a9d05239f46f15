"""What follows the last layer in a model: found out by running it, and gone back through by its adjoint."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.last_layer.layouts import channels_first, graph_nodes
from alges_fast.last_layer.running import Pass
from alges_fast.last_layer.upsampled_norms import resize_matrix
from alges_fast.windows import Box

_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Resize:
    """Arguments of `torch.nn.functional.interpolate`; mode "linear" whatever the number of axes."""

    mode: str
    align_corners: bool | None


_SAME_GRID = Resize("none", None)
_RESIZES = (Resize("linear", False), Resize("linear", True), Resize("nearest", None))

_MOVES = frozenset(
    ("View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Select", "ToCopy")
)
"""Autograd's names of operations that move values or change their type."""
_LINEAR = _MOVES | {
    *("Add", "Sub", "Cat", "Stack", "Expand", "ConstantPadNd", "Split", "SplitWithSizes", "Unbind"),
    *("UpsampleLinear1D", "UpsampleBilinear2D", "UpsampleTrilinear3D"),
    *("UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D"),
}
"""... and of those that are linear in the layer's output, whatever it is."""


@dataclass(frozen=True)
class Tail:
    """How the logits come from the layer's output o.

    Attributes:
        absent: the logits are o, so whoever has o's input can make them.
        grid: spatial sizes of o, with as many axes as the logits.
        resize: the logits are resize(o) + something that does not depend on o; None where they are not.
        description: what autograd saw between o and the logits.
        probabilities: what the model returns are no logits, but a softmax or sigmoid of them.
    """

    absent: bool
    grid: tuple[int, ...]
    resize: Resize | None
    description: str
    probabilities: bool = False

    @property
    def keeps_grid(self) -> bool:
        """The logits are o + something that does not depend on o."""
        return self.resize is _SAME_GRID


def describe_tail(run: Pass, layer: nn.Module) -> Tail:
    """Compare the tail's vector-Jacobian product with that of each known tail, for one random vector.

    Two different linear maps agree on a random vector with probability zero. Other maps may well agree on one image (a
    clamp that this image does not reach), so the tail must be of operations that are linear whatever the values.
    """
    logits, output = run.logits, channels_first(run.output, layer)
    operations = _operations(run.logits)
    description = ", ".join(operations) or "nothing"
    grid = _grid(output, logits)
    probabilities = _are_probabilities(logits.detach(), description)
    if grid is None or output.shape[1] != logits.shape[1] or not _LINEAR.issuperset(operations):
        return Tail(False, tuple(output.shape[2:]), None, description, probabilities)

    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
    pulled = vector_jacobian(probe, logits, run.output)
    pulled = channels_first(pulled, layer).reshape(*logits.shape[:2], *grid)
    distances = {_SAME_GRID: _distance(pulled, probe)} if grid == logits.shape[2:] else {}
    distances |= {resize: _distance(pulled, _resize_adjoint(probe, grid, resize)) for resize in _RESIZES}
    # The nearest, not the first that is near: in bfloat16 and for sizes that hardly differ several are.
    nearest = min(distances, key=distances.__getitem__)
    if not distances[nearest] <= max(4 * torch.finfo(pulled.dtype).eps, 1e-5):
        return Tail(False, grid, None, description, probabilities)
    # A sum may add nothing to this image's logits, and something to another's.
    absent = nearest is _SAME_GRID and _MOVES.issuperset(operations)
    return Tail(absent and torch.equal(output.reshape(logits.shape), logits.detach()), grid, nearest, description)


def vector_jacobian(vector: Tensor, output: Tensor, source: Tensor, *, retain_graph: bool = False) -> Tensor:
    """The product of a vector with the Jacobian of the output in its source, of the source's shape.

    It is the gradient of a sum: given the vector itself, `torch.autograd.grad` imports sympy for a look at its shape,
    1.5 CPU seconds in every process.
    """
    with torch.enable_grad():
        (product,) = torch.autograd.grad((vector * output).sum(), source, retain_graph=retain_graph)
    return product


def resize_matrices(residual: Tensor, tail: Tail, size: Sequence[int]) -> list[Tensor]:
    """Along every axis (grid, size): the weight of each of the layer's pixels in each of the logits'."""
    assert tail.resize is not None
    how = tail.resize
    return [
        resize_matrix(residual, source, target, mode=how.mode, align_corners=how.align_corners)
        for source, target in zip(tail.grid, size, strict=True)
    ]


def resize_transposed(values: Tensor, box: Box, matrices: Sequence[Tensor]) -> tuple[Tensor, Box]:
    """Vector-Jacobian product of a resize with values that are zero outside a box of the logits' grid.

    A resize works along one axis after the other, so this is a matrix product per axis. On a GPU the resize's own
    backward pass adds in the order in which threads arrive, and in the type of the logits. One image at a time: how a
    product is cut into pieces must not depend on the batch.

    Args:
        values: (B, C, *box).
        box: where they lie.
        matrices: of `resize_matrices`.

    Returns:
        (B, C, *under), and `under`: the box of the layer's grid that the box of the logits is made from.
    """
    under, parts = [], []
    for side, matrix in zip(box, matrices, strict=True):
        sources = range(len(matrix))
        if len(side) < matrix.shape[1]:
            used = matrix[:, side.start : side.stop].any(1).nonzero()[:, 0]
            sources = range(int(used[0]), int(used[-1]) + 1)
        under.append(sources)
        parts.append(matrix[sources.start : sources.stop, side.start : side.stop])
    pulled_back = values.new_empty(*values.shape[:2], *map(len, under))
    for index, one in enumerate(values):
        for axis, weights in enumerate(parts, start=1):
            one = (one.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
        pulled_back[index] = one
    return pulled_back, tuple(under)


def _are_probabilities(logits: Tensor, description: str) -> bool:
    if not ((logits >= 0) & (logits <= 1)).all():
        return False
    return "Sigmoid" in description or bool(((logits.float().sum(1) - 1).abs() < 0.01).all())


def _grid(output: Tensor, logits: Tensor) -> tuple[int, ...] | None:
    """Spatial sizes of o with as many axes as the logits: a sequence of tokens is a grid in row-major order."""
    if output.ndim == logits.ndim:
        return tuple(output.shape[2:])
    if output.ndim != 3:
        return None
    n_tokens, size = output.shape[2], tuple(logits.shape[2:])
    if n_tokens == math.prod(size):
        return size
    # The grid that has the logits' proportions.
    factor = (n_tokens / math.prod(size)) ** (1 / len(size))
    guess = tuple(round(side * factor) for side in size)
    return guess if math.prod(guess) == n_tokens else None


def _resize_adjoint(probe: Tensor, grid: tuple[int, ...], resize: Resize) -> Tensor:
    """What autograd makes of it: the tail's own product is compared in the same arithmetic."""
    mode = _LINEAR_MODES[len(grid)] if resize.mode == "linear" else resize.mode
    with torch.enable_grad():
        source = probe.new_zeros(*probe.shape[:2], *grid).requires_grad_()
        resized = F.interpolate(source, size=probe.shape[2:], mode=mode, align_corners=resize.align_corners)
        return vector_jacobian(probe, resized, source)


def _distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, relative to that of b."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def _operations(logits: Tensor) -> list[str]:
    """Names of autograd's nodes between the logits and the leaf, nearest to the logits first, less bookkeeping."""
    names = [re.sub(r"Backward\d*$", "", type(node).__name__) for node in graph_nodes(logits)]
    return [name for name in names if name not in ("AccumulateGrad", "Clone", "Alias")]
