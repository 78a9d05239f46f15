"""An encoder that is made in no time, for tests of what is built on one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.models.frozen import Trunk
from alges_fast.normalisation import HALF


class Encoder(nn.Module):
    """Maps at 1/2 to 1/16 of the side, as those of segmentation-models-pytorch."""

    out_channels = (3, 20, 24, 28, 32)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stages = nn.ModuleList(
                nn.Conv2d(a, b, 3, padding=1)
                for a, b in zip(self.out_channels[:-1], self.out_channels[1:], strict=True)
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [images]
        for stage in self.stages:
            found.append(stage(F.avg_pool2d(found[-1], 2)).relu())
        return found


def small_trunk(seed: int = 0) -> Trunk:
    return Trunk(Encoder(seed), "small", "none", HALF)
