"""Frames that lie in files: how a tree is listed, how one image and its mask are read, what a fault is called.

A loader lists a tree as a `Listing`; `decode` reads any of its frames. Nothing is ever written under the data root.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from alges_fast.errors import UserError, one_line
from alges_fast.labels import UNLABELLED

SPLITS = ("train", "validation", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "BMP", "TIFF", "WEBP", "JPEG")
"""What Pillow may take a file for, whatever its name says: of an EPS it would start Ghostscript."""
LEFT_BESIDE = ("Thumbs.db", "desktop.ini")
"""By Windows' file manager, in any folder."""
MAX_PIXELS = 64_000_000
"""Nearly twice an 8K frame. A larger picture is refused from its header alone: it may be a decompression bomb."""

SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_TURNS = dict(
    enumerate(
        [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, *SIDEWAYS], 2
    )
)
"""By EXIF's number of how a picture lies; 1 is upright."""


_MEND = "restore it or remove it with its pair"


class FaultyFile(UserError):
    """A file of the data set that cannot be used; with on_bad_image="skip" its frame is left out instead."""


@dataclass(frozen=True)
class FrameFile:
    """One frame on disk and the names it goes by (see FrameSet)."""

    id: str
    video: str
    clip: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class MaskReading:
    """Class ids of one mask at its own size, and the values that stood for no class: value -> pixels."""

    ids: NDArray[np.uint8]
    unknown: Counter[str]


@dataclass(frozen=True)
class Listing:
    """A tree before any pixel is read.

    read_mask turns an opened mask into class ids; mask_key names that reading (it is part of the cache's key).
    same_size: whether a mask must have its image's size. classes is None where the masks decide how many there are.
    faults: what the listing left out, one line each.
    """

    name: str
    root: Path
    classes: tuple[str, ...] | None
    palette: tuple[tuple[int, int, int], ...] | None
    splits: dict[str, tuple[FrameFile, ...]]
    read_mask: Callable[[Image.Image, Path], MaskReading]
    mask_key: str
    same_size: bool = True
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """One frame at the run's size.

    image (3, S, S) and mask (S, S) uint8; pixels (256,) counts ids before resizing; unknown as in MaskReading;
    oddities are remarks on the files that do not keep them from being used.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    unknown: Counter[str]
    oddities: tuple[str, ...]


class Faults:
    """Where faults go: with on_bad_image="stop" the first is raised, with "skip" all are collected."""

    def __init__(self, on_bad_image: str) -> None:
        if on_bad_image not in ("stop", "skip"):
            raise UserError(f"on_bad_image {on_bad_image!r} is unknown: use stop or skip")
        self._stop = on_bad_image == "stop"
        self.messages: list[str] = []

    def add(self, fault: FaultyFile) -> None:
        if self._stop:
            raise FaultyFile(f"{fault} (or leave such files out: --on_bad_image skip)")
        self.messages.append(str(fault))


def decode(file: FrameFile, listing: Listing, size: int) -> Decoded:
    """Read a frame and its mask and stretch both to size x size.

    Images are resized bilinearly with Pillow's filter, whose support grows with the reduction, so that glare and fine
    texture do not alias; masks by nearest neighbour. Raises FaultyFile.
    """
    oddities = []
    with open_picture(file.image) as picture:
        if picture.format not in _formats(file.image):
            oddities.append(f"image holds {picture.format} data under the name {file.image.suffix}")
        original, turn = picture.size, upright(picture)
        image = _square(picture, file.image, size)

    with open_picture(file.mask, mask=True) as picture:
        if picture.size != original:
            sizes = "{} x {}, its image {} x {}".format(*picture.size, *original)
            if listing.same_size and turn in SIDEWAYS and picture.size == original[::-1]:
                raise FaultyFile(
                    f"{file.image}: turned by its EXIF, and only its mask is upright: save the image so too"
                )
            if listing.same_size:
                raise FaultyFile(f"{file.mask}: mask of {sizes}: export the mask at its image's size")
            oddities.append("mask of another size than its image; both are stretched to the run's size")
        elif turn is not None:
            oddities.append("image that its EXIF would turn; it is taken as it is stored, like its mask")
        if picture.mode == "RGBA":
            oddities.append("mask is RGBA; its alpha channel is not used")
        reading = listing.read_mask(load_mask(picture, file.mask), file.mask)
        if sum(reading.unknown.values()) > 0.01 * reading.ids.size:
            oddities.append("over 1 % of the mask's pixels carry no class")
    mask = Image.fromarray(reading.ids).resize((size, size), Image.Resampling.NEAREST)
    return Decoded(
        image=image,
        mask=np.asarray(mask),
        pixels=np.bincount(reading.ids.ravel(), minlength=256),
        unknown=reading.unknown,
        oddities=tuple(oddities),
    )


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """A frame's image as `decode` makes it, (3, size, size). Raises FaultyFile."""
    with open_picture(path) as picture:
        return _square(picture, path, size)


def _square(picture: Image.Image, path: Path, size: int) -> NDArray[np.uint8]:
    square = as_rgb(picture, path).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def open_picture(
    path: Path | str, contents: IO[bytes] | None = None, *, mask: bool = False, mend: str = _MEND
) -> Image.Image:
    """Open a picture and read its header only: a PNG, BMP, TIFF, WEBP or, where it is no mask, JPEG.

    Args:
        path: its file, or how messages call it where its contents are given.
        contents: open, of what lies in no file of its own.
        mask: whether its values are class ids, which do not survive JPEG.
        mend: what messages advise.

    Raises:
        FaultyFile: it is empty, unreadable, none of these or far too large.
    """
    try:
        if contents is None and Path(path).stat().st_size == 0:
            raise FaultyFile(f"{path}: empty (0 bytes): {mend}")
        picture = Image.open(Path(path) if contents is None else contents, formats=FORMATS)
    except (FaultyFile, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large(path, "far too many") from None
    except UnidentifiedImageError:
        raise FaultyFile(f"{path}: not a picture, whatever its name says: {mend}") from None
    except OSError as error:
        raise FaultyFile(f"{path}: {error.strerror or error}: check the file, its link and its permissions") from None
    except Exception as error:  # a plugin that is not asked to load yet, on a damaged header
        raise _damaged(path, error, mend) from None
    fault = None
    if mask and picture.format in ("JPEG", "MPO"):
        fault = FaultyFile(f"{path}: JPEG data, and class ids do not survive JPEG: save the mask as PNG")
    elif picture.width * picture.height > MAX_PIXELS:
        fault = _too_large(path, f"{picture.width} x {picture.height}")
    if fault is not None:
        picture.close()
        raise fault
    return picture


def upright(picture: Image.Image) -> Image.Transpose | None:
    """How an opened picture is turned to be upright, as its EXIF says; None where it is. Pillow turns TIFFs itself."""
    exif = Image.Exif()
    try:
        exif.load(b"" if picture.format == "TIFF" else picture.info.get("exif", b""))
        return _TURNS.get(int(exif.get(ExifTags.Base.Orientation, 1)))
    except Exception:  # damaged, and any of what Pillow's parser raises then
        return None


def load_mask(picture: Image.Image, path: Path | str, mend: str = _MEND) -> Image.Image:
    """An opened mask's pixels, with the values that its file has. Raises FaultyFile."""
    step = _grey_step(picture)
    loaded = _load(picture, path, mend)
    return loaded.point([value // step for value in range(256)]) if step > 1 else loaded


def read_lines(source: str | Path, flag: str = "") -> list[str]:
    """The lines of a text file that hold anything. Raises UserError, which names the flag that gave it."""
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {source}: cannot be read ({one_line(error)}): give a text file".strip()) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_ids(path: Path) -> NDArray[np.uint8]:
    """(H, W) class ids of a mask that was written here. Raises FaultyFile."""
    with open_picture(path, mask=True) as picture:
        return one_channel(load_mask(picture, path), path).astype(np.uint8)


def as_rgb(picture: Image.Image, path: Path) -> Image.Image:
    """An opened picture's pixels, 8 bits a channel. Raises FaultyFile where they are damaged or have more."""
    if picture.mode.startswith(("I", "F")):
        raise FaultyFile(f"{path}: {picture.mode} pixels, more than 8 bits: convert it to an 8-bit RGB image")
    return _load(picture, path).convert("RGB")


def class_ids(ignore_index: int | None, n_classes: int | None) -> Callable[[Image.Image, Path], MaskReading]:
    """Reader of masks whose values are class ids: grey of 1 to 16 bits, palette indices, or three equal channels.

    ignore_index and 255 become UNLABELLED. Raises FaultyFile for colours and for an id of n_classes or more.
    """

    def read(picture: Image.Image, path: Path) -> MaskReading:
        values = one_channel(picture, path).astype(np.int64)
        if ignore_index is not None:
            values[values == ignore_index] = UNLABELLED
        wrong = values[(values != UNLABELLED) & ((values < 0) | (values >= (n_classes or UNLABELLED)))]
        if wrong.size:
            known = f"{n_classes} classes are named" if n_classes else "class ids go from 0 to 254"
            raise FaultyFile(
                f"{path}: class id {wrong[0]} is out of range ({known}): correct the mask or classes.txt, "
                "or name the id with --ignore_index"
            )
        return MaskReading(values.astype(np.uint8), Counter())

    return read


def _grey_step(picture: Image.Image) -> int:
    """What Pillow multiplies the values of a grey picture of 2 or 4 bits by when it loads it; to be asked before."""
    raw_mode = picture.tile[0][3] if isinstance(picture, ImageFile.ImageFile) and picture.tile else None
    return {"L;2": 85, "L;4": 17}.get(raw_mode if isinstance(raw_mode, str) else "", 1)


def one_channel(picture: Image.Image, path: Path | str) -> NDArray[Any]:
    """The mask's values (H, W): its only channel, its palette's indices, or its equal channels; alpha is not used."""
    values = np.asarray(picture)
    if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
        return values
    if picture.mode in ("LA", "PA") or (picture.mode in ("RGB", "RGBA") and not np.ptp(values[..., :3], axis=2).any()):
        return values[..., 0]
    raise FaultyFile(f"{path}: a colour mask ({picture.mode}): class ids must be the pixel values of a single channel")


def list_pictures(folder: Path, faults: Faults) -> dict[str, Path]:
    """The pictures of a folder by stem, in natural order. What is neither a picture nor hidden is a fault."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in LEFT_BESIDE]
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: check the data root") from None
    pictures: dict[str, Path] = {}
    for path in sorted(entries, key=lambda entry: natural_key(entry.name)):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            what = "a folder" if path.is_dir() else "not a picture by its extension"
            faults.add(FaultyFile(f"{path}: {what}; only {' '.join(IMAGE_SUFFIXES)} belong here: move it elsewhere"))
        elif path.stem in pictures:
            faults.add(FaultyFile(f"{path}: has the same stem as {pictures[path.stem].name}: keep one of them"))
        else:
            pictures[path.stem] = path
    return pictures


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which frame_9 comes before frame_10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part
    )


def pairs(
    images: dict[str, Path], masks: dict[str, Path], mask_of: Callable[[str], str], faults: Faults
) -> Iterable[tuple[str, Path, Path]]:
    """(stem, image, mask) for every image; an image without a mask, or the reverse, is a fault."""
    for stem, image in images.items():
        if mask_of(stem) in masks:
            yield stem, image, masks[mask_of(stem)]
        else:
            faults.add(FaultyFile(f"{image}: image without a mask: add the mask or remove the image"))
    wanted = {mask_of(stem) for stem in images}
    for stem, mask in masks.items():
        if stem not in wanted:
            faults.add(FaultyFile(f"{mask}: mask without an image: add the image or remove the mask"))


def _load(picture: Image.Image, path: Path | str, mend: str = _MEND) -> Image.Image:
    try:
        picture.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise _damaged(path, error, mend) from None
    return picture


def _damaged(path: Path | str, error: Exception, mend: str) -> FaultyFile:
    return FaultyFile(f"{path}: damaged or cut short ({error}): {mend}")


def _too_large(path: Path | str, pixels: str) -> FaultyFile:
    return FaultyFile(f"{path}: {pixels} pixels, over the limit of {MAX_PIXELS // 1_000_000} million: scale it down")


def _formats(path: Path) -> tuple[str, ...]:
    suffix = path.suffix.lower()
    return {".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".tif": ("TIFF",), ".tiff": ("TIFF",)}.get(
        suffix, (suffix[1:].upper(),)
    )
