"""What a frozen encoder makes of frames, made once and kept: float16, memory-mapped, under the cache folder.

    projection-<key>.safetensors       fitted on the pool; <key> from the trunk's weights, the size, the pixels
    features-<size>-<key>/features.f16 (N, h, w, channels), so that a pixel's channels lie together
                          index.json   its shape and a CRC-32 per batch; <key> also from the projection and the pixels
    features-<size>-<key>.draft/       being made: features.f16 so far, and batches.crc, a CRC-32 for each whole batch

A draft is gone on with where a killed process left it, in the same batches, so the file is the same as one made in one
go. It is renamed when it is whole. One process makes a file under a lock and others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
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
        size = images.shape[2:]
        shape = (len(images), *grid_of(size), len(self.projection.weight))
        key = _key(self.trunk, size, self.projection.weight, self.projection.bias, _pixels(images))
        folder = _folder(self._cache_dir)
        place = folder / f"features-{'x'.join(map(str, sorted(set(size))))}-{key}"
        with _writable(folder):
            if (whole := _open(place, shape)) is not None:
                return whole
            progress("waiting for another process that makes these features", 0, len(images))
            with atomic.locked(folder / f"{place.name}.lock"):
                if (whole := _open(place, shape)) is None:
                    _remove(place)
                    self._make(place, images, shape, progress)
                    whole = _open(place, shape)
        if whole is None:
            raise UserError(f"{place}: damaged right after it was written: check the disk")
        return whole

    def _make(
        self, place: Path, images: NDArray[np.uint8], shape: tuple[int, int, int, int], progress: Progress
    ) -> None:
        draft = place.with_name(f"{place.name}.draft")
        draft.mkdir(parents=True, exist_ok=True)
        step = _batch(self.trunk, images)
        frame_bytes = 2 * int(np.prod(shape[1:]))
        facts = {
            "format": FORMAT,
            "shape": shape,
            "batch": step,
            "encoder": self.trunk.name,
            "weights": self.trunk.weights,
            "digest": self.trunk.digest,
        }
        done, sums = _resumed(draft, facts, frame_bytes, step, len(images))
        _check_room(place.parent, frame_bytes * (len(images) - done))
        atomic.write_json(draft / "facts.json", facts)
        with (draft / "features.f16").open("ab") as file, (draft / "batches.crc").open("ab") as journal:
            for start in range(done, len(images), step):
                progress("encoding frames", start, len(images))
                made = self(torch.from_numpy(np.array(images[start : start + step])))
                data = made.permute(0, 2, 3, 1).cpu().numpy().tobytes()
                sums.append(zlib.crc32(data))
                file.write(data)
                file.flush()  # the batch before its sum: a sum stands for a batch that is there
                journal.write(sums[-1].to_bytes(4, "little"))
                journal.flush()
            os.fsync(file.fileno())
        progress("encoding frames", len(images), len(images))
        atomic.write_json(draft / "index.json", {**facts, "crc": sums})
        for name in ("batches.crc", "facts.json"):
            (draft / name).unlink()
        draft.rename(place)


def load_or_fit(
    trunk: Trunk, pool: NDArray[np.uint8], *, cache_dir: Path | None = None, progress: Progress = _silent
) -> FrozenEncoder:
    """The trunk with a projection fitted on a pool's images (N, 3, S, S), from the cache or fitted now.

    Raises:
        UserError: the cache folder cannot be written.
    """
    folder = _folder(cache_dir)
    path = folder / f"projection-{_key(trunk, pool.shape[2:], _pixels(pool))}.safetensors"
    with _writable(folder), atomic.locked(folder / f"{path.name}.lock"):
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


def _resumed(draft: Path, facts: dict[str, Any], frame_bytes: int, step: int, n: int) -> tuple[int, list[int]]:
    """Cut a draft back to its whole batches: how many frames they hold, and their sums."""
    data, journal = draft / "features.f16", draft / "batches.crc"
    sums: list[int] = []
    done = 0
    try:
        known = json.loads((draft / "facts.json").read_text(encoding="utf-8"))
        if known == json.loads(json.dumps(facts)):
            raw = journal.read_bytes()
            with data.open("rb") as file:
                for start in range(0, len(raw) - len(raw) % 4, 4):
                    frames = min(step, n - done)
                    batch = file.read(frames * frame_bytes)
                    expected = int.from_bytes(raw[start : start + 4], "little")
                    if not frames or len(batch) != frames * frame_bytes or zlib.crc32(batch) != expected:
                        break
                    sums.append(expected)
                    done += frames
    except (OSError, ValueError):
        pass
    for path, size in ((data, done * frame_bytes), (journal, 4 * len(sums))):
        path.touch()
        os.truncate(path, size)
    return done, sums


def _open(place: Path, shape: tuple[int, int, int, int]) -> NDArray[np.float16] | None:
    """A whole file's features, (N, channels, h, w), or None where there is none or it is damaged."""
    if not place.exists():
        return None
    try:
        index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        path = place / "features.f16"
        if index["format"] != FORMAT or tuple(index["shape"]) != shape:
            raise ValueError("they are of another shape or format")
        if path.stat().st_size != 2 * int(np.prod(shape)):
            raise ValueError("the file is of another length")
        made: NDArray[np.float16] = np.memmap(path, np.float16, "c", shape=shape)
        step = int(index["batch"])
        for number, start in enumerate(range(0, shape[0], step)):
            if zlib.crc32(made[start : start + step].data) != index["crc"][number]:
                raise ValueError(f"frames {start} to {min(start + step, shape[0]) - 1} do not match their checksum")
        return made.transpose(0, 3, 1, 2)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        logger.warning("features in %s are damaged (%s) and are made again", place, error)
        return None


def _remove(place: Path) -> None:
    if place.exists():
        doomed = place.with_name(f"{place.name}.damaged")
        _delete(doomed)
        place.rename(doomed)  # first, so that no reader sees it half gone
        _delete(doomed)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _folder(cache_dir: Path | None) -> Path:
    return default_cache_dir() if cache_dir is None else cache_dir


def _key(trunk: Trunk, size: tuple[int, ...], *parts: Tensor | str) -> str:
    found = hashlib.blake2b(
        f"{FORMAT} {trunk.name} {trunk.digest} {trunk.normalisation} {size}".encode(), digest_size=12
    )
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _pixels(images: NDArray[np.uint8]) -> str:
    """Of the frames' contents, in their order."""
    found = hashlib.blake2b(str(images.shape).encode(), digest_size=16)
    for start in range(0, len(images), 256):
        found.update(np.ascontiguousarray(images[start : start + 256]).data)
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


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """A disk that fills, or a folder that cannot be written, in one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "make room" if full else "make it writable"
        raise UserError(
            f"{folder}: cannot keep features there ({error.strerror or error}): {mend} or set ALGES_FAST_CACHE to "
            "another folder"
        ) from None
