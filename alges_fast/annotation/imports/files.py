"""An export on disk, a folder or a zip, read member by member: nothing is ever unpacked."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from alges_fast.data.files import MAX_PIXELS, grey_step
from alges_fast.errors import UserError

MAX_BYTES = 1 << 30
"""Of one member, unpacked: ten times what thousand densely annotated frames take. More may be a decompression bomb."""


class ExportFiles:
    """The members of a folder or a zip by their paths in it.

    Raises UserError where it cannot be read, or has a member whose path leaves the folder.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the folder or the zip, or a file alone, which is then the only member, by its own name."""
        self.path = path
        self._root = path
        self._archive: zipfile.ZipFile | None = None
        if not path.exists():
            raise UserError(f"{path}: no such file or folder: give what the annotation tool exported")
        if path.is_dir():
            found = sorted(item for item in path.rglob("*") if item.is_file() and not item.is_symlink())
            self.names = [item.relative_to(path).as_posix() for item in found]
        elif path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
            self._root, self.names = path.parent, [path.name]
        else:
            with self._undamaged():
                self._archive = zipfile.ZipFile(path)
                self.names = [info.filename for info in self._archive.infolist() if not info.is_dir()]
            for name in self.names:
                parts = PurePosixPath(name.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
                    raise UserError(f"{path}: holds {name}, a path that leaves the folder: export it anew")
        self.names = [name for name in self.names if not _hidden(name)]

    def where(self, name: str) -> str:
        """What a message calls a member."""
        return f"{self.path}: {name}" if self._archive is not None else str(self._root / name)

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises UserError where it is damaged or far too large."""
        with self._undamaged():
            if self._archive is None:
                size = (self._root / name).stat().st_size
            else:
                size = self._archive.getinfo(name).file_size
            if size > MAX_BYTES:
                raise UserError(f"{self.where(name)}: {size} bytes, over the limit of {MAX_BYTES}: export less at once")
            if self._archive is None:
                return (self._root / name).read_bytes()
            return self._archive.read(name)

    def picture(self, name: str) -> Image.Image:
        """A loaded picture. Raises UserError: damaged, far too large, or JPEG, which class ids do not survive."""
        try:
            picture = Image.open(io.BytesIO(self.read(name)))
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{self.where(name)}: {picture.width} x {picture.height} pixels, over the limit of "
                    f"{MAX_PIXELS // 1_000_000} million: annotate smaller frames"
                )
            if picture.format == "JPEG":
                raise UserError(f"{self.where(name)}: JPEG data, and class ids do not survive JPEG: save it as PNG")
            step = grey_step(picture)
            picture.load()
        except UserError:
            raise
        except Image.DecompressionBombError:
            raise UserError(f"{self.where(name)}: far too many pixels: annotate smaller frames") from None
        except UnidentifiedImageError:
            raise UserError(f"{self.where(name)}: not a picture, whatever its name says: export it anew") from None
        except Exception as error:  # Pillow's plugins raise SyntaxError, ValueError, struct.error, zlib.error ...
            raise UserError(f"{self.where(name)}: damaged or cut short ({error}): export it anew") from None
        return picture.point([value // step for value in range(256)]) if step > 1 else picture

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.path}: a damaged zip ({error}): export it anew") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error}): check the file") from None


def parse_xml(contents: bytes, where: str) -> Element:
    """The root of an XML document that declares no entities: one may name files, or grow without end.

    Raises UserError where it is not such a document.
    """
    parser, builder = expat.ParserCreate(), TreeBuilder()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise UserError(f"{where}: declares a document type or entities, which no annotation tool writes: export anew")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(contents, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise UserError(f"{where}: no XML, or cut short ({error}): export it anew") from None


def colours(picture: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The different colours of a picture, (n, 3), and which of them each pixel has, (H, W)."""
    rgb = np.asarray(picture.convert("RGB"), np.uint32)
    packed = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    values, which = np.unique(packed, return_inverse=True)
    table = np.stack([values >> 16, values >> 8 & 255, values & 255], 1).astype(np.uint8)
    return table, which.reshape(packed.shape)


def _hidden(name: str) -> bool:
    """What file managers and a Mac's zip leave beside the files."""
    return any(part.startswith((".", "__MACOSX")) or part == "Thumbs.db" for part in name.split("/"))
