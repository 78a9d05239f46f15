"""Calls of the ops that go on after a hidden layer, and what they must return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from oracle import OUTPUTS, Inputs, channels_last, definition, draw, pixels
from torch import Tensor

from alges_fast import PixelGradients
from alges_fast._native import cpu_kernels
from alges_fast.ops import WindowSums, hidden_pixel_gradients, hidden_windows
from alges_fast.windows import windows_of

BACKENDS = ["reference", *(["cpu"] if cpu_kernels() is not None else [])]


@dataclass(frozen=True)
class AfterHidden(Inputs):
    """The operands of a call: `features` are the hidden layer's inputs."""

    hidden_weight: Tensor | None = None
    hidden_bias: Tensor | None = None

    def to(self, target: torch.dtype | str) -> Inputs:
        """What the definition is of, made in this type by PyTorch."""
        assert isinstance(target, torch.dtype)
        made = torch.einsum("dc,bc...->bd...", self.hidden_weight.to(target), self.features.to(target))
        if self.hidden_bias is not None:
            made = made + self.hidden_bias.to(target).view(-1, *[1] * (made.ndim - 2))
        bias = None if self.bias is None else self.bias.to(target)
        return Inputs(made.relu(), self.weight.to(target), bias, valid=self.valid)

    @property
    def layers(self) -> tuple[Tensor | None, ...]:
        return self.hidden_weight, self.hidden_bias, self.weight, self.bias

    def run(self, backend: str | None, outputs: Sequence[str] = OUTPUTS) -> PixelGradients:
        return hidden_pixel_gradients(self.features, *self.layers, outputs=outputs, valid=self.valid, backend=backend)

    def windows(self, regions: tuple[int, int], backend: str | None) -> WindowSums:
        return hidden_windows(channels_last(self.features), *self.layers, regions=regions, backend=backend)

    def defined_windows(self, regions: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Window by window, the outline pair by pair, of features that PyTorch makes in this type."""
        made = self.to(dtype)
        images, outlines = [], []
        for _, x, y, width, height in windows_of("", tuple(made.features.shape[2:]), regions):
            cut = replace(made, features=made.features[:, :, y : y + height, x : x + width])
            images.append(definition(cut, dtype).image)
            inside = pixels(cut).prediction.view(-1, height, width)
            beside = (inside[:, :, 1:] != inside[:, :, :-1]).sum((1, 2))
            outlines.append(beside + (inside[:, 1:] != inside[:, :-1]).sum((1, 2)))
        return torch.stack(images, 1), torch.stack(outlines, 1)


def drawn(
    batch: int = 2,
    classes: int = 13,
    channels: int = 32,
    inputs: int = 64,
    spatial: Sequence[int] = (11, 13),
    *,
    valid: bool = False,
    seed: int = 0,
) -> AfterHidden:
    last = draw(batch, classes, channels, spatial, given=("valid",) if valid else (), seed=seed)
    hidden = draw(batch, channels, inputs, spatial, seed=seed + 1)
    return AfterHidden(hidden.features, last.weight, last.bias, None, None, last.valid, hidden.weight, hidden.bias)
