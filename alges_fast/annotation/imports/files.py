"""An export on disk, a folder or a zip, read member by member: nothing is ever unpacked."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alges_fast.annotation.imports.frames import ExpectedFrame, check_size
from alges_fast.data.files import LEFT_BESIDE, load_mask, open_picture
from alges_fast.errors import UserError

MAX_TOTAL = 4 << 30
"""Bytes of all members, unpacked: ten thousand masks of full HD as tools compress them."""
MAX_LIST = 16 << 20
"""Bytes of a zip's list of its members: some 100 000 names."""
_PIECE = 1 << 20
_BAND = 1 << 20
"""Pixels whose colours are looked up at a time."""


class ExportFiles:
    """The members of a folder or a zip by their paths in it.

    Raises UserError where it cannot be read, or has a member whose path leaves the folder.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the folder or the zip, or a file alone, which is then the only member, by its own name."""
        self.path = path
        self._root = path
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._left = MAX_TOTAL
        if not path.exists():
            raise UserError(f"{path}: no such file or folder: give what the annotation tool exported")
        if path.is_dir():
            found = sorted(item for item in path.rglob("*") if item.is_file() and not item.is_symlink())
            self.names = [item.relative_to(path).as_posix() for item in found]
        elif not path.is_file():
            raise UserError(f"{path}: neither a file nor a folder: give what the annotation tool exported")
        elif path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
            self._root, self.names = path.parent, [path.name]
        else:
            with self._undamaged():
                self._archive = zipfile.ZipFile(_ShortReads(path))
                members = [(info.filename.replace("\\", "/"), info) for info in self._archive.infolist()]  # of Windows
            self._members = dict(members)
            self.names = [name for name, _ in members if not name.endswith("/")]
            for name in self.names:
                parts = PurePosixPath(name)
                if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", name):
                    raise UserError(f"{path}: holds {name}, a path that leaves the folder: export it anew")
        self.names = [name for name in self.names if not _hidden(name)]

    def where(self, name: str) -> str:
        """What a message calls a member."""
        return f"{self.path}: {name}" if self._archive is not None else str(self._root / name)

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a member, whatever its header says of them. Raises UserError: damaged, or more than `most`."""
        pieces: list[bytes] = []
        size = 0
        with self._undamaged(), self._open(name) as file:
            while piece := file.read(_PIECE):
                pieces.append(piece)
                size += len(piece)
                self._left -= len(piece)
                if size > most:
                    raise UserError(f"{self.where(name)}: over the limit of {most:,} bytes: export less at once")
                if self._left < 0:
                    raise UserError(f"{self.path}: over the limit of {MAX_TOTAL:,} bytes in all: export less at once")
        return b"".join(pieces)

    def mask(self, name: str, frame: ExpectedFrame) -> Image.Image:
        """A mask of a frame, loaded. Raises UserError: damaged, of another size, or JPEG."""
        height, width = frame.size
        contents = self.read(name, 8 * height * width + _PIECE)  # no more than pixels of 64 bits take, and their header
        where, mend = self.where(name), "export it anew"
        picture = open_picture(where, io.BytesIO(contents), mask=True, mend=mend)
        check_size(frame, *picture.size, where)  # before it is decoded
        return load_mask(picture, where, mend)

    def _open(self, name: str) -> BinaryIO:
        if self._archive is None:
            return (self._root / name).open("rb")
        if self._members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{self.where(name)}: compressed as no annotation tool does it: export it anew")
        return cast(BinaryIO, self._archive.open(self._members[name]))

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except (UserError, MemoryError):
            raise
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error}): check the file") from None
        except Exception as error:  # BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError of a name ...
            raise UserError(f"{self.path}: a damaged zip ({error}): export it anew") from None


class _ShortReads(io.FileIO):
    """A zip whose list of members is not read where it is huge: zipfile reads that in one piece."""

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        if size is not None and size > MAX_LIST:
            raise zipfile.BadZipFile("its list of members is too long")
        return super().read(-1 if size is None else size)


def ids_by_colour(picture: Image.Image, id_of: Callable[[tuple[int, int, int]], int]) -> NDArray[np.uint8]:
    """(H, W) class ids of a picture whose colours stand for them; each colour is asked for once."""
    rgb = picture.convert("RGB")
    ids = np.empty((rgb.height, rgb.width), np.uint8)
    known: dict[int, int] = {}
    rows = max(1, _BAND // rgb.width)
    for top in range(0, rgb.height, rows):
        bottom = min(top + rows, rgb.height)
        band = np.asarray(rgb.crop((0, top, rgb.width, bottom)), np.uint32)
        values, which = np.unique(band[..., 0] << 16 | band[..., 1] << 8 | band[..., 2], return_inverse=True)
        for value in values.tolist():
            if value not in known:
                known[value] = id_of((value >> 16, value >> 8 & 255, value & 255))
        table = np.array([known[value] for value in values.tolist()], np.uint8)
        ids[top:bottom] = table[which.reshape(bottom - top, rgb.width)]
    return ids


def _hidden(name: str) -> bool:
    """What file managers and a Mac's zip leave beside the files."""
    return any(part.startswith((".", "__MACOSX")) or part in LEFT_BESIDE for part in name.split("/"))
