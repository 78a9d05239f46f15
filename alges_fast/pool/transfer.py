"""Batches to the model's device, and what is made of them back to the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def to_device(
    images: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
    transform: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Images (B, C, *spatial) as a model on `device` takes them: transformed there, of its type and memory format.

    Without a transform uint8 images are divided by 255.

    Raises:
        TypeError: images that are neither uint8 nor floating.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"pool: images must be uint8 or floating, got {images.dtype}")
    if device.type == "cuda" and images.device.type == "cpu":
        images = images.pin_memory().to(device, non_blocking=True)
    else:
        images = images.to(device)
    if transform is not None:
        images = transform(images)
    elif images.dtype == torch.uint8:
        images = images.to(dtype) / 255
    images = images.to(dtype)
    if channels_last and images.ndim == 4:
        return images.to(memory_format=torch.channels_last)
    if channels_last and images.ndim == 5 and device.type == "cuda":
        return images.to(memory_format=torch.channels_last_3d)
    return images


def in_parts(images: Tensor) -> tuple[Tensor, ...]:
    """A batch on the CPU in parts of `_CPU_PIXELS`, one image at least."""
    if images.device.type != "cpu":
        return (images,)
    at_once = max(_CPU_PIXELS // max(math.prod(images.shape[2:]), 1), 1)
    return images.tensor_split(max(math.ceil(len(images) / at_once), 1))


_CPU_PIXELS = 160_000
"""A U-Net holds some 400 bytes for every pixel (measured, ResNet-18 encoder), and `_KEPT_BYTES` are kept of what it
frees. What is not kept the next layer faults in again, page by page: a quarter of the time at 224 x 224."""

_KEPT_BYTES = 2**26


def keep_freed_memory() -> None:
    """Have glibc keep as much freed memory as it ever does: twice the largest block freed before, 64 MiB at the most.

    See M_TRIM_THRESHOLD in mallopt(3). The block is not touched, so it costs nothing; other allocators do not mind.
    """
    torch.empty(_KEPT_BYTES // 2 - 2**16, dtype=torch.uint8)  # of 32 MiB and more glibc takes no notice


def are_finite(images: Tensor) -> Tensor:
    """(B,) bool: no NaN or infinity. On the CPU from sums, in one pass; where one is not finite, and on a GPU, which
    should not wait for the answer, from the extremes, since a sum may overflow: of float16 it soon does."""
    axes = tuple(range(1, images.ndim))
    if images.device.type == "cpu" and bool((sums := images.sum(axes).isfinite()).all()):
        return sums
    return images.amax(axes).isfinite() & images.amin(axes).isfinite()


def to_host(tensors: list[Tensor]) -> tuple[list[Tensor], torch.cuda.Event | None]:
    """Start copies to the host; they are there once the event has passed."""
    device = tensors[0].device
    if device.type != "cuda":
        return [tensor.cpu() for tensor in tensors], None
    copies = [_start_copy(tensor) for tensor in tensors]
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))  # theirs: another device may be the current one
    return copies, event


def _start_copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def autocast_to(device: torch.device, precision: str | None) -> AbstractContextManager[Any]:
    """Autocast on this device for one of PRECISIONS; the caller's own state where None is given."""
    if precision is None:
        return nullcontext()
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, enabled=dtype is not None, dtype=dtype)
