"""What a frozen encoder makes of frames, made once and kept: float16, memory-mapped, under the cache folder.

    projection-<key>.safetensors  fitted on the pool; <key> from the trunk's weights, the size, the pixels
    features-<size>-<key>/        rows (h, w, channels), so that a pixel's channels lie together (cached_rows.py);
                                  <key> also from the projection

A draft is gone on with where a killed process left it, in the same batches, so the file is the same as one made in one
go.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from alges_fast import atomic
from alges_fast.cache_folder import default_cache_dir
from alges_fast.cached_rows import RowWriter, content_digest, load_or_make, writable
from alges_fast.errors import UserError
from alges_fast.models.frozen import Projection, Trunk, features, fit_projection, grid_of, join
from alges_fast.random_streams import stream_seed

__all__ = ["FrozenEncoder", "load_or_fit"]

logger = logging.getLogger(__name__)

FORMAT = 1
FITTED_POSITIONS, FITTED_VALUES = 200_000, 200_000 * 192
"""Positions of maps, and numbers in them, that the projection is fitted on: of encoders with more channels than the
packaged one's 192 fewer positions, so that memory does not grow."""
FITTED_FRAMES = 128
"""Frames, evenly spaced over the pool, that the projection is fitted on: the trunk runs over them twice."""

Progress = Callable[[str, int, int], None]
"""Called with (what is made, frames done, frames in all)."""


def _silent(what: str, done: int, total: int) -> None:
    pass


class FrozenEncoder:
    """A trunk and the projection fitted on a pool: frames to features, through the cache.

    Attributes:
        trunk, projection: as in `frozen.FrozenModel`.
    """

    def __init__(self, trunk: Trunk, projection: Projection, cache_dir: Path | None = None) -> None:
        self.trunk = trunk
        self.projection = projection
        self._cache_dir = cache_dir

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, channels, h, w) float16, channels last in memory, of images (B, 3, S, S) uint8."""
        made = features(self.trunk, self.projection, _prepared(self.trunk, images))
        return made.to(torch.float16).contiguous(memory_format=torch.channels_last)

    def cached(self, images: NDArray[np.uint8], progress: Progress = _silent) -> NDArray[np.float16]:
        """Features (N, channels, h, w) of images (N, 3, S, S), a memory map, its channels last in memory.

        Copied on write, so that tensors share it and the file never changes.

        Raises:
            UserError: the cache folder cannot be written, or has no room.
        """
        grid, folder = grid_of(images.shape[2:]), _folder(self._cache_dir)
        key = _key(self.trunk, images.shape[2:], self.projection.weight, self.projection.bias, content_digest(images))
        shape = *grid, len(self.projection.weight)
        step, frame_bytes = _batch(self.trunk, images), 2 * int(np.prod(shape))

        def make(writer: RowWriter) -> dict[str, Any]:
            done = writer.go_on("features", "<f2", shape, step)
            _check_room(folder, frame_bytes * (len(images) - done))
            for start in range(done, len(images), step):
                progress("encoding frames", start, len(images))
                made = self(torch.from_numpy(np.array(images[start : start + step])))
                writer.append("features", made.permute(0, 2, 3, 1).cpu().numpy())
            progress("encoding frames", len(images), len(images))
            return {"encoder": self.trunk.name, "weights": self.trunk.weights}

        kept = load_or_make(
            folder / f"features-{'x'.join(map(str, sorted(set(images.shape[2:]))))}-{key}",
            make,
            what="features",
            resume=True,
            mode="c",
            waiting=lambda: progress("waiting for another process that makes these features", 0, len(images)),
        )
        return kept.arrays["features"].transpose(0, 3, 1, 2)


def load_or_fit(
    trunk: Trunk, pool: NDArray[np.uint8], *, cache_dir: Path | None = None, progress: Progress = _silent
) -> FrozenEncoder:
    """The trunk with a projection fitted on a pool's images (N, 3, S, S), from the cache or fitted now.

    Raises:
        UserError: the cache folder cannot be written.
    """
    folder = _folder(cache_dir)
    path = folder / f"projection-{_key(trunk, pool.shape[2:], content_digest(pool))}.safetensors"
    with writable(folder, "features"), atomic.locked(folder / f"{path.name}.lock"):
        projection = _read_projection(path, trunk)
        if projection is None:
            projection = fit_projection(_some_positions(trunk, pool, progress), trunk.channels)
            state = dict(projection.state_dict())
            atomic.write_bytes(path, safetensors.torch.save(state, {"crc": str(_crc(state))}))
    parameter = next(trunk.parameters())
    return FrozenEncoder(trunk, projection.to(parameter.device), cache_dir)


def _read_projection(path: Path, trunk: Trunk) -> Projection | None:
    if not path.exists():
        return None
    try:
        state = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            if str(_crc(state)) != file.metadata()["crc"]:
                raise ValueError("it does not match its checksum")
        return Projection(state["weight"], state["bias"], trunk.channels)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        logger.warning("%s is damaged (%s) and is made again", path, error)
        return None


@torch.no_grad()
def _some_positions(trunk: Trunk, pool: NDArray[np.uint8], progress: Progress) -> Tensor:
    """(positions, channels of all maps) of frames evenly spaced over the pool."""
    frames = np.unique(np.linspace(0, len(pool) - 1, min(FITTED_FRAMES, len(pool))).round().astype(int))
    grid = grid_of(pool.shape[2:])
    positions_in_all = min(FITTED_POSITIONS, FITTED_VALUES // sum(trunk.channels))
    each = min(positions_in_all // len(frames), grid[0] * grid[1])
    generator = np.random.default_rng(stream_seed("positions of the projection"))
    found, step = [], _batch(trunk, pool)
    for start in range(0, len(frames), step):
        progress("fitting the projection", start, len(frames))
        levels = trunk(_prepared(trunk, torch.from_numpy(np.array(pool[frames[start : start + step]]))))
        for positions in join(levels, grid).flatten(2).cpu():
            chosen = np.sort(generator.choice(grid[0] * grid[1], each, replace=False))
            found.append(positions[:, torch.from_numpy(chosen)].T)
    return torch.cat(found)


def _prepared(trunk: Trunk, images: Tensor) -> Tensor:
    device = next(trunk.parameters()).device
    return trunk.normalisation(images.to(device)).contiguous(memory_format=torch.channels_last)


def _batch(trunk: Trunk, images: NDArray[np.uint8]) -> int:
    """Images at a time: on the CPU few, whose maps stay in its cache."""
    if next(trunk.parameters()).device.type != "cpu":
        return 64
    return max(CPU_PIXELS // (images.shape[2] * images.shape[3]), 1)


CPU_PIXELS = 160_000


def _folder(cache_dir: Path | None) -> Path:
    return default_cache_dir() if cache_dir is None else cache_dir


def _key(trunk: Trunk, size: tuple[int, ...], *parts: Tensor | str) -> str:
    found = hashlib.blake2b(
        f"{FORMAT} {trunk.name} {trunk.digest} {trunk.normalisation} {size}".encode(), digest_size=12
    )
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _crc(state: dict[str, Tensor]) -> int:
    return zlib.crc32(b"".join(state[name].contiguous().numpy().tobytes() for name in sorted(state)))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    logger.info("features need %.1f GB in %s, where %.1f GB are free", needed / 1e9, folder, free / 1e9)
    if needed > free:
        raise UserError(
            f"{folder}: features need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: make room or set "
            "ALGES_FAST_CACHE to another folder"
        )
