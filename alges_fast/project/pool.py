"""The frames of a project's pool: listed anew by every step, decoded once for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alges_fast.annotation.decoded import decoded_images
from alges_fast.annotation.exports import file_name
from alges_fast.annotation.sources import LeftOut, PoolFrame, frame_sizes, list_frames
from alges_fast.annotation.writing import check_names
from alges_fast.errors import UserError
from alges_fast.progress import Progress, silent
from alges_fast.project.config import FILE
from alges_fast.project.folder import Project


@dataclass(frozen=True)
class ProjectPool:
    """What can be used of the pool.

    frames: in natural order.
    left_out: why files cannot be used.
    root: the project's folder.
    """

    frames: Sequence[PoolFrame]
    left_out: LeftOut
    root: Path

    @cached_property
    def by_id(self) -> dict[str, PoolFrame]:
        return {frame.id: frame for frame in self.frames}

    @cached_property
    def names(self) -> dict[str, str]:
        """id -> name in files. Raises UserError where two frames would have one name."""
        check_names(self.root, (frame.id for frame in self.frames))
        return {frame.id: file_name(frame.id) for frame in self.frames}

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """id -> (height, width)."""
        return frame_sizes(self.frames, self.left_out)


def list_pool(project: Project, left_out: LeftOut | None = None) -> ProjectPool:
    """The pool's frames; files that cannot be listed are left out, if nothing else is said.

    Raises UserError where the pool or labelled frames are gone, or the pool holds the project.
    """
    check_apart(project.root, project.images)
    if not project.images.exists():
        raise UserError(
            f"{project.images}: the pool is not there: bring it back, or correct images in {project.root / FILE}"
        )
    left_out = LeftOut("skip") if left_out is None else left_out
    frames = list_frames(project.images, fps=project.config.fps, left_out=left_out)
    present = {frame.id for frame in frames}
    if gone := [id for id in project.labelled if id not in present]:
        raise UserError(
            f"{project.images}: {gone[0]} is labelled and no longer there"
            f"{f', and {len(gone) - 1} more' if len(gone) > 1 else ''}: restore the pool, or correct images in "
            f"{project.root / FILE}"
        )
    return ProjectPool(frames, left_out, project.root)


def check_apart(root: Path, pool: Path) -> None:
    """Raises UserError where a project lies in its pool: its masks and previews would be frames to annotate."""
    if root.resolve().is_relative_to(pool.resolve()):
        raise UserError(f"--images {pool} holds the project {root} itself: choose a folder for one of them elsewhere")


def decoded(pool: ProjectPool, size: int, progress: Progress = silent) -> tuple[ProjectPool, NDArray[np.uint8]]:
    """The frames that can be read, and (N, 3, size, size) of them, a memory map in the cache folder."""
    read, images = decoded_images(pool.frames, size, pool.left_out, progress)
    return ProjectPool(read, pool.left_out, pool.root), images
