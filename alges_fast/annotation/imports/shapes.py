"""Shapes to pixels: a pixel belongs to a shape if its centre does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def polygon(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of (height, width) inside a polygon of (x, y), by the even-odd rule.

    Raises:
        ValueError: fewer than three points, or one that is no number.
    """
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError("a polygon needs three points or more")
    height, width = size
    # A pixel is inside if the outline is crossed an odd number of times on the way to its centre from the left.
    crossings = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        low, high = sorted((y0, y1))
        rows = np.arange(max(0, math.ceil(low - 0.5)), min(height, math.ceil(high - 0.5)))
        if rows.size:
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)), 1)
    return np.asarray(crossings[:, :width].cumsum(1) % 2 == 1)


def rectangle(
    x: float, y: float, width: float, height: float, size: tuple[int, int], *, degrees: float = 0, about: str = "centre"
) -> NDArray[np.bool_]:
    """Pixels inside a rectangle, turned clockwise about its centre or its (upper left) "corner"."""
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    pivot = (x + width / 2, y + height / 2) if about == "centre" else (x, y)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = [
        (
            pivot[0] + (a - pivot[0]) * cosine - (b - pivot[1]) * sine,
            pivot[1] + (a - pivot[0]) * sine + (b - pivot[1]) * cosine,
        )
        for a, b in corners
    ]
    return polygon(corners if degrees == 0 else turned, size)


def ellipse(
    x: float, y: float, radius_x: float, radius_y: float, size: tuple[int, int], *, degrees: float = 0
) -> NDArray[np.bool_]:
    """Pixels inside an ellipse about (x, y), turned clockwise.

    Raises:
        ValueError: a radius that is no positive number.
    """
    if not (0 < radius_x < math.inf and 0 < radius_y < math.inf):
        raise ValueError("an ellipse needs two radii above 0")
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across = (columns - x) * cosine + (rows - y) * sine
    along = (rows - y) * cosine - (columns - x) * sine
    return np.asarray((across / radius_x) ** 2 + (along / radius_y) ** 2 <= 1)


def run_lengths(lengths: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Pixels of a box from lengths of runs, row after row, the first outside.

    Raises:
        ValueError: a negative length, or lengths that do not add up to the box.
    """
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"runs of {sum(lengths)} pixels for a box of {width} x {height}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)


def brush(code: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of (height, width) from Label Studio's code of an RGBA picture, where alpha is half or more.

    For the code see `exports.label_studio_tasks`; unlike that one, the tool's own mixes runs with stretches of words.

    Raises:
        ValueError: a damaged code, or one of another size.
    """
    packed = bytes(code)
    if len(packed) < 7:
        raise ValueError("a code without its head")
    bits = f"{int.from_bytes(packed, 'big'):0{8 * len(packed)}b}"
    n_words, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
    widths = [int(bits[37 + 4 * i : 41 + 4 * i], 2) + 1 for i in range(4)]
    at, done = 53, 0
    if n_words != size[0] * size[1] * 4 or word != 8:
        raise ValueError(f"a code of {n_words} words of {word} bits for {size[1]} x {size[0]} pixels")
    words = np.empty(n_words, np.uint8)
    while done < n_words:
        is_run, width = bits[at : at + 1] == "1", widths[int(bits[at + 1 : at + 3] or "0", 2)]
        length = int(bits[at + 3 : at + 3 + width] or "0", 2) + 1
        at += 3 + width
        step = word if is_run else word * length
        if at + step > len(bits) or done + length > n_words:
            raise ValueError("a code that is cut short")
        values = bits[at : at + step]
        words[done : done + length] = (
            int(values, 2) if is_run else [int(values[i : i + word], 2) for i in range(0, step, word)]
        )
        at += step
        done += length
    return words.reshape(*size, 4)[..., 3] >= 128
