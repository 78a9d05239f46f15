"""A .npy file that grows by rows and survives a kill: what `embed_pool` writes.

Beside `<path>` lies `<path>.ids`, one JSON value a line: what made the file, then [position, id, kept, checksum of the
pixels, checksum of the row] of every image. A batch's rows are written and flushed before its lines, so a line stands
for rows that are there; whatever a killed writer left beyond the last whole line, or a power cut from the first row on
that does not match its checksum, is cut off when the file is continued.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from alges_fast import atomic
from alges_fast.pool.errors import CannotContinue, FileInUse, RowsNotWritten

Item = tuple[int, "str | int", bool, int]
"""Position, id, whether the image has a row, checksum of its pixels."""


class RowFile:
    """Rows of one output, appended batch by batch, by one process at a time.

    Args:
        path: the .npy file; its folder is made.
        made_by: JSON values that say what the rows are; a file made by something else is not continued.
        resume: continue what is there; else start anew.

    Attributes:
        items: every image in the file; one that is not kept has no row.

    Raises:
        FileInUse: another process writes the file.
        CannotContinue: with `resume`, something else made it, or it is damaged.
        RowsNotWritten: the disk is full, say; by any method that writes.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.ids_path = path.with_name(path.name + ".ids")
        self.items: list[Item] = []
        self._n_rows = 0
        self._dtype: np.dtype[Any] | None = None
        self._row_shape: tuple[int, ...] = ()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opened once: such a lock ends with the first handle of its file that the process closes. And not inherited: a
        # DataLoader's workers outlive a killed process by seconds, and would keep the next one out.
        self._lines = self.ids_path.open("a+b")
        if atomic.lock(self._lines, wait=False, inherited=False) is False:
            raise FileInUse(path)
        if resume and path.exists():
            self._read(made_by)
            return
        with _named(self.ids_path):  # the rows go first: a list without them is begun anew
            path.unlink(missing_ok=True)
            self._lines.truncate(0)
            self._lines.write(_line(made_by))
            self._lines.flush()

    @property
    def done(self) -> int:
        return len(self.items)

    def append(self, items: Sequence[Item], rows: Tensor) -> None:
        """Add a batch: `rows` (as many as items kept, *row shape)."""
        array = rows.numpy()
        if self._dtype is not None and array.shape[1:] != self._row_shape:
            raise ValueError(
                f"pool: the row of image {items[0][1]!r} has shape {array.shape[1:]}, earlier ones {self._row_shape}: "
                "for this output all images must have one size"
            )
        with _named(self.path):
            if self._dtype is None:
                self._dtype, self._row_shape = array.dtype, array.shape[1:]
                with self.path.open("wb") as file:
                    self._write_header(file, 0)
            with self.path.open("r+b") as file:
                file.seek(0, 2)
                file.write(array.tobytes())
                self._write_header(file, self._n_rows + len(array))
        sums = map(zlib.crc32, array)
        with _named(self.ids_path):
            self._lines.write(b"".join(_line([*item, next(sums) if item[2] else 0]) for item in items))
            self._lines.flush()
        self.items += items
        self._n_rows += len(array)

    def truncate(self, done: int) -> None:
        """Keep the first `done` images."""
        self.items = self.items[:done]
        self._n_rows = sum(kept for _, _, kept, _ in self.items)
        self._lines.seek(0)
        lines = self._lines.read().splitlines(keepends=True)
        self._lines.truncate(sum(map(len, lines[: 1 + done])))  # in one step: never without its first line
        if not self.items:
            self._dtype = None
        if self._dtype is None:
            return
        with self.path.open("r+b") as file:
            self._write_header(file, self._n_rows)
            file.truncate(file.tell() + self._n_rows * self._row_bytes())

    def finish(self) -> Tensor:
        """The rows, mapped from the file and copied as they are written to: what a caller changes stays out of it."""
        with _named(self.path):
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())
            os.fsync(self._lines.fileno())
            atomic.flush_folder(self.path.parent)
        self._lines.close()
        return torch.from_numpy(np.load(self.path, mmap_mode="c"))

    def _read(self, made_by: Mapping[str, Any]) -> None:
        self._lines.seek(0)
        first, *lines = self._lines.read().rpartition(b"\n")[0].split(b"\n")
        if not first:
            raise CannotContinue(
                f"out: no images are listed in {self.ids_path}, so {self.path} is no file to continue", self.path
            )
        try:
            before = dict(json.loads(first))
        except (ValueError, TypeError):
            raise self._damaged("its first line is no JSON mapping", self.ids_path) from None
        now = json.loads(_line(made_by))
        if before != now:
            names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
            what = "; ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)
            raise CannotContinue(f"out: {self.path} is of another model or other arguments ({what})", self.path)
        sums: list[int] = []
        for number, line in enumerate(lines, 2):
            try:
                position, id, kept, checksum, row_sum = json.loads(line)
            except (ValueError, TypeError):
                raise self._damaged(f"line {number} is no image", self.ids_path) from None
            self.items.append((position, id, kept, checksum))
            sums.append(row_sum)
        if not self.items:
            return
        self._n_rows = sum(kept for _, _, kept, _ in self.items)
        try:
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, self._dtype = np.lib.format.read_array_header_1_0(file)
                self._row_shape = shape[1:]
                start, size = file.tell(), self.path.stat().st_size - file.tell()
        except ValueError as error:
            raise self._damaged(str(error), self.path) from None
        listed = self._n_rows * self._row_bytes()
        if size < listed:  # to be filled up with zeros
            raise self._damaged(f"it has {size} bytes of rows, where {listed} are listed", self.path)
        with self.path.open("rb") as file:
            file.seek(start)
            for at, ((_, _, kept, _), row_sum) in enumerate(zip(self.items, sums, strict=True)):
                if kept and zlib.crc32(file.read(self._row_bytes())) != row_sum:
                    self.truncate(at)
                    break

    def _damaged(self, what: str, path: Path) -> CannotContinue:
        return CannotContinue(f"out: {path} is damaged ({what})", path)

    def _row_bytes(self) -> int:
        assert self._dtype is not None
        return math.prod(self._row_shape) * self._dtype.itemsize

    def _write_header(self, file: BinaryIO, n_rows: int) -> None:
        """The header leaves room for the number of rows to grow, so its length stays the same."""
        assert self._dtype is not None
        file.seek(0)
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (n_rows, *self._row_shape)}
        np.lib.format.write_array_header_1_0(file, header)


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's structure as it prints, its parameters and its buffers."""
    digest = hashlib.blake2b(_without_addresses(repr(model)).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def signature(function: object) -> str | None:
    """What tells one loss or transform from another, alike in every process: name, body, and the weights of a module.

    What a function closes over or reads from its module is not seen.
    """
    if function is None:
        return None
    if isinstance(function, nn.Module):
        return f"{type(function).__name__} {fingerprint(function)}"
    parts = [getattr(function, "__module__", None) or "", _without_addresses(repr(function))]
    code = getattr(function, "__code__", None)
    if code is not None:
        plain = [value for value in code.co_consts if isinstance(value, (int, float, str))]
        parts.append(hashlib.blake2b(code.co_code + repr((code.co_names, plain)).encode(), digest_size=8).hexdigest())
    return " ".join(parts)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError that names the file: a full disk's does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise RowsNotWritten(error.errno, error.strerror, str(path)) from error
