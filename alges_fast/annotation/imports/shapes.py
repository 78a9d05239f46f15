"""Shapes to pixels: a pixel belongs to a shape if its centre does.

A shape is a `Patch`, the part of the frame that holds it and the pixels in it: one of the size of the frame for each
shape would be 21 GB for ten thousand polygons in full HD.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Patch = tuple[tuple[slice, slice], NDArray[np.bool_]]
"""Rows and columns of a frame, and which pixels of these."""
FAR = 1e9
"""Pixels beyond which no annotation tool draws; larger numbers would overflow."""
MAX_POINTS = 100_000
_BAND = 1 << 20
"""Pixels of an ellipse that are tested at a time."""


def paint(mask: NDArray[np.uint8], patch: Patch, class_id: int) -> None:
    """Give the pixels of a shape their class, in place."""
    part, pixels = patch
    mask[part][pixels] = class_id


def polygon(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Patch:
    """Pixels of (height, width) inside a polygon of (x, y), by the even-odd rule.

    Raises:
        ValueError: fewer than three points, or far too many, or one that is no number of a frame.
    """
    if not 3 <= len(points) <= MAX_POINTS:
        raise ValueError(f"a polygon needs three points or more, and no more than {MAX_POINTS}")
    corners = np.array(points, np.float64)
    if not (np.abs(corners) <= FAR).all():
        raise ValueError("a point of a polygon is no number, or far outside")
    height, width = size
    left, right = (int(np.clip(math.ceil(x - 0.5), 0, width)) for x in (corners[:, 0].min(), corners[:, 0].max()))
    top, bottom = (int(np.clip(math.ceil(y - 0.5), 0, height)) for y in (corners[:, 1].min(), corners[:, 1].max()))
    # A pixel is inside if the outline is crossed an odd number of times on the way to its centre from the left.
    crossings = np.zeros((bottom - top, right - left + 1), np.uint8)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        low, high = sorted((y0, y1))
        rows = np.arange(max(top, math.ceil(low - 0.5)), min(bottom, math.ceil(high - 0.5)))
        if rows.size:
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            crossings[rows - top, np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left] ^= 1
    inside = np.bitwise_xor.accumulate(crossings[:, :-1], 1).astype(bool) if right > left else crossings[:, :0] > 0
    return np.s_[top:bottom, left:right], inside


def rectangle(
    x: float, y: float, width: float, height: float, size: tuple[int, int], *, degrees: float = 0, about: str = "centre"
) -> Patch:
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
) -> Patch:
    """Pixels inside an ellipse about (x, y), turned clockwise.

    Raises:
        ValueError: a radius that is no positive number, or a number that is none of a frame.
    """
    if not (0 < radius_x <= FAR and 0 < radius_y <= FAR and abs(x) <= FAR and abs(y) <= FAR):
        raise ValueError("an ellipse needs two radii above 0, and a centre")
    reach = max(radius_x, radius_y)
    (top, bottom), (left, right) = (
        (min(max(0, math.floor(at - reach)), side), max(0, min(side, math.ceil(at + reach) + 1)))
        for at, side in zip((y, x), size, strict=True)
    )
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    inside = np.zeros((max(0, bottom - top), max(0, right - left)), bool)
    columns = np.arange(left, right) + 0.5 - x
    band = max(1, _BAND // max(1, inside.shape[1]))
    for first in range(0, inside.shape[0], band):
        rows = np.arange(top + first, min(bottom, top + first + band))[:, None] + 0.5 - y
        across, along = columns * cosine + rows * sine, rows * cosine - columns * sine
        inside[first : first + band] = (across / radius_x) ** 2 + (along / radius_y) ** 2 <= 1
    return np.s_[top:bottom, left:right], inside


def run_lengths(lengths: Iterable[int], left: int, top: int, width: int, height: int) -> Patch:
    """Pixels of a box from lengths of runs, row after row, the first outside.

    Raises:
        ValueError: a length that is none, or lengths that do not add up to the box.
    """
    area = width * height
    runs = np.fromiter(lengths, np.int64)
    if len(runs) and (runs.min() < 0 or runs.max() > area):
        raise ValueError(f"a run of {runs.max()} pixels, or backwards, in a box of {width} x {height}")
    if runs.sum() != area:
        raise ValueError(f"runs of {runs.sum()} pixels for a box of {width} x {height}")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return np.s_[top : top + height, left : left + width], pixels


def brush(code: Sequence[int], size: tuple[int, int]) -> Patch:
    """Pixels of (height, width) from Label Studio's code of an RGBA picture, where alpha is half or more.

    For the code see `exports.label_studio_tasks`; unlike that one, the tool's own mixes runs with stretches of words.

    Raises:
        ValueError: a damaged code, or one of another size.
    """
    if not isinstance(code, (list, bytes)) or len(code) < 7:
        raise ValueError("a code without its head")
    n_words = int.from_bytes(bytes(code[:4]), "big")
    if n_words != size[0] * size[1] * 4 or code[4] >> 3 != 7:
        raise ValueError(f"a code of {n_words} words of {(code[4] >> 3) + 1} bits for {size[1]} x {size[0]} pixels")
    if len(code) > 16 + 4 * n_words:
        raise ValueError("a code of more than its words take")
    bits = f"{int.from_bytes(bytes(code), 'big'):0{8 * len(code)}b}"
    widths = [int(bits[37 + 4 * i : 41 + 4 * i], 2) + 1 for i in range(4)]
    at, done = 53, 0
    alpha = np.empty(n_words // 4, bool)  # of every four words the last
    while done < n_words:
        is_run, width = bits[at : at + 1] == "1", widths[int(bits[at + 1 : at + 3] or "0", 2)]
        length = int(bits[at + 3 : at + 3 + width] or "0", 2) + 1
        at += 3 + width
        step = 8 if is_run else 8 * length
        if at + step > len(bits) or done + length > n_words:
            raise ValueError("a code that is cut short")
        pixels = slice(done // 4, (done + length) // 4)
        first = at + 8 * (3 - done % 4)
        # Half or more: the first of a word's eight bits is set.
        alpha[pixels] = bits[at] == "1" if is_run else [bit == "1" for bit in bits[first : at + step : 32]]
        at += step
        done += length
    return np.s_[: size[0], : size[1]], alpha.reshape(size)
