"""The last layer of any segmentation model: which layer makes the logits, and its gradient embeddings.

With z and o that layer's input and output and `tail` whatever the model does with o afterwards (nothing, upsampling, a
sum with another branch), the gradient with respect to its weight is δ ⊗ z̃ summed over pixels, δ the vector-Jacobian
product of `tail` at o with the residual at the logits. So only the tail needs autograd, and the tail needs no code: the
model runs without gradients up to o, which a hook replaces by a leaf, and with them from there on. Through a resize, by
far the most frequent tail, the product is written out, so that it repeats bit for bit.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.last_layer.upsampled_norms import resize_matrix, upsampled_patch_norms
from alges_fast.losses import Loss, loss_residual
from alges_fast.ops import OUTPUTS, PixelGradients, pixel_gradients
from alges_fast.windows import Box, cell_boxes, cut, inside, padded, rim

__all__ = ["LastLayer", "evaluating", "logits_of", "unwrapped"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear, nn.Bilinear)
_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class LastLayer:
    """The layer that makes a model's logits. Made by `LastLayer.find`.

    Attributes:
        model: the model it belongs to; only run, never changed.
        name: its name in `model.named_modules()`.
        module: a convolution (odd kernel, stride 1, zero padding kernel // 2), or a linear layer over the last axis.
    """

    model: nn.Module
    name: str
    module: nn.Module
    _mixes_images: str | None = field(repr=False, compare=False)
    _tails: dict[tuple[int, ...], _Tail] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def find(cls, model: nn.Module, example: Tensor, *, name: str | None = None) -> LastLayer:
        """Find the layer that makes the logits by running the model twice on an example.

        It is the layer from whose output the logits are reached without passing another layer, and that has a channel
        per class. Where two branches are summed (torchvision's LRASPP) it is the one called last. Modes, parameters,
        gradients, buffers and hooks of the model are left as they were. Hooks do not reach into compiled code, so a
        compiled model runs uncompiled, and a DataParallel one on one device.

        Args:
            model: maps images (B, C, *spatial) to logits (B, K, *grid), to a mapping that holds them under "out" or
                "logits", to an object with `.logits`, or to a sequence whose first item they are.
            example: (B, C, *spatial) on the model's device; one image is enough.
            name: the layer's name in `model.named_modules()`, for a model in which it cannot be found.

        Raises:
            ValueError: no layer, or none this method applies to, makes the logits; the message lists the candidates.
        """
        model = unwrapped(model)
        if not len(example):
            raise ValueError(f"example must hold an image, got shape {tuple(example.shape)}")
        with torch.inference_mode(False), evaluating(model), _buffers_kept(model):
            example = _without_nan(_ordinary(example[:1]))
            chosen = _choose(_trace(model, example), name)
            layer = cls(model, chosen.name, chosen.module, _mixes_images(model))
            layer._tail(example)
        return layer

    def pixel_gradients(
        self,
        images: Tensor,
        *,
        outputs: Sequence[str] = ("image", "semantic"),
        loss: Loss | None = None,
        valid: Tensor | None = None,
        backend: str | None = None,
    ) -> PixelGradients:
        """`alges_fast.pixel_gradients` of this layer for a batch of images, whatever follows the layer in the model.

        The model runs in eval mode, in the autocast state of the caller, and is left as it was.

        Args:
            images: (B, C, *spatial), on the model's device and of its type.
            outputs: as for `alges_fast.pixel_gradients`. `image` works after any tail; `semantic`, `semantic_vector`
                and `norm_map` need the layer to be followed by nothing, by a (bi-, tri-)linear or nearest resize, or by
                a sum.
            loss: `loss(logits, target) -> scalar` (see `alges_fast.losses`); default the cross-entropy against the
                model's own prediction.
            valid: (B, *grid) bool on the logits' grid, the pixels that count; default all.
            backend: as for `alges_fast.pixel_gradients`.

        Returns:
            PixelGradients in which `image` (B, *weight's shape) is, for every image, autograd's gradient of the loss
            with respect to the layer's weight, and everything per pixel is on the logits' grid.

        Raises:
            ValueError: an output this model's tail does not allow, a shape that does not fit, a model that returns
                probabilities with the default loss, or one that mixes the images of a batch.
        """
        _check_outputs(outputs)
        model = self.model
        with torch.inference_mode(False), torch.no_grad(), evaluating(model):
            images = _ordinary(images)
            tail = self._tail_for(images, loss)
            if tail.plain and loss is None:
                features = self._features(images)
                with _full_precision(features):
                    return pixel_gradients(
                        _on_grid(features, self.module, tail.grid),
                        *self._parameters(),
                        outputs=outputs,
                        valid=valid,
                        backend=backend,
                    )
            if tail.resize is _SAME_GRID:
                run = self._forward(images, record_tail=False)
                with _full_precision(run.features):
                    features = _on_grid(run.features, self.module, tail.grid)
                    logits = _like(run.logits, features)
                    residual = None if loss is None else _like(loss_residual(logits, loss=loss, valid=valid), features)
                    return pixel_gradients(
                        features,
                        self._parameters()[0],
                        outputs=outputs,
                        logits=logits,
                        residual=residual,
                        valid=valid,
                        backend=backend,
                    )
            return self._through_tail(images, tail, outputs, loss, valid, backend)

    def window_gradients(
        self,
        images: Tensor,
        regions: tuple[int, int],
        *,
        outputs: Sequence[str] = ("image",),
        loss: Loss | None = None,
        backend: str | None = None,
    ) -> PixelGradients:
        """The outputs of `pixel_gradients` for every window of a grid over the logits, in one pass of the model.

        A window's outputs are those of `pixel_gradients` with `valid` true in the window alone. So `image` is the mean
        over the window's n pixels of r ⊗ z̃ (Eq. 4 restricted to the window), which is autograd's gradient, with respect
        to the layer's weight, of the loss of the window's pixels; `semantic` and the others are sums over them. Patches
        z̃ are whole: they reach beyond the window into its neighbours.

        The op reads views of the features cut to a window, with a rim of kernel // 2: for a 1 x 1 head all windows
        together cost about one pass over the image, for larger kernels more, as the rims overlap. Through a resize it
        reads the features under the window. After any other tail, `image` takes a backward pass of the tail per window.

        Args:
            images: (B, C, height, width), as for `pixel_gradients`.
            regions: rows R and columns C of the grid. Windows cover every pixel of the logits once; their sides differ
                by at most a pixel.
            outputs: as for `pixel_gradients`, but for `norm_map`, which has a number per pixel.
            loss: as for `pixel_gradients`; it is called on one window of one image at a time.
            backend: as for `alges_fast.pixel_gradients`.

        Returns:
            PixelGradients whose fields have an axis of R C windows, row by row, after the batch's: `image` is
            (B, R C, *weight's shape).

        Raises:
            ValueError: as `pixel_gradients`; a grid finer than the logits.
        """
        _check_outputs(outputs)
        if "norm_map" in outputs:
            raise ValueError("outputs: norm_map has a number per pixel and none per window; ask pixel_gradients for it")
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            images = _ordinary(images)
            tail = self._tail_for(images, loss)
            if tail.resize is _SAME_GRID:
                found = self._windows_on_grid(images, tail, regions, outputs, loss, backend)
            else:
                found = self._windows_through_tail(images, tail, regions, outputs, loss, backend)
        return PixelGradients(**{name: torch.stack([one[name] for one in found], 1) for name in outputs})

    def features(self, images: Tensor) -> Tensor:
        """The layer's input (B, d, *grid), channels first, in eval mode and the caller's autocast state.

        The model stops there, so nothing that follows can work in place on it. Tokens are laid out on their grid.
        """
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            images = _ordinary(images)
            grid = self._tail(images).grid
            return _on_grid(self._features(images), self.module, grid)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`features`, and the model's logits (B, K, *spatial), from one whole pass."""
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            images = _ordinary(images)
            grid = self._tail(images).grid
            run = self._forward(images, record_tail=False)
            return _on_grid(run.features, self.module, grid), run.logits

    def defines(self, output: str, images: Tensor) -> bool:
        """Whether `pixel_gradients` has this output for images of this size; see `why_undefined`."""
        return self.why_undefined(output, images) is None

    def why_undefined(self, output: str, images: Tensor) -> str | None:
        """Why `pixel_gradients`, with the default loss, refuses an output for images of this size; None: it does not.

        The model runs once for every new image size, on the first image.
        """
        _check_outputs((output,))
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            tail = self._tail(_ordinary(images))
        return self._why_no_loss(tail) or self._why_undefined((output,), tail)

    def _windows_on_grid(
        self,
        images: Tensor,
        tail: _Tail,
        regions: tuple[int, int],
        outputs: Sequence[str],
        loss: Loss | None,
        backend: str | None,
    ) -> list[dict[str, Tensor]]:
        """Each window's outputs where the layer works at the logits' own resolution."""
        boxes = cell_boxes(tail.grid, regions)
        weight, bias = self._parameters()
        logits: Tensor | None = None
        if tail.plain and loss is None:
            features = _on_grid(self._features(images), self.module, tail.grid)
        else:
            run = self._forward(images, record_tail=False)
            features, bias = _on_grid(run.features, self.module, tail.grid), None
            logits = _like(run.logits, features)
        found = []
        with _full_precision(features):
            for box in boxes:
                around = rim(box, weight.shape[2:] or (1, 1), tail.grid)
                residual: Tensor | None = None
                if loss is not None:
                    assert logits is not None
                    residual = _like(padded(loss_residual(cut(logits, box), loss=loss), box, around), features)
                result = pixel_gradients(
                    cut(features, around),
                    weight,
                    bias,
                    outputs=outputs,
                    logits=None if logits is None else cut(logits, around),
                    residual=residual,
                    valid=inside(box, around, len(features), features.device),
                    backend=backend,
                )
                found.append({name: getattr(result, name) for name in outputs})
        return found

    def _windows_through_tail(
        self,
        images: Tensor,
        tail: _Tail,
        regions: tuple[int, int],
        outputs: Sequence[str],
        loss: Loss | None,
        backend: str | None,
    ) -> list[dict[str, Tensor]]:
        """Each window's outputs where something follows the layer."""
        self._check_defined(outputs, tail)
        with _parameters_require_grad(self.model, False):
            run = self._forward(images, record_tail=tail.resize is None)
        with _full_precision(run.features):
            logits = run.logits.detach()
            if logits.dtype != torch.float64:
                logits = logits.float()
            boxes = cell_boxes(logits.shape[2:], regions)
            others = [name for name in outputs if name not in ("image", "semantic_vector")]
            norms = self._patch_norms(run, logits, tail, others) if others else None
            found: list[dict[str, Tensor]] = []
            for box in boxes:
                window = cut(logits, box)
                residual = loss_residual(window, loss=loss)
                result: dict[str, Tensor] = {}
                if "image" in outputs:
                    n_pixels = math.prod(window.shape[2:])
                    result["image"] = self._pull_back_window(run, residual, box, tail, backend) / n_pixels
                if "semantic_vector" in outputs:
                    own = _own_class(residual, window)
                    result["semantic_vector"] = self._pull_back_window(run, own, box, tail, backend)
                if norms is not None:
                    rest = _from_norms(cut(norms, box), window, residual, others, loss, None, backend)
                    result.update({name: getattr(rest, name) for name in others})
                found.append(result)
        return found

    def _pull_back_window(self, run: _Forward, residual: Tensor, box: Box, tail: _Tail, backend: str | None) -> Tensor:
        """`_pull_back` of a residual (B, K, *box) that is zero outside the box."""
        if tail.resize is None:
            whole = run.logits.new_zeros(run.logits.shape, dtype=residual.dtype)
            cut(whole, box).copy_(residual)
            return self._pull_back(run, whole, tail, backend)
        # A resize works along one axis after the other, so its adjoint is a matrix product per axis; only the features
        # that the box was made from have a part in it.
        under, delta = [], residual
        for axis, pixels in enumerate(box):
            matrix = resize_matrix(
                residual,
                tail.grid[axis],
                run.logits.shape[2 + axis],
                mode=tail.resize.mode,
                align_corners=tail.resize.align_corners,
            )[:, pixels.start : pixels.stop]
            used = matrix.any(1).nonzero()[:, 0]
            under.append(range(int(used[0]), int(used[-1]) + 1))
            weights = matrix[under[axis].start : under[axis].stop]
            delta = weights @ delta if axis == 0 else delta @ weights.mT
        features = _on_grid(run.features, self.module, tail.grid)
        weight, _ = self._parameters()
        inner: Box = (under[0], under[1])
        around = rim(inner, weight.shape[2:] or (1, 1), tail.grid)
        crop = cut(features, around)
        summed = pixel_gradients(
            crop, weight, outputs=("image",), residual=_like(padded(delta, inner, around), crop), backend=backend
        ).image
        assert summed is not None
        return summed * math.prod(crop.shape[2:])  # the op returns the mean over the crop

    def _through_tail(
        self,
        images: Tensor,
        tail: _Tail,
        outputs: Sequence[str],
        loss: Loss | None,
        valid: Tensor | None,
        backend: str | None,
    ) -> PixelGradients:
        self._check_defined(outputs, tail)
        with _parameters_require_grad(self.model, False):
            run = self._forward(images, record_tail=tail.resize is None)
        with _full_precision(run.features):
            logits = run.logits.detach()
            if logits.dtype != torch.float64:
                logits = logits.float()
            residual = loss_residual(logits, loss=loss, valid=valid)
            found: dict[str, Tensor | None] = {}

            if "image" in outputs:
                n_pixels = logits[:, :1].numel() // max(len(logits), 1) if valid is None else valid.flatten(1).sum(1)
                gradient = self._pull_back(run, residual, tail, backend)
                scale = torch.as_tensor(n_pixels, dtype=gradient.dtype, device=gradient.device).clamp(min=1)
                found["image"] = gradient / scale.view(-1, *[1] * (gradient.ndim - 1))
            if "semantic_vector" in outputs:
                found["semantic_vector"] = self._pull_back(run, _own_class(residual, logits), tail, backend)
            others = [name for name in outputs if name not in found]
            if others:
                norms = self._patch_norms(run, logits, tail, others)
                rest = _from_norms(norms, logits, residual, others, loss, valid, backend)
                found.update({name: getattr(rest, name) for name in others})
        return PixelGradients(**found)

    def _check_defined(self, outputs: Sequence[str], tail: _Tail) -> None:
        if (reason := self._why_undefined(outputs, tail)) is not None:
            raise ValueError(reason)

    def _why_undefined(self, outputs: Sequence[str], tail: _Tail) -> str | None:
        refused = [name for name in outputs if name in ("semantic", "semantic_vector", "norm_map")]
        if not refused or tail.resize is not None:
            return None
        return (
            f"outputs: {', '.join(refused)} not defined for this model: between {self.name!r} and the logits it "
            f"runs {tail.description}, which is not a linear resize of the layer's output; `image` is defined"
        )

    def _why_no_loss(self, tail: _Tail) -> str | None:
        """Why the default loss does not take what the model returns."""
        if not tail.probabilities:
            return None
        return (
            f"the model returns probabilities (between {self.name!r} and its output it runs {tail.description}), and "
            "the default loss takes logits: leave the activation out of the model, or give loss=, a function of "
            "probabilities"
        )

    def _patch_norms(self, run: _Forward, logits: Tensor, tail: _Tail, outputs: Sequence[str]) -> Tensor:
        """(B, 1, *logits' grid): ‖z̃‖ of every pixel, or zeros where no output needs it."""
        if "semantic" not in outputs and "norm_map" not in outputs:
            return torch.zeros_like(logits[:, :1])
        assert tail.resize is not None
        kernel = self._parameters()[0].shape[2:] or (1,) * len(tail.grid)
        return upsampled_patch_norms(
            _on_grid(run.features, self.module, tail.grid),
            kernel,
            logits.shape[2:],
            mode=tail.resize.mode,
            align_corners=tail.resize.align_corners,
        ).unsqueeze(1)

    def _pull_back(self, run: _Forward, residual: Tensor, tail: _Tail, backend: str | None) -> Tensor:
        """Σ over pixels of δ ⊗ z̃ with δ the tail's vector-Jacobian product with the residual: (B, *weight's shape)."""
        if tail.resize is None:
            (delta,) = torch.autograd.grad(run.logits, run.leaf, residual.to(run.logits.dtype), retain_graph=True)
            delta, features = _channels_first(delta, self.module), _channels_first(run.features, self.module)
        else:
            delta, features = _resize_transposed(residual, tail), _on_grid(run.features, self.module, tail.grid)
        weight, _ = self._parameters()
        summed = pixel_gradients(
            features, weight, outputs=("image",), residual=_like(delta, features), backend=backend
        ).image
        assert summed is not None
        return summed * math.prod(features.shape[2:])  # the op returns the mean over the layer's own grid

    def _parameters(self) -> tuple[Tensor, Tensor | None]:
        module = self.module
        assert isinstance(module, (*_CONVOLUTIONS, nn.Linear))
        weight, bias = module.weight.detach(), module.bias
        return weight, None if bias is None else bias.detach()

    def _features(self, images: Tensor) -> Tensor:
        """The layer's input; the model stops there, so the op that follows does the layer's work and nobody else."""
        found: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(_input(args, kwargs))
            raise _Stop

        handle = self.module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            _run(self.model, images)
        except _Stop:
            pass
        finally:
            handle.remove()
        if not found:
            raise ValueError(f"layer {self.name!r} is not called for images of shape {tuple(images.shape)}")
        self._check_batch(found[0], images)
        return found[0]

    def _forward(self, images: Tensor, *, record_tail: bool, copy_input: bool = False) -> _Forward:
        """One forward pass that keeps the layer's input and the logits, with `record_tail` as a function of a leaf."""
        seen: list[tuple[Tensor, int, Tensor]] = []

        def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            features = _input(args, kwargs)
            features = features.clone() if copy_input else features
            version = features._version
            if not record_tail:
                seen.append((features, version, output))
                return None
            leaf = output.detach().requires_grad_()
            seen.append((features, version, leaf))
            torch.set_grad_enabled(True)
            return leaf.clone()  # what follows may work in place, which autograd forbids on a leaf

        handle = self.module.register_forward_hook(capture, with_kwargs=True)
        try:
            with torch.no_grad():
                logits = logits_of(_run(self.model, images))
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ValueError(f"layer {self.name!r} is called {len(seen)} times in one forward pass, expected once")
        features, version, leaf = seen[0]
        if features._version != version:  # the model went on to work in place on the layer's input
            return self._forward(images, record_tail=record_tail, copy_input=True)
        self._check_batch(features, images)
        if record_tail and not logits.requires_grad:
            raise ValueError(f"the logits do not depend on the output of {self.name!r}, as far as autograd can see")
        return _Forward(features, leaf, logits)

    def _check_batch(self, features: Tensor, images: Tensor) -> None:
        if len(features) != len(images):
            raise ValueError(
                f"layer {self.name!r} gets an input of shape {tuple(features.shape)} for {len(images)} images: images "
                "must stay apart along its first axis"
            )

    def _tail_for(self, images: Tensor, loss: Loss | None) -> _Tail:
        """What follows the layer, where these images can be scored with this loss."""
        if len(images) > 1 and self._mixes_images is not None:
            raise ValueError(
                f"{self._mixes_images} has no running statistics, so an image's logits depend on the others of its "
                f"batch of {len(images)}: use batches of one image"
            )
        tail = self._tail(images)
        if loss is None and (reason := self._why_no_loss(tail)) is not None:
            raise ValueError(reason)
        return tail

    def _tail(self, images: Tensor) -> _Tail:
        """What follows the layer at this image size; found out once per size, on the first image of it."""
        key = tuple(images.shape[1:])
        if key not in self._tails:
            with torch.no_grad(), _parameters_require_grad(self.model, False), _resizes_in_one_operation():
                example = images[:1] if len(images) else images.new_zeros(1, *images.shape[1:])
                run = self._forward(_without_nan(example), record_tail=True)
                self._tails[key] = _describe_tail(run, self.module)
        return self._tails[key]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


# What follows the layer.


@dataclass(frozen=True)
class _Resize:
    mode: str
    align_corners: bool | None


_SAME_GRID = _Resize("none", None)
_RESIZES = (_Resize("linear", False), _Resize("linear", True), _Resize("nearest", None))

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
class _Tail:
    """How the logits come from the layer's output o.

    Attributes:
        plain: the logits are o, so whoever has o's input can make them.
        grid: spatial sizes of o, with as many axes as the logits.
        resize: the logits are resize(o) + something that does not depend on o; None where they are not.
        description: what autograd saw between o and the logits.
        probabilities: what the model returns are no logits, but a softmax or sigmoid of them.
    """

    plain: bool
    grid: tuple[int, ...]
    resize: _Resize | None
    description: str
    probabilities: bool = False


@dataclass(frozen=True)
class _Forward:
    features: Tensor
    leaf: Tensor
    logits: Tensor


def _describe_tail(run: _Forward, module: nn.Module) -> _Tail:
    """Compare the tail's vector-Jacobian product with that of each known tail, for one random vector.

    Two different linear maps agree on a random vector with probability zero. Other maps may well agree on one image (a
    clamp that this image does not reach), so the tail must be of operations that are linear whatever the values.
    """
    logits, output = run.logits, _channels_first(run.leaf, module)
    operations = _operations(run.logits)
    description = ", ".join(operations) or "nothing"
    grid = _grid(output, logits)
    probabilities = _are_probabilities(logits.detach(), description)
    if grid is None or output.shape[1] != logits.shape[1] or not _LINEAR.issuperset(operations):
        return _Tail(False, tuple(output.shape[2:]), None, description, probabilities)

    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
    (pulled,) = torch.autograd.grad(logits, run.leaf, probe)
    pulled = _channels_first(pulled, module).reshape(*logits.shape[:2], *grid)
    distances = {_SAME_GRID: _distance(pulled, probe)} if grid == logits.shape[2:] else {}
    distances |= {resize: _distance(pulled, _resize_adjoint(probe, grid, resize)) for resize in _RESIZES}
    # The nearest, not the first that is near: in bfloat16 and for sizes that hardly differ several are.
    nearest = min(distances, key=distances.__getitem__)
    if not distances[nearest] <= max(4 * torch.finfo(pulled.dtype).eps, 1e-5):
        return _Tail(False, grid, None, description, probabilities)
    # A sum may add nothing to this image's logits, and something to another's.
    plain = nearest is _SAME_GRID and _MOVES.issuperset(operations)
    return _Tail(plain and torch.equal(output.reshape(logits.shape), logits.detach()), grid, nearest, description)


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


def _resize_adjoint(probe: Tensor, grid: tuple[int, ...], resize: _Resize) -> Tensor:
    mode = _LINEAR_MODES[len(grid)] if resize.mode == "linear" else resize.mode
    with torch.enable_grad():
        source = probe.new_zeros(*probe.shape[:2], *grid).requires_grad_()
        resized = F.interpolate(source, size=probe.shape[2:], mode=mode, align_corners=resize.align_corners)
        (pulled,) = torch.autograd.grad(resized, source, probe)
    return pulled


def _resize_transposed(residual: Tensor, tail: _Tail) -> Tensor:
    """Vector-Jacobian product of the tail's resize: (B, K, *logits' grid) -> (B, K, *grid).

    A resize works along one axis after the other, so this is a matrix product per axis. On a GPU the resize's own
    backward pass adds in the order in which threads arrive, and in the type of the logits. One image at a time: how a
    product is cut into pieces must not depend on the batch.
    """
    assert tail.resize is not None
    found = residual.new_empty(*residual.shape[:2], *tail.grid)
    for index, delta in enumerate(residual):
        for axis, (source, target) in enumerate(zip(tail.grid, residual.shape[2:], strict=True), start=1):
            resize = tail.resize
            matrix = resize_matrix(residual, source, target, mode=resize.mode, align_corners=resize.align_corners)
            delta = (delta.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
        found[index] = delta
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, relative to that of b."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def _operations(logits: Tensor) -> list[str]:
    """Names of autograd's nodes between the logits and the leaf, nearest to the logits first, less bookkeeping."""
    names = [re.sub(r"Backward\d*$", "", type(node).__name__) for node in _nodes(logits)]
    return [name for name in names if name not in ("AccumulateGrad", "Clone", "Alias")]


# Finding the layer.


@dataclass(frozen=True, eq=False)
class _Call:
    name: str
    module: nn.Module
    features: Tensor
    output: Tensor


@dataclass(frozen=True)
class _Trace:
    """The layers' calls in order, those the logits are reached from directly, and the model's logits and batch size."""

    calls: list[_Call]
    direct: list[_Call]
    loose: list[str]
    """Parameters with two axes or more on the way from the direct layers to the logits: layers that are not modules."""
    logits: Tensor
    batch: int


def _trace(model: nn.Module, example: Tensor) -> _Trace:
    """Run the model with every layer's output replaced by a leaf: the logits' graph then ends at the last layers."""
    calls: list[_Call] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, _LAYERS):

                def record(
                    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str = name
                ) -> Tensor | None:
                    if not isinstance(output, Tensor) or not output.is_floating_point():
                        return None
                    torch.set_grad_enabled(True)  # a model's forward may be under torch.no_grad
                    leaf = output.detach().requires_grad_()
                    calls.append(_Call(name, module, _input(args, kwargs).detach().clone(), leaf))
                    return leaf.clone()

                stack.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        stack.enter_context(_parameters_require_grad(model, True))
        stack.enter_context(torch.enable_grad())
        logits = logits_of(_run(model, example))
        reached = {id(node.variable) for node in _nodes(logits) if hasattr(node, "variable")}
    return _Trace(
        calls=calls,
        direct=[call for call in calls if id(call.output) in reached],
        loose=[name for name, value in model.named_parameters() if value.ndim >= 2 and id(value) in reached],
        logits=logits.detach(),
        batch=len(example),
    )


def _choose(trace: _Trace, name: str | None) -> _Call:
    n_classes = trace.logits.shape[1]
    if not trace.logits.isfinite().all():
        raise ValueError(
            "the model makes a NaN or infinity of the example, so its layers cannot be told apart: check its weights, "
            "or give another image"
        )
    if n_classes == 1:
        raise ValueError(
            "the model has one output channel, and the softmax of one class is constant: its gradient is zero. Give "
            "the model a channel per class, background included"
        )
    if name is not None:
        named = [call for call in trace.calls if call.name == name]
        if not named:
            raise ValueError(f"name: no layer {name!r} is called in the forward pass. {_candidates(trace)}")
        chosen = named[-1]
    else:
        per_class = [call for call in trace.direct if _channels_first(call.output, call.module).shape[1] == n_classes]
        if per_class:
            chosen = per_class[-1]
        elif len(trace.direct) == 1 and not trace.loose:
            chosen = trace.direct[0]
        else:
            why = "no convolution or linear layer with a channel per class leads straight to the logits"
            if trace.loose:
                why += f" (they use {', '.join(trace.loose)}, which is not in a convolution or linear module)"
            elif not trace.direct:
                why += ", as far as autograd sees (they may be detached, or made in torch.inference_mode)"
            raise ValueError(f"{why}; name the layer with name=. {_candidates(trace)}")
    reason = _unservable(chosen, trace)
    if reason is not None:
        raise ValueError(f"layer {chosen.name!r} cannot be used: {reason}. {_candidates(trace)}")
    return chosen


def _unservable(call: _Call, trace: _Trace) -> str | None:
    """Why the gradient embedding is not defined for this layer, or None."""
    module = call.module
    if isinstance(module, _CONVOLUTIONS):
        for attribute in ("stride", "dilation"):
            if any(value != 1 for value in getattr(module, attribute)):
                return f"its {attribute} is {getattr(module, attribute)}, and only 1 is supported"
        if module.groups != 1:
            return f"it has {module.groups} groups, and only one is supported"
        if any(size % 2 == 0 for size in module.kernel_size):
            return f"its kernel is {module.kernel_size}, and only odd sizes are supported"
        half = tuple(size // 2 for size in module.kernel_size)
        fits = module.padding in (half, "same") or (module.padding == "valid" and not any(half))
        if not fits or (any(half) and module.padding_mode != "zeros"):
            return f"its padding is {module.padding} ({module.padding_mode}), and only zeros, {half}, are supported"
    elif not isinstance(module, nn.Linear):
        return f"it is a {type(module).__name__}, and only convolutions and linear layers are supported"
    n_calls = sum(other.module is module for other in trace.calls)
    if n_calls > 1:
        return f"the forward pass calls it {n_calls} times"
    twins = [other.name for other in trace.calls if other.module is not module and other.module.weight is module.weight]
    if twins or f"{call.name}.weight" in trace.loose:
        return f"its weight is used again, in {', '.join(twins) or 'a function'}, and has the gradient of both uses"
    if len(call.output) != trace.batch or call.features.ndim < 3:
        return (
            f"its input has shape {tuple(call.features.shape)} for {trace.batch} image, and images must stay apart "
            "along the first axis, with pixels or tokens along others"
        )
    with torch.no_grad():
        features = call.features.to(module.weight.dtype)
        if isinstance(module, nn.Linear):
            expected = F.linear(features, module.weight, module.bias)
        else:
            convolve = getattr(F, f"conv{features.ndim - 2}d")
            expected = convolve(features, module.weight, module.bias, padding=[k // 2 for k in module.kernel_size])
        error = (expected - call.output).abs().max()
        coarsest = max(torch.finfo(tensor.dtype).eps for tensor in (call.features, call.output, module.weight))
        if not error <= max(32 * coarsest, 1e-4) * expected.abs().max():
            return "its output is not weight * input + bias"
    return None


def _candidates(trace: _Trace) -> str:
    if not trace.calls:
        return "No convolution or linear module was called: is the model scripted, quantised, or of functions alone?"
    rows = [
        f"\n  {call.name}: {type(call.module).__name__} {tuple(call.features.shape)} -> {tuple(call.output.shape)}"
        + (", leads straight to the logits" if call in trace.direct else "")
        for call in {**dict.fromkeys(trace.direct), **dict.fromkeys(trace.calls[-8:])}
    ]
    return f"Logits have shape {tuple(trace.logits.shape)}; the last layers called are:{''.join(rows)}"


# Residuals and norms.


def _own_class(residual: Tensor, logits: Tensor) -> Tensor:
    """The residual of the predicted class alone, 0 elsewhere."""
    predicted = logits.argmax(1, keepdim=True)
    return torch.zeros_like(residual).scatter_(1, predicted, residual.gather(1, predicted))


def _from_norms(
    norms: Tensor,
    logits: Tensor,
    residual: Tensor,
    outputs: Sequence[str],
    loss: Loss | None,
    valid: Tensor | None,
    backend: str | None,
) -> PixelGradients:
    """Outputs that need no more of a patch than its norm, from (B, 1, *grid) norms: ‖r ⊗ z̃‖ = ‖r‖ ‖z̃‖, so one channel
    that holds ‖z̃‖ stands for all d upsampled ones."""
    return pixel_gradients(
        norms,
        norms.new_zeros(logits.shape[1], 1),
        outputs=outputs,
        logits=_like(logits, norms),
        residual=None if loss is None else _like(residual, norms),
        valid=valid,
        backend=backend,
    )


# Small things.


class _Stop(BaseException):
    """Ends a forward pass at the last layer. Not an Exception: a model's own `except Exception` must not swallow it."""


def _check_outputs(outputs: Sequence[str]) -> None:
    if isinstance(outputs, str):
        raise TypeError(f"outputs must be a sequence of names, such as ({outputs!r},), not the string {outputs!r}")
    for name in outputs:
        if name not in OUTPUTS:
            raise ValueError(f"outputs: unknown name {name!r}; choose from {', '.join(OUTPUTS)}")


def logits_of(output: object) -> Tensor:
    """The logits in what a model returns."""
    found: object = output
    if isinstance(output, Mapping):
        found = next((output[key] for key in ("out", "logits") if key in output), None)
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor) or found.ndim < 3 or not found.is_floating_point():
        what = f"a {type(output).__name__}"
        if isinstance(found, Tensor):
            what = f"{found.dtype} values of shape {tuple(found.shape)}"
        elif isinstance(output, Mapping):
            what += f" of {', '.join(map(repr, output)) or 'nothing'}"
        raise ValueError(
            "the model must return logits (B, K, *spatial), a mapping with them under 'out' or 'logits', an object "
            f"with .logits, or a sequence that starts with them; it returned {what}"
        )
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module: hooks do not reach into what torch.compile made, nor into replicas on other devices."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _run(model: nn.Module, images: Tensor) -> Any:
    """Call the model with whatever is compiled in it left uncompiled, so that hooks are called."""
    compiled = "torch._dynamo" in sys.modules  # else nothing is, and importing it takes seconds
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        return model(images)


def _mixes_images(model: nn.Module) -> str | None:
    """A module that in eval mode too takes its statistics from the batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return f"{type(module).__name__} {name!r}"
    return None


def _without_nan(images: Tensor) -> Tensor:
    """For a look at the model: its layers are found on the first image of a pool, which may be a broken one."""
    return images.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["input"]
    return found


def _ordinary(tensor: Tensor) -> Tensor:
    """Autograd may not keep a tensor that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def _channels_first(tensor: Tensor, module: nn.Module) -> Tensor:
    """A linear layer keeps channels last, (B, *spatial, d); a view with them second."""
    return tensor.movedim(-1, 1) if isinstance(module, (nn.Linear, nn.Bilinear)) else tensor


def _on_grid(features: Tensor, module: nn.Module, grid: tuple[int, ...]) -> Tensor:
    """The layer's input as (B, d, *grid), without a copy."""
    features = _channels_first(features, module)
    return features if features.shape[2:] == grid else features.unflatten(2, grid)


def _like(tensor: Tensor, features: Tensor) -> Tensor:
    """In the features' type, or in float32, which every op takes beside a narrower type."""
    if tensor.dtype == features.dtype:
        return tensor
    return tensor.to(torch.promote_types(features.dtype, torch.float32))


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast is for the model; the op has its own types."""
    return torch.autocast(tensor.device.type, enabled=False)


def _nodes(tensor: Tensor) -> Iterator[Any]:
    """Autograd's nodes behind a tensor, breadth first."""
    queue: list[Any] = [tensor.grad_fn] if tensor.grad_fn is not None else []
    seen = set(queue)
    for node in queue:  # grows while it is walked
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)


@contextmanager
def _parameters_require_grad(model: nn.Module, flag: bool) -> Iterator[None]:
    changed = [p for p in model.parameters() if p.requires_grad != flag and p.is_floating_point()]
    for parameter in changed:
        parameter.requires_grad_(flag)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not flag)


@contextmanager
def _resizes_in_one_operation() -> Iterator[None]:
    """As autograd has it, not the dozen that stand in for it where a GPU is to work deterministically."""
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Some models count or average in their buffers even in eval mode."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, copy in before:
                buffer.copy_(copy)
