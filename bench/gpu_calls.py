"""Calls of every CUDA kernel, for a sanitizer, a profiler or a first look.

    python bench/gpu_calls.py small|large|against-float64

small            a few pixels through each kernel, layout and type, and seedings
large            one call of each size that the targets name, for a profiler
against-float64  the small calls, each held to the definition; exits with 1 where one is off
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from alges_fast import kmeans_plusplus, pixel_gradients
from alges_fast.ops import OUTPUTS

Call = tuple[Tensor, Tensor, "Tensor | None"]


def small(device: str) -> Iterator[Call]:
    """(features, weight, valid): channels and classes for which each kernel and instance is chosen."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for channels, n_classes, kernel in ((16, 13, ()), (64, 19, ()), (256, 21, ()), (20, 40, ()), (16, 13, (3, 3))):
            features = torch.randn(2, channels, 16, 24).to(dtype).to(device)
            valid = (torch.rand(2, 16, 24) > 0.3).to(device)
            weight = torch.randn(n_classes, channels, *kernel).to(device) / channels**0.5
            for layout in (features, features.to(memory_format=torch.channels_last)):
                yield layout, weight.to(dtype), valid
                yield layout, weight, None


def large() -> Iterator[Call]:
    for dtype, batch in ((torch.float32, 32), (torch.bfloat16, 64)):
        for channels, n_classes, side, kernel in (
            (16, 13, 224, 1),
            (64, 19, 128, 1),
            (256, 19, 128, 1),
            (16, 13, 224, 3),
        ):
            features = torch.randn(batch, channels, side, side, device="cuda", dtype=dtype)
            yield features, torch.randn(n_classes, channels, kernel, kernel, device="cuda", dtype=dtype), None


def off_by(call: Call, backend: str) -> float:
    """The largest error of any output over its scale, against float64 on the same numbers."""
    features, weight, valid = call
    found = pixel_gradients(features, weight, outputs=OUTPUTS, valid=valid, backend=backend)
    exact = pixel_gradients(features.double(), weight.double(), outputs=OUTPUTS, valid=valid, backend="reference")
    errors = [0.0]
    for ours, theirs in zip(found, exact, strict=True):
        assert ours is not None
        assert theirs is not None
        errors.append(float((ours.double() - theirs).abs().max() / theirs.double().abs().max().clamp(min=1e-6)))
    return max(errors)


def main(what: str, device: str = "cuda", backend: str = "cuda") -> int:
    if what == "against-float64":
        worst = max(off_by(call, backend) for call in small(device))
        print(f"largest relative error {worst:.2e}")
        return int(not worst < 1e-4)
    for features, weight, valid in small(device) if what == "small" else large():
        outputs = OUTPUTS if what == "small" else ("image", "semantic")
        pixel_gradients(features, weight, outputs=outputs, valid=valid, backend=backend)
    rows, picks = (2000, 5) if what == "small" else (4640, 10)
    for trials in (1, 3) if what == "small" else (1,):
        kmeans_plusplus(torch.randn(rows, 64 if what == "small" else 208, device=device), picks, trials=trials)
    if device == "cuda":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
