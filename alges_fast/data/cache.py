"""Decoded frames on disk: raw uint8 files, memory-mapped, one folder per content and image size.

A cache folder holds per split images.u8 (N, 3, S, S) and masks.u8 (N, S, S), and index.json with the names, the shapes,
a CRC-32 of each file and whatever the builder wants to know again. It is written beside its place and renamed into
it, so a reader finds a whole one or none; a lock keeps processes of one machine from decoding the same data twice, and
where locks do not work the later rename simply loses.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alges_fast import atomic
from alges_fast.cache_folder import default_cache_dir
from alges_fast.data.files import SPLITS
from alges_fast.data.frames import FrameSet
from alges_fast.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = 1


class CacheWriter:
    """Appends frames to a cache folder that is being built."""

    def __init__(self, folder: Path, image_size: int) -> None:
        self._folder = folder
        self._image_size = image_size
        self._files: dict[str, IO[bytes]] = {}
        self._splits: dict[str, dict[str, Any]] = {
            split: {"ids": [], "videos": [], "clips": [], "crc": {"images": 0, "masks": 0}} for split in SPLITS
        }

    def append(
        self, split: str, name: str, video: str, clip: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]
    ) -> None:
        """Add one frame: image (3, S, S) and mask (S, S)."""
        entry = self._splits[split]
        entry["ids"].append(name)
        entry["videos"].append(video)
        entry["clips"].append(clip)
        for part, array in (("images", image), ("masks", mask)):
            data = array.tobytes()
            entry["crc"][part] = zlib.crc32(data, entry["crc"][part])
            self._file(split, part).write(data)

    def close(self, extra: dict[str, Any]) -> None:
        for file in self._files.values():
            file.close()
        index = {"format": FORMAT, "image_size": self._image_size, "splits": self._splits, "extra": extra}
        (self._folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def abandon(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _file(self, split: str, part: str) -> IO[bytes]:
        path = _path(self._folder, split, part)
        if path.name not in self._files:
            self._files[path.name] = path.open("wb")
        return self._files[path.name]


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
    parent = cache_dir or default_cache_dir()
    digest = hashlib.blake2b(f"{FORMAT} {name} {image_size} {key}".encode(), digest_size=12).hexdigest()
    place = parent / f"{name}-{image_size}-{digest}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if (whole := _open(place)) is not None:
            return whole
        with (parent / f"{place.name}.lock").open("w") as file:
            has_lock = atomic.lock(file)
            if (whole := _open(place)) is None:
                if has_lock:  # then drafts of this content are what killed processes left
                    for left in parent.glob(f"{place.name}.*.draft"):
                        shutil.rmtree(left, ignore_errors=True)
                _build(place, image_size, build)
                whole = _open(place)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{parent}: cannot keep decoded frames there ({reason}): "
            "free space or set ALGES_FAST_CACHE to another folder"
        ) from None
    if whole is None:
        raise UserError(f"{place}: damaged again right after it was written: check the disk")
    return whole


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


def _build(place: Path, image_size: int, build: Callable[[CacheWriter], dict[str, Any]]) -> None:
    draft = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=".draft", dir=place.parent))
    writer = CacheWriter(draft, image_size)
    try:
        writer.close(build(writer))
        _remove(place)
        try:
            draft.rename(place)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise  # else another process was first, and its copy is as good
    finally:
        writer.abandon()
        shutil.rmtree(draft, ignore_errors=True)


def _remove(place: Path) -> None:
    """Take a damaged cache away; renamed first, so that no reader sees it half gone."""
    if place.exists():
        doomed = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=".damaged", dir=place.parent))
        with contextlib.suppress(FileNotFoundError):
            place.rename(doomed / place.name)
        shutil.rmtree(doomed, ignore_errors=True)


def _open(place: Path) -> tuple[dict[str, FrameSet], dict[str, Any]] | None:
    if not place.exists():
        return None
    try:
        index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        size = index["image_size"]
        splits = {}
        for split, entry in index["splits"].items():
            n = len(entry["ids"])
            arrays = {
                "images": np.memmap(_path(place, split, "images"), np.uint8, "r", shape=(n, 3, size, size)),
                "masks": np.memmap(_path(place, split, "masks"), np.uint8, "r", shape=(n, size, size)),
            }
            for part, array in arrays.items():
                if (
                    array.nbytes != _path(place, split, part).stat().st_size
                    or zlib.crc32(array.data) != entry["crc"][part]
                ):
                    raise ValueError(f"{split} {part} do not match their checksum")
            splits[split] = FrameSet(
                ids=tuple(entry["ids"]), videos=tuple(entry["videos"]), clips=tuple(entry["clips"]), **arrays
            )
        return {split: splits[split] for split in SPLITS}, index["extra"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("decoded frames in %s are damaged (%s) and are made again", place, error)
        return None


def _path(folder: Path, split: str, part: str) -> Path:
    return folder / f"{split}-{part}.u8"
