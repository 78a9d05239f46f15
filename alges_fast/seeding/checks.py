"""What a seeding is given, as tensors, or refused by name."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor or NumPy array as a tensor that shares its memory, without its gradient.

    Raises:
        TypeError: anything else, or what holds no dense numbers; `name` is what the message calls it.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            what = "meta" if value.is_meta else "nested" if value.is_nested else str(value.layout)
            raise TypeError(f"{name} must be a dense tensor that holds numbers, got a {what} one")
        return value.detach().resolve_neg()
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array, whose mask would be lost; give .filled(value), or the rows without "
            "masked entries (numpy.ma.compress_rows)"
        )
    if isinstance(value, np.ndarray):
        with warnings.catch_warnings():  # a read-only array, such as a memory map: nothing here writes to it
            warnings.filterwarnings("ignore", message=".*not writable.*")
            try:
                return torch.from_numpy(value)
            except (TypeError, ValueError) as error:  # its type, byte order or strides
                raise type(error)(f"{name} cannot be taken as a tensor: {error}") from None
    raise TypeError(f"{name} must be a torch.Tensor or a numpy array, got {type(value).__name__}")


def check_points(points: Tensor) -> None:
    """Points are (N, D), of a floating type. Raises ValueError for another shape, TypeError for another type."""
    if points.ndim != 2:
        raise ValueError(f"points must have shape (N, D), got {tuple(points.shape)}")
    if points.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"points must be float32, bfloat16, float16 or float64, got {points.dtype}")


def check_count(name: str, value: Any, least: int) -> None:
    """A count is an integer, at least so many. Raises TypeError for no integer, ValueError for too few."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def existing_centres(existing: Any, points: Tensor) -> Tensor:
    """(M, D) on the points' device, in the dtype distances are computed in."""
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    if existing is None:
        return torch.empty(0, points.shape[1], dtype=dtype, device=points.device)
    centres = as_tensor(existing, "existing")
    if centres.ndim != 2 or centres.shape[1] != points.shape[1]:
        raise ValueError(f"existing must have shape (M, {points.shape[1]}), got {tuple(centres.shape)}")
    if not centres.is_floating_point():
        raise TypeError(f"existing must be floating point, got {centres.dtype}")
    if centres.device != points.device:
        raise ValueError(f"existing must be on the points' device, {points.device}, got {centres.device}")
    centres = centres.to(dtype).contiguous()
    if not bool(centres.isfinite().all()):
        raise ValueError(f"existing must be finite in {dtype}, got NaN or Inf")
    return centres


def digest_of(centres: Tensor) -> str:
    """16 hexadecimal digits that tell (M, D) centres apart by their bytes."""
    return hashlib.blake2b(centres.cpu().numpy().tobytes(), digest_size=8).hexdigest()


def check_index(global_index: Any, points: Tensor) -> Tensor | None:
    """(N,) int64 on the points' device, by which points keep their random numbers in any shard; None stays None.

    Raises:
        TypeError: no tensor or array.
        ValueError: another shape or type, a number outside 0 to 2**53 - 1, or one that is there twice.
    """
    if global_index is None:
        return None
    index = as_tensor(global_index, "global_index")
    if index.shape != points.shape[:1] or index.dtype != torch.int64:
        given = f"{index.dtype} of {tuple(index.shape)}"
        raise ValueError(f"global_index must be int64 of shape ({len(points)},), got {given}")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < 2**53:
        raise ValueError("global_index must be between 0 and 2**53 - 1")
    rises = bool((index[1:] > index[:-1]).all())
    if not rises and len(torch.unique(index)) != len(index):
        raise ValueError("global_index must not hold an index twice")
    return index.to(points.device)
