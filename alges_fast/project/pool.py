"""The frames of a project's pool: listed anew by every step, decoded once for the model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alges_fast import atomic
from alges_fast.annotation.exports import file_name
from alges_fast.annotation.sources import FramePool, LeftOut, PoolFrame, frame_sizes, list_frames
from alges_fast.cache_folder import default_cache_dir
from alges_fast.errors import UserError
from alges_fast.project.folder import Project

Progress = Callable[[str, int, int], None]
"""Called with (what is done, frames done, frames in all)."""


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class ProjectPool:
    """What can be used of the pool.

    frames: in natural order.
    left_out: why files cannot be used.
    """

    frames: Sequence[PoolFrame]
    left_out: LeftOut

    @cached_property
    def by_id(self) -> dict[str, PoolFrame]:
        return {frame.id: frame for frame in self.frames}

    @cached_property
    def names(self) -> dict[str, str]:
        """id -> name in files. Raises UserError where two frames would have one name."""
        ids: dict[str, str] = {}
        for frame in self.frames:
            if (other := ids.setdefault(file_name(frame.id), frame.id)) != frame.id:
                raise UserError(f"{other} and {frame.id} would both be {file_name(frame.id)} in files: rename one")
        return {id: name for name, id in ids.items()}

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """id -> (height, width)."""
        return frame_sizes(self.frames, self.left_out)


def list_pool(project: Project) -> ProjectPool:
    """The pool's frames; files that cannot be listed are left out. Raises UserError where labelled frames are gone."""
    left_out = LeftOut("skip")
    frames = list_frames(project.images, fps=project.config.fps, left_out=left_out)
    present = {frame.id for frame in frames}
    if gone := [id for id in project.labelled if id not in present]:
        raise UserError(
            f"{project.images}: {gone[0]} is labelled and no longer there"
            f"{f', and {len(gone) - 1} more' if len(gone) > 1 else ''}: restore the pool, or correct images in "
            f"{project.root / 'project.yaml'}"
        )
    return ProjectPool(frames, left_out)


def decoded(pool: ProjectPool, size: int, progress: Progress = silent) -> tuple[ProjectPool, NDArray[np.uint8]]:
    """The frames that can be read, and (N, 3, size, size) of them, a memory map in the cache folder."""
    folder = default_cache_dir()
    key = _key(pool.frames, size)
    pixels, facts = folder / f"project-{key}.u8", folder / f"project-{key}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.locked(folder / f"project-{key}.lock"):
        if not (pixels.exists() and facts.exists()):
            _decode(pool, size, pixels, facts, progress)
    reasons: dict[str, str] = json.loads(facts.read_text(encoding="utf-8"))
    read = [frame for frame in pool.frames if frame.id not in reasons]
    if not read:
        raise UserError(f"no frame of the pool can be read: {next(iter(reasons.values()))}")
    for id, reason in reasons.items():
        pool.left_out.reasons.setdefault(id, reason)
    images: NDArray[np.uint8] = np.memmap(pixels, np.uint8, "r", shape=(len(read), 3, size, size))
    return ProjectPool(read, pool.left_out), images


def _decode(pool: ProjectPool, size: int, pixels: Path, facts: Path, progress: Progress) -> None:
    draft = pixels.with_name(f".{pixels.name}.draft")
    frames = FramePool(pool.frames, size, LeftOut("skip"))
    try:
        with draft.open("wb") as file:
            for number in range(len(frames)):
                progress("reading frames", number, len(frames))
                id, image = frames[number]
                if id not in frames.left_out.reasons:
                    file.write(image.numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        atomic.write_json(facts, frames.left_out.reasons)
        draft.replace(pixels)
    except OSError as error:
        raise UserError(
            f"{pixels}: cannot be written ({error.strerror or error}): make room, or set ALGES_FAST_CACHE"
        ) from None


def _key(frames: Sequence[PoolFrame], size: int) -> str:
    """Of the frames' files by name, size and time of change."""
    found = hashlib.blake2b(str(size).encode(), digest_size=12)
    for frame in frames:
        try:
            state = frame.path.stat()
            found.update(
                f"\n{frame.path.resolve()} {frame.id} {frame.timestamp} {state.st_size} {state.st_mtime_ns}".encode()
            )
        except OSError:
            found.update(f"\n{frame.id} cannot be read".encode())
    return found.hexdigest()
