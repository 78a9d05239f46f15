"""A .npy file that grows by rows and survives a kill: what `embed_pool` writes.

Beside `<path>` lies `<path>.ids`, one JSON value a line: what made the file, then [position, id, kept] of every image.
A batch's rows are written and flushed before its lines, so a line stands for rows that are there; whatever a killed
writer left beyond the last whole line is cut off when the file is continued.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["RowFile", "fingerprint"]

Item = tuple[int, "str | int", bool]


class RowFile:
    """Rows of one output, appended batch by batch.

    Args:
        path: the .npy file; its folder is made.
        made_by: JSON values that say what the rows are; a file made by something else is not continued.
        resume: continue what is there; else start anew.

    Attributes:
        items: (position, id, kept) of every image in the file; an image that is not kept has no row.

    Raises:
        ValueError: `resume` of a file that something else made.
    """

    def __init__(self, path: Path, made_by: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.ids_path = path.with_name(path.name + ".ids")
        self.items: list[Item] = []
        self._dtype: np.dtype[Any] | None = None
        self._row_shape: tuple[int, ...] = ()
        path.parent.mkdir(parents=True, exist_ok=True)
        first_line = json.dumps(made_by, sort_keys=True)
        if resume and path.exists() and self.ids_path.exists():
            self._read(first_line)
        else:
            path.unlink(missing_ok=True)
            self.ids_path.write_text(first_line + "\n", encoding="utf-8")

    @property
    def done(self) -> int:
        return len(self.items)

    def append(self, items: Sequence[Item], rows: Tensor) -> None:
        """Add a batch: `rows` (as many as items kept, *row shape)."""
        array = rows.numpy()
        if self._dtype is None:
            self._dtype, self._row_shape = array.dtype, array.shape[1:]
            with self.path.open("wb") as file:
                self._write_header(file, 0)
        if array.shape[1:] != self._row_shape:
            raise ValueError(
                f"pool: the row of image {items[0][1]!r} has shape {array.shape[1:]}, earlier ones {self._row_shape}: "
                "for this output all images must have one size"
            )
        with self.path.open("r+b") as file:
            file.seek(0, 2)
            file.write(array.tobytes())
            self._write_header(file, self._n_rows() + len(array))
        with self.ids_path.open("a", encoding="utf-8") as file_of_ids:
            file_of_ids.writelines(json.dumps(item) + "\n" for item in items)
        self.items += items

    def truncate(self, done: int) -> None:
        """Keep the first `done` images."""
        self.items = self.items[:done]
        if self._dtype is None:
            return
        lines = self.ids_path.read_text(encoding="utf-8").splitlines()[: 1 + done]
        self.ids_path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        with self.path.open("r+b") as file:
            self._write_header(file, self._n_rows())
            file.truncate(file.tell() + self._n_rows() * self._row_bytes())

    def finish(self) -> Tensor:
        """The rows as a tensor that shares memory with the file."""
        return torch.from_numpy(np.load(self.path, mmap_mode="r+"))

    def _read(self, first_line: str) -> None:
        text = self.ids_path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()
        if not lines or lines[0] != first_line:
            raise ValueError(f"out: {self.path} is of another model or other arguments; resume=False replaces it")
        self.items = [tuple(json.loads(line)) for line in lines[1:]]
        if not self.items:
            return
        with self.path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, self._dtype = np.lib.format.read_array_header_1_0(file)
            self._row_shape = shape[1:]

    def _n_rows(self) -> int:
        return sum(kept for _, _, kept in self.items)

    def _row_bytes(self) -> int:
        assert self._dtype is not None
        return math.prod(self._row_shape) * self._dtype.itemsize

    def _write_header(self, file: Any, n_rows: int) -> None:
        """The header leaves room for the number of rows to grow, so its length stays the same."""
        assert self._dtype is not None
        file.seek(0)
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (n_rows, *self._row_shape)}
        np.lib.format.write_array_header_1_0(file, header)


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
