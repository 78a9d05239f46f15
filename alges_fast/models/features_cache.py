"""What a frozen encoder makes of frames, made once and kept, memory-mapped, under the cache folder.

    projection-<key>.safetensors  fitted on the pool; <key> from the trunk's weights, the view, the size, the pixels
    features-<size>-<key>/        float16 rows (h, w, channels), so that a pixel's channels lie together
                                  (cached_rows.py), or rows in 8 bits (coded_maps.py); <key> also from the projection
    means-<key>/                  means of features over positions, a row a frame

A draft is gone on with where a killed process left it, in the same batches, so the file is the same as one made in one
go.
"""

from __future__ import annotations

import hashlib
import logging
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alges_fast import atomic
from alges_fast.cache_folder import default_cache_dir
from alges_fast.cached_rows import RowWriter, check_room, content_digest, let_go, load_or_make, writable
from alges_fast.models.coded_maps import CodedMaps, KeptMaps, code_maps, coded_bytes
from alges_fast.models.frozen import PLAIN, RAISED, Projection, Trunk, View, features, fit_projection, grid_size, join
from alges_fast.progress import Progress, silent
from alges_fast.random_streams import stream_seed

logger = logging.getLogger(__name__)

FORMAT = 1
FITTED_POSITIONS, FITTED_VALUES = 200_000, 200_000 * 192
"""Positions of maps, and numbers in them, that the projection is fitted on: of encoders with more channels than the
packaged one's 192 fewer positions, so that memory does not grow."""
FITTED_FRAMES = 128
"""Frames, evenly spaced over the pool, that the projection is fitted on: the trunk runs over them twice."""

Pictures = Callable[[Sequence[int], int], NDArray[np.uint8]]
"""(positions, side) -> these frames, (n, 3, side, side), read again at the size that an encoder is shown."""


class FrozenEncoder:
    """A trunk and the projection fitted on a pool: frames to features, through the cache.

    Attributes:
        trunk, projection: as in `frozen.FrozenModel`.
        bits: 16 or 8, that a feature is kept in.
    """

    def __init__(self, trunk: Trunk, projection: Projection, cache_dir: Path | None = None, *, bits: int = 16) -> None:
        self.trunk = trunk
        self.projection = projection
        self.bits = bits
        self._cache_dir = cache_dir

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, channels, h, w) float16, channels last in memory, of images (B, 3, S, S) uint8 at the view's
        scale."""
        made = features(self.trunk, self.projection, _prepared(self.trunk, images))
        return made.to(torch.float16).contiguous(memory_format=torch.channels_last)

    def cached(
        self, images: NDArray[np.uint8], progress: Progress = silent, pictures: Pictures | None = None
    ) -> KeptMaps:
        """Features (N, channels, h, w) of images (N, 3, S, S), a memory map, its channels last in memory.

        Copied on write, so that tensors share it and the file never changes. In 8 bits `CodedMaps` of such a map.

        Args:
            images: by whose contents the features are known again.
            pictures: where the encoder is to see more of the frames; without it, images that are too small are
                enlarged.

        Raises:
            UserError: the cache folder cannot be written, or has no room.
        """
        view, folder = self.projection.view, _folder(self._cache_dir)
        parts = self.projection.weight, self.projection.bias, content_digest(images)
        is_coded = self.bits == 8
        key = _key(self.trunk, view, images.shape[2:], *parts, *(["8 bits"] if is_coded else []))
        grid, channels = grid_size(images.shape[2:]), self.projection.n_features
        step = _batch(self.trunk, view, images)
        name, dtype = "features", "<f2"
        shape: tuple[int, ...] = (*grid, channels)
        if is_coded:
            name, dtype, shape = "codes", "|u1", (coded_bytes(channels, grid),)

        def make(writer: RowWriter) -> dict[str, Any]:
            done = writer.go_on(name, dtype, shape, step)
            frame_bytes = np.dtype(dtype).itemsize * math.prod(shape)
            less = "" if is_coded else ", or keep features in 8 bits (--feature_bits 8), which takes half"
            check_room(folder, "features", frame_bytes, len(images) - done, less)
            for start in range(done, len(images), step):
                progress("encoding frames", start, len(images))
                made = self(_shown(view, images, range(start, min(start + step, len(images))), pictures))
                writer.append(name, code_maps(made) if is_coded else made.permute(0, 2, 3, 1).cpu().numpy())
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
        rows = kept.arrays[name]
        return CodedMaps(rows, channels, grid) if is_coded else rows.transpose(0, 3, 1, 2)


def mean_features(maps: KeptMaps, progress: Progress = silent, cache_dir: Path | None = None) -> NDArray[np.float32]:
    """(N, channels), means over the positions of maps as `FrozenEncoder.cached` gives them; made once and kept.

    Raises:
        UserError: the cache folder cannot be written.
    """

    rows = maps.rows if isinstance(maps, CodedMaps) else maps.transpose(0, 2, 3, 1)

    def make(writer: RowWriter) -> dict[str, Any]:
        for start in range(0, len(maps), MEANS):
            progress("comparing frames", start, len(maps))
            some = torch.from_numpy(maps[start : start + MEANS]).permute(0, 2, 3, 1)
            writer.append("means", some.flatten(1, 2).float().mean(1).numpy())
            let_go(rows)
        return {}

    kept = load_or_make(_folder(cache_dir) / f"means-{content_digest(rows)}", make, what="mean features")
    return kept.arrays["means"]


MEANS = 64
"""Frames whose means are made at a time."""


def load_or_fit(
    trunk: Trunk,
    pool: NDArray[np.uint8],
    *,
    view: View = RAISED,
    bits: int = 16,
    pictures: Pictures | None = None,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> FrozenEncoder:
    """The trunk with a projection fitted on a pool's images (N, 3, S, S), from the cache or fitted now.

    Args:
        pool: S the side of the masks.
        view: what it is shown, and what is kept.
        bits: 16 or 8, that a feature is kept in.
        pictures, progress: as for `FrozenEncoder.cached`.
        cache_dir: where features are kept; default the cache folder.

    Raises:
        UserError: the cache folder cannot be written.
    """
    folder = _folder(cache_dir)
    path = folder / f"projection-{_key(trunk, view, pool.shape[2:], content_digest(pool))}.safetensors"
    with writable(folder, "features"), atomic.locked(folder / f"{path.name}.lock"):
        projection = _read_projection(path, trunk, view)
        if projection is None:
            projection = fit_projection(_some_positions(trunk, view, pool, pictures, progress), trunk.channels, view)
            state = dict(projection.state_dict())
            atomic.write_bytes(path, safetensors.torch.save(state, {"crc": str(_crc(state))}))
    return FrozenEncoder(trunk, projection.to(trunk.device), cache_dir, bits=bits)


def _read_projection(path: Path, trunk: Trunk, view: View) -> Projection | None:
    if not path.exists():
        return None
    try:
        state = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            if str(_crc(state)) != file.metadata()["crc"]:
                raise ValueError("it does not match its checksum")
        return Projection(state["weight"], state["bias"], trunk.channels, view)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        logger.warning("%s is damaged (%s) and is made again", path, error)
        return None


@torch.no_grad()
def _some_positions(
    trunk: Trunk, view: View, pool: NDArray[np.uint8], pictures: Pictures | None, progress: Progress
) -> Tensor:
    """(positions, channels of all maps) of frames evenly spaced over the pool."""
    frames = np.unique(np.linspace(0, len(pool) - 1, min(FITTED_FRAMES, len(pool))).round().astype(int))
    grid = grid_size(pool.shape[2:])
    positions_in_all = min(FITTED_POSITIONS, FITTED_VALUES // sum(trunk.channels))
    each = min(positions_in_all // len(frames), grid[0] * grid[1])
    generator = np.random.default_rng(stream_seed("positions of the projection"))
    found, step = [], _batch(trunk, view, pool)
    for start in range(0, len(frames), step):
        progress("fitting the projection", start, len(frames))
        levels = trunk(_prepared(trunk, _shown(view, pool, frames[start : start + step].tolist(), pictures)))
        for positions in join(levels, grid).flatten(2).cpu():
            chosen = np.sort(generator.choice(grid[0] * grid[1], each, replace=False))
            found.append(positions[:, torch.from_numpy(chosen)].T)
    return torch.cat(found)


def _shown(view: View, images: NDArray[np.uint8], positions: Sequence[int], pictures: Pictures | None) -> Tensor:
    """What an encoder is shown of these frames, (n, 3, height, width) uint8."""
    height, width = (side * view.scale for side in images.shape[2:])
    if pictures is not None and view.scale > 1:
        return torch.from_numpy(pictures(positions, height))
    kept = torch.from_numpy(images[list(positions)])
    if view.scale == 1:
        return kept
    return F.interpolate(kept.float(), (height, width), mode="bilinear").round().to(torch.uint8)


def _prepared(trunk: Trunk, images: Tensor) -> Tensor:
    return trunk.normalisation(images.to(trunk.device)).contiguous(memory_format=torch.channels_last)


def _batch(trunk: Trunk, view: View, images: NDArray[np.uint8]) -> int:
    """Frames at a time: on the CPU few, whose maps stay in its cache."""
    if trunk.device.type != "cpu":
        return 64
    return max(CPU_PIXELS // (view.scale**2 * images.shape[2] * images.shape[3]), 1)


CPU_PIXELS = 160_000


def _folder(cache_dir: Path | None) -> Path:
    return default_cache_dir() if cache_dir is None else cache_dir


def _key(trunk: Trunk, view: View, size: tuple[int, ...], *parts: Tensor | str) -> str:
    found = hashlib.blake2b(
        f"{FORMAT} {trunk.name} {trunk.digest} {trunk.normalisation} {size}".encode(), digest_size=12
    )
    for part in parts if view == PLAIN else (str(view), *parts):
        found.update(part.encode() if isinstance(part, str) else part.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _crc(state: dict[str, Tensor]) -> int:
    return zlib.crc32(b"".join(state[name].contiguous().numpy().tobytes() for name in sorted(state)))
