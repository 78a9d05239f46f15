"""A small network for tests that need no more."""

from __future__ import annotations

from torch import Tensor, nn


class Net(nn.Module):
    """Convolution, batch normalisation where it is asked for, last convolution; logits of the image's side over
    `stride`."""

    def __init__(self, n_classes: int, width: int = 6, *, kernel: int = 1, stride: int = 1, norm: bool = False) -> None:
        super().__init__()
        norms = [nn.BatchNorm2d(width)] if norm else []
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride, 1), *norms, nn.ReLU())
        self.last = nn.Conv2d(width, n_classes, kernel, padding=kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.body(images))
        return logits
