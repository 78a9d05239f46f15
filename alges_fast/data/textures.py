"""Textures of drawn tissue: periodic planes, made once, and read at any place; and the numbers they are made of."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.float32]

TEXTURE = 1 << 34
"""Purpose of their random numbers."""
TEXTURE_PERIOD = 4.0
SHAPING = 3
"""The first texture planes shape outlines and relief, where the steps of nearest texels would show."""


def sample(u: Plane, v: Plane, pixel: float) -> Plane:
    """The six texture planes (6, H, W) at these coordinates, from the level whose texels are about a pixel."""
    n = 1024
    while n > 64 and TEXTURE_PERIOD / n < 0.6 * pixel:
        n //= 2
    column, row = u * num(n / TEXTURE_PERIOD), v * num(n / TEXTURE_PERIOD)
    left, top = np.floor(column), np.floor(row)
    right_share, lower_share = column - left, row - top
    left, top = left.astype(np.int32), top.astype(np.int32)
    right, left = (left + 1) & (n - 1), left & (n - 1)
    lower, top = ((top + 1) & (n - 1)) * n, (top & (n - 1)) * n
    planes = _textures()[n].reshape(6, n * n)
    sampled: Plane = planes.take(top + left, axis=1)
    waves = planes[:SHAPING]
    upper = sampled[:SHAPING] + right_share * (waves.take(top + right, axis=1) - sampled[:SHAPING])
    under = waves.take(lower + left, axis=1)
    under += right_share * (waves.take(lower + right, axis=1) - under)
    sampled[:SHAPING] = upper + lower_share * (under - upper)
    return sampled


@lru_cache(maxsize=1)
def _textures() -> dict[int, Plane]:
    """Periodic texture planes (6, n, n) by n, finest first drawn, coarser ones as their means.

    Planes 0, 1: slow waves; 2: lobules, 0 at their seams and 1 at their middles; 3: mottling; 4: grain; 5: vessels.
    """
    n = 1024
    warp, sway = _fractal(n, 1, 2.3, 3, 30), _fractal(n, 2, 2.0, 5, 60)
    mottle, grain = _fractal(n, 3, 1.4, 4, 160), _fractal(n, 4, 0.6, 60, 300)
    branches = _fractal(n, 5, 2.0, 6, 60)
    vessels = np.exp(-((branches / 0.11) ** 2)) * np.clip(0.3 + 0.9 * _fractal(n, 6, 1.5, 3, 16), 0, 1)
    planes = np.stack([warp, sway, _lobules(n, 36, 7), mottle, grain, vessels]).astype(np.float32)
    levels = {n: planes}
    while n > 64:
        n //= 2
        levels[n] = levels[2 * n].reshape(6, n, 2, n, 2).mean((2, 4), dtype=np.float32)
    return levels


def _fractal(n: int, key: int, slope: float, low: float, high: float) -> Plane:
    """Periodic noise (n, n) of unit variance whose amplitude falls as frequency**-slope between low and high."""
    from scipy import fft

    rows, columns = fft.fftfreq(n, 1 / n)[:, None], fft.rfftfreq(n, 1 / n)[None]
    frequency = np.hypot(rows, columns)
    band = np.where((frequency >= low) & (frequency <= high), np.maximum(frequency, 1) ** -slope, 0)
    spectrum = fft.rfft2(philox(key, 0, 0, TEXTURE).standard_normal((n, n), np.float32)) * band.astype(np.float32)
    plane = fft.irfft2(spectrum, s=(n, n))
    return f32(plane / plane.std())


def _lobules(n: int, cells: int, key: int) -> Plane:
    """Periodic rounded cells (n, n): 1 at a cell's middle, falling to 0 at the seams, of uneven size and shape."""
    rng = philox(key, 0, 0, TEXTURE)
    centres = rng.uniform(0.1, 0.9, (cells, cells, 2)).astype(np.float32)
    straight = (np.arange(n, dtype=np.float32) + 0.5) * (cells / n)
    row = straight[:, None] + 0.25 * _fractal(n, key + 1, 1.5, 4, 40)
    column = straight[None] + 0.25 * _fractal(n, key + 2, 1.5, 4, 40)
    cell_row, cell_column = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    nearest = np.full((n, n), 9, np.float32)
    second = nearest.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            centre = centres[(cell_row + dy) % cells, (cell_column + dx) % cells]
            distance = np.hypot(cell_row + dy + centre[..., 0] - row, cell_column + dx + centre[..., 1] - column)
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    seam = np.clip(1.15 * (second - nearest), 0, 1)
    return f32(seam * (2 - seam))


def num(value: float) -> np.float32:
    """A scalar that leaves float32 planes float32, whichever NumPy it meets."""
    scalar: np.float32 = np.float32(value)
    return scalar


def f32(plane: NDArray[np.floating]) -> Plane:
    """The plane in float32, itself where it is that already."""
    return plane.astype(np.float32, copy=False)


def philox(*key: int) -> np.random.Generator:
    """Generator for one thing of one video and clip, named by (seed, video, clip, purpose); no two overlap."""
    seed, video, clip, purpose = key
    return np.random.Generator(np.random.Philox(key=seed & (2**64 - 1), counter=[0, video, clip, purpose]))
