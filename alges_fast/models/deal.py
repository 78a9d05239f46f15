"""The network of DEAL: a segmentation network with a branch that learns where it will be wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID_DIVISOR = 4
"""The attention grid's side is a quarter of the image's: 56 for the 224 of ALGES' experiments."""


class DealModel(nn.Module):
    """A segmentation network and its difficulty branch (Xie et al., DEAL: difficulty-aware active learning, ACCV 2020).

    With P the class probabilities, resized to a grid of N cells, Q = γ P Aᵀ + P with A = softmax(PᵀP), γ learned from
    0; the difficulty of a pixel is sigmoid(upsample(conv1x1(Q))).

    Args:
        segmentation: maps images (B, 3, S, S) to logits (B, n_classes, S, S).
        seed: fixes the branch's random weights.
    """

    def __init__(self, segmentation: nn.Module, n_classes: int, seed: int) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.gamma = nn.Parameter(torch.zeros(()))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.head = nn.Conv2d(n_classes, 1, 1)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, K, S, S) in eval mode; while training also the logits of the difficulty, (B, S, S)."""
        logits: Tensor = self.segmentation(images)
        return (logits, self.difficulty_logits(logits)) if self.training else logits

    def difficulty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, S, S) and difficulty (B, S, S), between 0 and 1."""
        logits = self.segmentation(images)
        return logits, self.difficulty_logits(logits).sigmoid()

    def difficulty_logits(self, logits: Tensor) -> Tensor:
        """(B, S, S) from logits (B, K, S, S): what the branch adds."""
        size = (logits.shape[2], logits.shape[3])
        grid = [max(side // GRID_DIVISOR, 1) for side in size]
        probability = F.interpolate(logits.float().softmax(1), grid, mode="bilinear", align_corners=False)
        attended = self.gamma * attention(probability) + probability
        # Under autocast too: a histogram between a frame's extremes is one of rounding errors in bfloat16.
        with torch.autocast(attended.device.type, enabled=False):
            difficulty = self.head(attended)
        return F.interpolate(difficulty, size, mode="bilinear", align_corners=False).squeeze(1)


def attention(probability: Tensor) -> Tensor:
    """P Aᵀ with A = softmax over j of PᵀP, P of shape (B, K, *grid).

    Scaled-dot-product attention with q = k = v = Pᵀ and scale 1, whose fused kernels store no N x N tensor; on CUDA
    they want a multiple of 8 channels, and zero ones change nothing.
    """
    n_classes = probability.shape[1]
    tokens = F.pad(probability.flatten(2).transpose(1, 2), (0, -n_classes % 8)).unsqueeze(1)
    mixed = F.scaled_dot_product_attention(tokens, tokens, tokens, scale=1.0)
    return mixed[:, 0, :, :n_classes].transpose(1, 2).reshape(probability.shape)
