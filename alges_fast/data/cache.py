"""Decoded frames of a data set, kept: `images` (N, 3, S, S) and `masks` (N, S, S) of every split (cached_rows.py)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alges_fast import cached_rows
from alges_fast.cache_folder import default_cache_dir
from alges_fast.data.files import SPLITS
from alges_fast.data.frames import FrameSet


class CacheWriter:
    """Appends frames to a data set's cache that is being made."""

    def __init__(self, rows: cached_rows.RowWriter) -> None:
        self._rows = rows
        self.names: dict[str, dict[str, list[str]]] = {
            split: {"ids": [], "videos": [], "clips": []} for split in SPLITS
        }

    def append(
        self, split: str, name: str, video: str, clip: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]
    ) -> None:
        """Add one frame: image (3, S, S) and mask (S, S)."""
        for part, value in (("ids", name), ("videos", video), ("clips", clip)):
            self.names[split][part].append(value)
        self._rows.append(f"{split}-images", image[None])
        self._rows.append(f"{split}-masks", mask[None])


def load_or_build(
    cache_dir: Path | None,
    name: str,
    key: str,
    image_size: int,
    build: Callable[[CacheWriter], dict[str, Any]],
) -> tuple[dict[str, FrameSet], dict[str, Any]]:
    """The three splits and the builder's extra facts, from the cache or built into it.

    cache_dir: default $ALGES_FAST_CACHE, else ~/.cache/alges_fast. key: digest of everything the content depends on.
    build appends every frame to the writer and returns facts to keep (as JSON). A damaged cache is built again.
    Raises UserError where the cache folder cannot be written; what build raises passes through.
    """

    def make(rows: cached_rows.RowWriter) -> dict[str, Any]:
        writer = CacheWriter(rows)
        extra = build(writer)
        return {"names": writer.names, "extra": extra}

    digest = hashlib.blake2b(f"{name} {image_size} {key}".encode(), digest_size=12).hexdigest()
    place = (cache_dir or default_cache_dir()) / f"{name}-{image_size}-{digest}"
    kept = cached_rows.load_or_make(place, make, what="decoded frames")
    splits = {
        split: FrameSet(
            ids=tuple(kept.facts["names"][split]["ids"]),
            videos=tuple(kept.facts["names"][split]["videos"]),
            clips=tuple(kept.facts["names"][split]["clips"]),
            images=kept.arrays[f"{split}-images"],
            masks=np.asarray(kept.arrays[f"{split}-masks"]),  # a view: slices of a memmap are slow
        )
        for split in SPLITS
    }
    return splits, kept.facts["extra"]


def content_key(root: Path, files: Iterable[Path]) -> str:
    """Digest of the files' paths under root, sizes, modification times and last 4 KiB.

    The tail costs one short read and sees what a restored modification time would hide: a PNG ends in a checksum of its
    pixels. Reading whole files would take minutes for a large data set at every start.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(str(path.relative_to(root)).encode())
        with (
            contextlib.suppress(OSError),
            path.open("rb") as file,
        ):  # what cannot be opened is a fault found in decoding
            status = os.fstat(file.fileno())
            digest.update(f" {status.st_size} {status.st_mtime_ns} ".encode())
            file.seek(max(0, status.st_size - 4096))
            digest.update(file.read())
    return digest.hexdigest()
