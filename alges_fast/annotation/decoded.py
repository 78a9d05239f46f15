"""The frames of a pool, decoded once for the model and kept: after that pass it is known which cannot be read.

Their rows in the cache folder are the (3, S, S) uint8 pictures of those that can be read, their facts why the others
cannot. The key is made of the files' names, sizes and times of change.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alges_fast import cached_rows
from alges_fast.annotation.sources import FrameReader, LeftOut, PoolFrame, resized
from alges_fast.cache_folder import default_cache_dir
from alges_fast.data.files import FaultyFile
from alges_fast.data.loading import map_in_order
from alges_fast.errors import UserError
from alges_fast.progress import Progress, silent


def decoded_images(
    frames: Sequence[PoolFrame],
    image_size: int,
    left_out: LeftOut,
    progress: Progress = silent,
) -> tuple[list[PoolFrame], NDArray[np.uint8]]:
    """The frames that can be read, stretched to the model's square like its training frames, mapped from the cache.

    Args:
        left_out: frames that cannot be read are added to it, or the first of them is raised, as it is set.
        progress: called while they are decoded.

    Returns:
        The frames that can be read, with those that were left out before, and (N, 3, S, S) of them.

    Raises:
        UserError: a frame that cannot be read and must not be left out; or a cache that cannot be written.
    """

    place = default_cache_dir() / f"pool-{image_size}-{_key(frames, image_size)}"

    def make(writer: cached_rows.RowWriter) -> dict[str, Any]:
        reasons: dict[str, str] = {}
        cached_rows.check_room(place.parent, "decoded frames", 3 * image_size**2, len(frames))
        for done, (frame, result) in enumerate(_read_all(frames, image_size)):
            progress("reading frames", done, len(frames))
            if isinstance(result, FaultyFile):
                if frame.id not in left_out.reasons:
                    left_out.add(frame.id, result)
                reasons[frame.id] = str(result)
            else:
                writer.append("images", result.numpy()[None])
        return {"reasons": reasons}

    kept = cached_rows.load_or_make(place, make, what="decoded frames")
    reasons: dict[str, str] = kept.facts["reasons"]
    for id, reason in reasons.items():
        if id not in left_out.reasons:
            left_out.add(id, FaultyFile(reason))
    decoded = [frame for frame in frames if frame.id not in reasons]
    if not decoded:
        raise UserError(f"no frame of the pool can be read: {next(iter(reasons.values()))}")
    return decoded, kept.arrays["images"]


def pictures_of(frames: Sequence[PoolFrame]) -> Callable[[Sequence[int], int], NDArray[np.uint8]]:
    """(positions, side) -> these of the frames, (n, 3, side, side), read again at another size, quickest in order."""
    reader = FrameReader()
    return lambda positions, side: np.stack([resized(reader.read(frames[at]), side).numpy() for at in positions])


def _read_all(frames: Sequence[PoolFrame], size: int) -> Iterator[tuple[PoolFrame, Tensor | FaultyFile]]:
    """Every frame, in order: pictures on all cores, a video's frames one after another."""

    def read(frame: PoolFrame, reader: FrameReader) -> Tensor | FaultyFile:
        try:
            return resized(reader.read(frame), size)
        except FaultyFile as fault:
            return fault

    for of_video, group in itertools.groupby(frames, key=lambda frame: frame.timestamp is not None):
        run = list(group)
        if of_video:
            reader = FrameReader()
            yield from ((frame, read(frame, reader)) for frame in run)
        else:
            yield from zip(run, map_in_order(lambda frame: read(frame, FrameReader()), run), strict=True)


def _key(frames: Sequence[PoolFrame], size: int) -> str:
    digest = hashlib.blake2b(f"2 {size}".encode(), digest_size=12)

    @functools.lru_cache(1)  # a video's frames come one after another
    def file(path: Path) -> tuple[Path, os.stat_result]:
        return path.resolve(), path.stat()

    for frame in frames:
        try:
            path, state = file(frame.path)
            kind = "" if frame.timestamp is None else " upright"  # before, videos were kept as they are stored
            digest.update(f"\n{path} {frame.id} {frame.timestamp} {state.st_size} {state.st_mtime_ns}{kind}".encode())
        except OSError:
            digest.update(f"\n{frame.id} cannot be read".encode())
    return digest.hexdigest()
