"""Rows that can be made again, kept in files: decoded frames, and what frozen encoders make of them.

    <place>/<name>.rows  an array's rows one after another; there may be several arrays
            <name>.crc   a CRC-32 of each row
            index.json   types, shapes and the maker's facts; written last
    <place>.draft/       the same without an index: being made

The name of the place holds a digest of all that the rows depend on. Rows are on the disk before the index is, and the
index before the draft is renamed to its place, so a reader finds all of them or none, also after a power cut. One
process makes them under a lock and others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import math
import mmap
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from alges_fast import atomic
from alges_fast.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = 1
MAP_NORESERVE = 0x4000
"""Of mmap(2) on Linux: what may be written to, copied, needs no memory before it is; without it no more can be mapped
than fits into memory. Python names it from 3.13 on."""
CHECKED = 1 << 28
"""Bytes of an array whose checksums are looked at when it is opened: of larger ones of rows spread evenly, since
reading hours of video would take longer than what is asked of them."""

WORTH_SAYING = 10**8
"""Bytes that are said before they are written."""


@dataclass(frozen=True)
class CachedRows:
    """Arrays by name, mapped from their files, and what their maker told. An array without rows is not there."""

    arrays: Mapping[str, NDArray[Any]]
    facts: dict[str, Any]


class RowWriter:
    """Appends rows to arrays that are being made."""

    def __init__(self, draft: Path) -> None:
        self._draft = draft
        self._files: dict[str, tuple[IO[bytes], IO[bytes]]] = {}
        self._arrays: dict[str, tuple[str, tuple[int, ...]]] = {}

    def go_on(self, name: str, dtype: str, shape: tuple[int, ...], step: int) -> int:
        """Open an array of rows of this shape, cut back to the whole batches of `step` rows that a killed process left
        of it: how many rows that are."""
        rows, sums = (self._draft / f"{name}.{end}" for end in ("rows", "crc"))
        rows.touch()
        sums.touch()
        row_bytes, expected = np.dtype(dtype).itemsize * math.prod(shape), np.fromfile(sums, "<u4")
        with rows.open("rb") as file:
            whole = (_is_row(file.read(row_bytes), row_bytes, crc) for crc in expected)
            done = sum(1 for _ in itertools.takewhile(bool, whole))
        done -= done % step
        os.truncate(rows, done * row_bytes)
        os.truncate(sums, 4 * done)
        self._open(name, dtype, shape)
        return done

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Add rows (n, ...) to the array."""
        if name not in self._files:
            self._open(name, rows.dtype.str, rows.shape[1:])
        file, sums = self._files[name]
        for row in np.ascontiguousarray(rows):
            file.write(row.data)
        file.flush()  # rows before their sums: a sum stands for a row that is there
        sums.write(_sums(rows).tobytes())
        sums.flush()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the index, once all rows are on the disk."""
        arrays = {}
        for name, (file, sums) in self._files.items():
            for each in (file, sums):
                os.fsync(each.fileno())
            dtype, shape = self._arrays[name]
            arrays[name] = dtype, [sums.tell() // 4, *shape]
        atomic.write_json(self._draft / "index.json", {"format": FORMAT, "arrays": arrays, "facts": facts})

    def _open(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self._files[name] = (self._draft / f"{name}.rows").open("ab"), (self._draft / f"{name}.crc").open("ab")
        self._arrays[name] = dtype, shape

    def close(self) -> None:
        """Close the files, whatever was written."""
        for pair in self._files.values():
            for file in pair:
                with contextlib.suppress(OSError):
                    file.close()


def load_or_make(
    place: Path,
    make: Callable[[RowWriter], Mapping[str, Any]],
    *,
    what: str,
    resume: bool = False,
    mode: Literal["r", "c"] = "r",
    waiting: Callable[[], None] = lambda: None,
) -> CachedRows:
    """The rows at a place, made there where they are not, or are damaged.

    Args:
        place: a folder, whose name holds a digest of all that the rows depend on.
        make: appends all rows and returns facts to keep, as JSON has them.
        what: what is kept there, for messages, such as "decoded frames".
        resume: let `make` go on with what a killed process left, see `RowWriter.go_on`.
        mode: of the maps: "r", or "c" where what a caller writes stays its own.
        waiting: called before another process is waited for.

    Raises:
        UserError: the folder cannot be written. What `make` raises passes through.
    """
    with writable(place.parent, what):
        if (whole := _open(place, what, mode)) is not None:
            return whole
        waiting()
        with atomic.locked(place.with_name(f"{place.name}.lock")):
            if (whole := _open(place, what, mode)) is None:
                _make(place, make, resume)
                whole = _open(place, what, mode)
    if whole is None:
        raise UserError(f"{place}: damaged right after it was written: check the disk")
    return whole


def check_room(folder: Path, what: str, row_bytes: int, n: int, less: str = "") -> None:
    """Say what rows will take, where that is much, before they are written.

    Args:
        folder: where; it exists.
        what: as for `load_or_make`.
        row_bytes, n: of a row, and how many rows.
        less: how less of them can be kept, as the end of a sentence.

    Raises:
        UserError: they do not fit.
    """
    needed, free = row_bytes * n, shutil.disk_usage(folder).free
    takes = f"{what} take {row_bytes / 1e3:,.0f} kB a frame, {needed / 1e9:,.1f} GB for {n:,} frames"
    if needed > free:
        raise UserError(
            f"{folder}: {takes}, and {free / 1e9:,.1f} GB are free: make room, or set ALGES_FAST_CACHE to "
            f"another folder{less}"
        )
    if needed >= WORTH_SAYING:
        logger.info("%s, in %s, where %s GB are free", takes, folder, f"{free / 1e9:,.1f}")


def content_digest(rows: NDArray[Any]) -> str:
    """Of an array's type, shape and every row. An array mapped whole from a cache is known by the sums beside it."""
    digest = hashlib.blake2b(f"{rows.dtype.str} {rows.shape}".encode(), digest_size=16)
    path = getattr(rows, "filename", None)
    if path is not None and Path(path).suffix == ".rows" and rows.flags.c_contiguous:
        sums = Path(path).with_suffix(".crc")
        if Path(path).stat().st_size == rows.nbytes and sums.stat().st_size == 4 * len(rows):
            digest.update(sums.read_bytes())
            return digest.hexdigest()
    digest.update(_sums(rows).tobytes())
    return digest.hexdigest()


def let_go(rows: NDArray[Any]) -> None:
    """Take what was read of mapped rows out of this process's memory; it is mapped again where it is read again. What
    was written to copies is lost, so only for rows that nobody writes to. Of an array in memory nothing changes."""
    base: Any = rows
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "_mmap", None) or getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def writable(folder: Path, what: str) -> Iterator[None]:
    """The folder, made where it is not; a disk that fills, or a folder that cannot be written, in one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        mend = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise UserError(
            f"{folder}: cannot keep {what} there ({error.strerror or error}): {mend} or set ALGES_FAST_CACHE to "
            "another folder"
        ) from None


def _make(place: Path, make: Callable[[RowWriter], Mapping[str, Any]], resume: bool) -> None:
    draft = place.with_name(f"{place.name}.draft")
    if not resume:
        _remove(draft)
    draft.mkdir(parents=True, exist_ok=True)
    writer = RowWriter(draft)
    try:
        writer.finish(make(writer))
        _remove(place)
        draft.rename(place)
        atomic.flush_folder(place.parent)
    finally:
        writer.close()
        if not resume:
            shutil.rmtree(draft, ignore_errors=True)


def _open(place: Path, what: str, mode: Literal["r", "c"]) -> CachedRows | None:
    if not place.exists():
        return None
    try:
        index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError("they are of another format")
        arrays = {name: _mapped(place, name, of_array, mode) for name, of_array in index["arrays"].items()}
        return CachedRows(arrays, index["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s in %s are damaged (%s) and are made again", what, place, error)
        return None


def _mapped(place: Path, name: str, of_array: tuple[str, list[int]], mode: Literal["r", "c"]) -> NDArray[Any]:
    dtype, shape = of_array
    path = place / f"{name}.rows"
    sums = np.fromfile(place / f"{name}.crc", "<u4")
    row_bytes = np.dtype(dtype).itemsize * math.prod(shape[1:])
    if (path.stat().st_size, len(sums)) != (shape[0] * row_bytes, shape[0]):
        raise ValueError(f"{path.name} is of another length")
    n_checked = min(max(CHECKED // row_bytes, 1), shape[0])
    with path.open("rb") as file:
        for at in np.linspace(0, shape[0] - 1, n_checked).round().astype(int).tolist():
            file.seek(at * row_bytes)
            if not _is_row(file.read(row_bytes), row_bytes, sums[at]):
                raise ValueError(f"row {at} of {path.name} does not match its checksum")
    if mode == "r" or sys.platform != "linux":
        return np.memmap(path, dtype, mode, shape=tuple(shape))
    with path.open("rb") as file:
        flags, access = mmap.MAP_PRIVATE | MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        mapped = mmap.mmap(file.fileno(), 0, flags, access)
    rows: np.memmap[Any, Any] = np.ndarray.__new__(np.memmap, tuple(shape), dtype, mapped)
    for name, value in {"_mmap": mapped, "filename": path, "offset": 0, "mode": mode}.items():
        setattr(rows, name, value)
    return rows


def _is_row(data: bytes, row_bytes: int, crc: int) -> bool:
    return len(data) == row_bytes and zlib.crc32(data) == crc


def _sums(rows: NDArray[Any]) -> NDArray[np.uint32]:
    return np.array([zlib.crc32(np.ascontiguousarray(row).data) for row in rows], "<u4")


def _remove(place: Path) -> None:
    """Take it away; renamed first, so that no reader sees it half gone."""
    doomed = place.with_name(f"{place.name}.damaged")
    for path in (doomed, place):
        if path.is_dir():
            if path == place:
                path = path.rename(doomed)
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
