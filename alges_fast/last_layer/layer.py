"""The last layer of any segmentation model: which layer makes the logits, and its gradient embeddings.

With z and o that layer's input and output and `tail` whatever the model does with o afterwards (nothing, upsampling, a
sum with another branch), the gradient with respect to its weight is δ ⊗ z̃ summed over pixels, δ the vector-Jacobian
product of `tail` at o with the residual at the logits. So only the tail needs autograd, and the tail needs no code: the
model runs without gradients up to o, which a hook replaces by a leaf, and with them from there on. Through a resize, by
far the most frequent tail, the product is written out, so that it repeats bit for bit.

Everything is worked out for boxes of the logits' grid: the windows of an image, or the one box that is all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from alges_fast.last_layer.boxes import OUTLINE, BehindHidden, Boxes, OnOwnGrid, Request, ThroughTail
from alges_fast.last_layer.finding import batch_norm_without_statistics, choose, hidden_layer, trace, without_nan
from alges_fast.last_layer.layouts import TRANSPOSED, full_precision, on_grid
from alges_fast.last_layer.running import (
    Pass,
    buffers_kept,
    evaluating,
    outside_inference_mode,
    resizes_in_one_operation,
    run_through,
    run_up_to,
    unwrapped,
)
from alges_fast.last_layer.tail import Tail, describe_tail
from alges_fast.losses import Loss, check_valid
from alges_fast.ops import PixelGradients, check_outputs, one_pass_with_hidden
from alges_fast.ops.outputs import TABLE


@dataclass(frozen=True)
class LastLayer:
    """The layer that makes a model's logits. Made by `LastLayer.find`.

    Attributes:
        model: the model it belongs to; only run, never changed.
        name: its name in `model.named_modules()`.
        module: a convolution (odd kernel, stride 1, zero padding kernel // 2), a transposed convolution (without
            groups), or a linear layer over the last axis.
        n_classes: channels of the logits.
    """

    model: nn.Module
    name: str
    module: nn.Module
    n_classes: int
    _mixes_images: str | None = field(repr=False, compare=False)
    _hidden: nn.Module | None = field(default=None, repr=False, compare=False)
    """The layer before it, where the model is no more than this: layer, ReLU, last layer, pixel by pixel."""
    _tails: dict[tuple[int, ...], Tail] = field(default_factory=dict, repr=False, compare=False)

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
        with torch.inference_mode(False), evaluating(model), buffers_kept(model):
            example = without_nan(outside_inference_mode(example[:1]))
            traced = trace(model, example)
            chosen = choose(traced, name)
            n_classes, mixes_images = traced.logits.shape[1], batch_norm_without_statistics(model)
            hidden = hidden_layer(traced, chosen)
            layer = cls(model, chosen.name, chosen.module, n_classes, mixes_images, hidden)
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
            outputs: as for `alges_fast.pixel_gradients`. `image` works after any tail; `semantic`, `semantic_vector`,
                `norm_map` and `feature_sum` need the layer to be followed by nothing, by a (bi-, tri-)linear or nearest
                resize, or by a sum. `why_undefined` tells.
            loss: `loss(logits, target) -> scalar` (see `alges_fast.losses`); default the cross-entropy against the
                model's own prediction.
            valid: (B, *grid) bool on the logits' grid, the pixels that count; default all.
            backend: as for `alges_fast.pixel_gradients`.

        Returns:
            PixelGradients in which `image` (B, *weight's shape) is, for every image, autograd's gradient of the loss
            with respect to the layer's weight, and everything per pixel is on the logits' grid. A transposed
            convolution's weight has its classes on the second axis; here they are on the first, as for any other layer.

        Raises:
            ValueError: an output this model's tail does not allow, a shape that does not fit, a model that returns
                probabilities with the default loss, or one that mixes the images of a batch.
        """
        check_outputs(outputs)
        return PixelGradients(**self.measure(images, outputs, loss=loss, valid=valid, backend=backend))

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
        check_outputs(outputs)
        return PixelGradients(**self.measure(images, outputs, regions=regions, loss=loss, backend=backend))

    def reads_as_kept(self, images: Tensor, outputs: Sequence[str] = ()) -> bool:
        """Whether `measure`, with the default loss and backend, reads these images where they are for these outputs, in
        whatever floating type and layout they are kept, and stores nothing of their size, on a GPU some images' maps.

        So it is for a model of single pixels with one hidden layer, such as the head of a frozen encoder. An
        infinity or NaN in an image is then a NaN or infinity in all of its outputs but `class_pixels` and `outline`.
        """
        hidden = self._hidden
        if hidden is None or torch.is_autocast_enabled(images.device.type):
            return False
        weights: tuple[Any, Any] = (hidden.weight, self.module.weight)
        if any(weight.dtype not in (torch.float32, images.dtype) for weight in weights):
            return False
        return one_pass_with_hidden(images, *weights, windows=OUTLINE in outputs)

    def features(self, images: Tensor) -> Tensor:
        """The layer's input (B, d, *grid), channels first, in eval mode and the caller's autocast state.

        The model stops there, so nothing that follows can work in place on it. Tokens are laid out on their grid.
        """
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            images = outside_inference_mode(images)
            grid = self._tail(images).grid
            return on_grid(self._input(images), self.module, grid)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`features`, and the model's logits (B, K, *spatial), from one whole pass."""
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            images = outside_inference_mode(images)
            grid = self._tail(images).grid
            run = self._run(images, record_tail=False)
            return on_grid(run.features, self.module, grid), run.logits

    def defines(self, output: str, images: Tensor) -> bool:
        """Whether `pixel_gradients` has this output for images of this size; see `why_undefined`."""
        return self.why_undefined(output, images) is None

    def why_undefined(self, output: str, images: Tensor) -> str | None:
        """Why `pixel_gradients`, with the default loss, refuses an output for images of this size; None: it does not.

        The model runs once for every new image size, on the first image.
        """
        check_outputs((output,))
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            tail = self._tail(outside_inference_mode(images))
        return self._why_no_loss(tail) or self._why_undefined((output,), tail)

    def measure(
        self,
        images: Tensor,
        outputs: Sequence[str],
        *,
        regions: tuple[int, int] | None = None,
        loss: Loss | None = None,
        valid: Tensor | None = None,
        backend: str | None = None,
    ) -> dict[str, Tensor]:
        """By name what `pixel_gradients` gives, with regions what `window_gradients` does, and `outline`; in one pass.

        `outline` is (B, 2), with regions (B, R C, 2): how long the boundaries between predicted classes are inside the
        image or window (`windows.class_changes`), whatever is valid, and its side, (height + width) / 2; both in pixels
        of the logits.

        Args:
            images, loss, valid, backend: as for `pixel_gradients`.
            outputs: its fields, and `outline`.
            regions: as for `window_gradients`.

        Raises:
            ValueError: as these do; an outline in volumes.
        """
        of_op = outputs if isinstance(outputs, str) else [name for name in outputs if name != OUTLINE]
        check_outputs(of_op)
        if regions is not None and (maps := [name for name in of_op if "spatial" in TABLE[name].axes]):
            raise ValueError(
                f"outputs: {maps[0]} has a number per pixel and none per window; ask pixel_gradients for it"
            )
        request = Request(of_op, OUTLINE in outputs, regions, loss, valid, backend)
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            images = outside_inference_mode(images)
            boxes = self._boxes(images, request)
            check_valid(valid, (len(images), *boxes.size))
            with full_precision(images):
                results = boxes.measure()
        return {name: results[name] if regions is not None else results[name][:, 0] for name in outputs}

    def _boxes(self, images: Tensor, request: Request) -> Boxes:
        """The one plan of four by which these images are measured."""
        tail = self._tail_for(images, request.loss)
        if (reason := self._why_undefined(request.outputs, tail)) is not None:
            raise ValueError(reason)
        asked = (*request.outputs, *[OUTLINE] * request.outline)
        if tail.absent and _by_default(request) and self.reads_as_kept(images, asked):
            assert self._hidden is not None
            windows = self.reads_as_kept(images, (OUTLINE,))
            return BehindHidden(self.module, self._hidden, images, request, windows=windows)
        images = self._of_the_models_type(images)
        if not tail.keeps_grid or isinstance(self.module, TRANSPOSED):
            return ThroughTail(self.module, self._run(images, record_tail=tail.resize is None), tail, request)
        # Where the op makes the logits itself, only the boundaries between classes need the whole map.
        own = tail.absent and request.loss is None
        if own and not request.outline:
            return OnOwnGrid(self.module, on_grid(self._input(images), self.module, tail.grid), request, None)
        run = self._run(images, record_tail=False)
        return OnOwnGrid(self.module, on_grid(run.features, self.module, tail.grid), request, run.logits, own=own)

    def _of_the_models_type(self, images: Tensor) -> Tensor:
        """Images in the type of the model's weights. A caller may leave them narrower where `reads_as_kept`; the model
        itself, where it has to run after all, does not take them so."""
        if self._hidden is None or torch.is_autocast_enabled(images.device.type):
            return images
        weight: Any = self._hidden.weight
        return images.to(weight.dtype)

    def _input(self, images: Tensor) -> Tensor:
        return run_up_to(self.model, self.name, self.module, images)

    def _run(self, images: Tensor, *, record_tail: bool) -> Pass:
        return run_through(self.model, self.name, self.module, images, record_tail=record_tail)

    def _why_undefined(self, outputs: Sequence[str], tail: Tail) -> str | None:
        # A pixel's own features: the logits' grid must then be the layer's, or a resize of it.
        refused = [name for name in outputs if TABLE[name].patch not in ("gradient", None)]
        if refused and tail.resize is None:
            return (
                f"outputs: {', '.join(refused)} not defined for this model: between {self.name!r} and the logits it "
                f"runs {tail.description}, which is not a linear resize of the layer's output; `image` is defined"
            )
        if not isinstance(self.module, TRANSPOSED):
            return None
        impossible = ("middle",) if tail.keeps_grid else ("middle", "norm")
        refused = [name for name in outputs if TABLE[name].patch in impossible]
        if not refused:
            return None
        what = "transposed convolution, whose input has a grid of its own"
        if not tail.keeps_grid:
            what += f", and between it and the logits the model runs {tail.description}"
        return (
            f"outputs: {', '.join(refused)} not defined for this model: its last layer {self.name!r} is a {what}; "
            "`image` is defined"
        )

    def _why_no_loss(self, tail: Tail) -> str | None:
        """Why the default loss does not take what the model returns."""
        if not tail.probabilities:
            return None
        return (
            f"the model returns probabilities (between {self.name!r} and its output it runs {tail.description}), and "
            "the default loss takes logits: leave the activation out of the model, or give loss=, a function of "
            "probabilities"
        )

    def _tail_for(self, images: Tensor, loss: Loss | None) -> Tail:
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

    def _tail(self, images: Tensor) -> Tail:
        """What follows the layer at this image size; found out once per size, on the first image of it."""
        key = tuple(images.shape[1:])
        if key not in self._tails:
            with torch.no_grad(), resizes_in_one_operation():
                example = images[:1] if len(images) else images.new_zeros(1, *images.shape[1:])
                example = self._of_the_models_type(example)
                run = self._run(without_nan(example), record_tail=True)
                self._tails[key] = describe_tail(run, self.module)
        return self._tails[key]


def _by_default(request: Request) -> bool:
    """Whether the op may make all of it by itself on the CPU; an outline counts all pixels, so not beside `valid`."""
    chosen = request.loss is None and request.backend in (None, "cpu")
    return chosen and (request.valid is None or not request.outline)
