"""The backends of `pixel_gradients` that can run on this machine.

Without a GPU, Triton runs under its interpreter, slowly: maps of more than `most_pixels` are cut down (`Backend.fit`),
and layers of more than `most_weights` run with --slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from _pytest.mark import ParameterSet
from oracle import OUTPUTS, Inputs

from alges_fast import PixelGradients, pixel_gradients
from alges_fast.ops.dispatch import unavailable

HAS_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Backend:
    name: str
    device: str
    most_pixels: int | None = None
    """Of an image."""
    most_weights: int | None = None

    def __call__(self, inputs: Inputs, outputs: Sequence[str] = OUTPUTS) -> PixelGradients:
        on_device = inputs if self.device == "cpu" else inputs.to(self.device)  # strides and all
        return pixel_gradients(**on_device.keywords(), outputs=outputs, backend=self.name)

    def __str__(self) -> str:
        return f"{self.name}-{self.device}"

    def fit(self, spatial: Sequence[int], kernel: Sequence[int] = ()) -> tuple[int, ...]:
        """The map, or one of as many axes with its larger axes halved until it is small enough, for its kernel too."""
        spatial, taps = list(spatial), max(9, math.prod(kernel))
        while self.most_pixels is not None and math.prod(spatial) * taps > 9 * self.most_pixels:
            largest = spatial.index(max(spatial))
            spatial[largest] = spatial[largest] // 2 | 1
        return tuple(spatial)


ALL_BACKENDS = (
    Backend("reference", "cpu"),
    Backend("reference", "cuda"),
    Backend("cpu", "cpu"),
    Backend("triton", "cuda") if HAS_GPU else Backend("triton", "cpu", most_pixels=500, most_weights=2**13),
    Backend("cuda", "cuda"),
)


def cannot_run(backend: Backend) -> str | None:
    if backend.device == "cuda" and not HAS_GPU:
        return "no CUDA device"
    return unavailable(backend.name)


def running(device: str | None = None) -> list[ParameterSet]:
    """The backends that can run here, marked `gpu` where that is on one."""
    able = [each for each in ALL_BACKENDS if cannot_run(each) is None and device in (None, each.device)]
    return [pytest.param(each, id=str(each), marks=[pytest.mark.gpu] * (each.device == "cuda")) for each in able]


def same(found: PixelGradients, expected: PixelGradients) -> None:
    """Bitwise equal, NaN included."""
    for name in OUTPUTS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(
                one, other, rtol=0, atol=0, equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
            )


def image_of(found: PixelGradients, index: int | Sequence[int]) -> PixelGradients:
    return PixelGradients(*[None if value is None else value[index] for value in found])
