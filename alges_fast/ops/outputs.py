"""What `pixel_gradients` can be asked for: every output stated once, as a field of its result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_type_hints

import torch
from torch import Tensor


@dataclass(frozen=True)
class Output:
    """What everyone but the kernels needs to know of an output.

    Attributes:
        axes: those of one image, out of K (classes), d (channels), kernel and spatial.
        patch: what it takes of a pixel's patch z̃: r ⊗ z̃ itself, the gradient, which any tail can be gone back
            through; r_k z̃ of the predicted class; its norm; its middle, the pixel's own features; or nothing. All but
            the gradient and nothing need the patch of every pixel of the logits.
        predicts: whether it depends on softmax or argmax; or only for want of a given residual.
        counts: whether it is of whole numbers, in which a NaN does not show.
    """

    axes: tuple[Literal["K", "d", "kernel", "spatial"], ...]
    patch: Literal["gradient", "own row", "norm", "middle"] | None = None
    predicts: Literal["always", "without residual", "never"] = "always"
    counts: bool = False

    def shape(self, batch: int, weight: Sequence[int], spatial: Sequence[int]) -> tuple[int, ...]:
        """Its shape for a weight (K, d, *kernel) and a map."""
        sizes = {"K": weight[:1], "d": weight[1:2], "kernel": weight[2:], "spatial": spatial}
        return (batch, *(size for axis in self.axes for size in sizes[axis]))

    def dtype(self, accumulator: torch.dtype) -> torch.dtype:
        return torch.int64 if self.counts else accumulator


class PixelGradients(NamedTuple):
    """Outputs of `pixel_gradients`; those not asked for are None. B images, K classes, d channels.

    Sums and means run over valid pixels; r is the residual, z̃ the kernel-sized patch of features, ŷ the prediction.
    """

    image: Annotated[Tensor | None, Output(("K", "d", "kernel"), "gradient", "without residual")] = None
    """(B, K, d[, *kernel]): mean of r ⊗ z̃ (ALGES Eq. 4)."""
    semantic: Annotated[Tensor | None, Output(("K",), "norm")] = None
    """(B, K): sum over pixels with ŷ = k of ‖r ⊗ z̃‖_F (Eq. 6 and its text)."""
    semantic_vector: Annotated[Tensor | None, Output(("K", "d", "kernel"), "own row")] = None
    """(B, K, d[, *kernel]): sum over pixels with ŷ = k of r_k z̃ (Eq. 6 as printed)."""
    norm_map: Annotated[Tensor | None, Output(("spatial",), "norm", "without residual")] = None
    """(B, *spatial): ‖r ⊗ z̃‖_F of each pixel, 0 where not valid (Fig. 2d)."""
    class_pixels: Annotated[Tensor | None, Output(("K",), counts=True)] = None
    """(B, K) int64: number of pixels with ŷ = k."""
    entropy: Annotated[Tensor | None, Output(())] = None
    """(B,): sum of -Σ p ln p, in nats."""
    margin: Annotated[Tensor | None, Output(())] = None
    """(B,): sum of the largest p less the second largest."""
    confidence: Annotated[Tensor | None, Output(())] = None
    """(B,): sum of the largest p."""
    class_mass: Annotated[Tensor | None, Output(("K",))] = None
    """(B, K): sum of p_k."""
    class_entropy: Annotated[Tensor | None, Output(("K",))] = None
    """(B, K): sum of p_k H, H = -Σ p ln p in nats; over k it adds up to `entropy`."""
    feature_sum: Annotated[Tensor | None, Output(("d",), "middle", "never")] = None
    """(B, d): sum of the features themselves."""


TABLE: Mapping[str, Output] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(PixelGradients, include_extras=True).items()
}
"""Every output by name, in the order in which kernels and `csrc/call.h` have them."""
OUTPUTS: tuple[str, ...] = tuple(TABLE)


def check_outputs(outputs: object, argument: str = "outputs") -> None:
    """That an argument of this name is a collection of names out of `OUTPUTS`.

    Raises:
        TypeError: it is a string, or no collection.
        ValueError: a name is unknown.
    """
    if isinstance(outputs, str) or not isinstance(outputs, Collection):  # an iterator could be read only once
        raise TypeError(f"{argument} must be a sequence of names, such as ('image',), got {outputs!r}")
    for output in outputs:
        if output not in OUTPUTS:
            raise ValueError(f"{argument}: unknown name {output!r}; choose from {', '.join(OUTPUTS)}")
