"""A folder, or a zip, of masks: class ids, or colours that a palette names. A mask is named like its frame."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alges_fast.annotation.imports.files import ExportFiles, ids_by_colour
from alges_fast.annotation.imports.frames import ExpectedFrame, Reading, ReturnedFrame
from alges_fast.data.files import IMAGE_SUFFIXES, FaultyFile, one_channel, read_lines
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

NOTHING = "unlabelled"
"""What a palette calls colours that stand for no class."""


def read_masks(files: ExportFiles, reading: Reading) -> Iterator[ReturnedFrame]:
    """The frames that have masks: "frame_1.png" or "frame_1.jpg.png" for frame_1.jpg. Raises UserError.

    With a palette a mask's colours count, without one its values: grey levels, or the indices of a palette of its own.
    """
    seen: set[str] = set()
    values: set[int] = set()
    for name in files.names:
        where = files.where(name)
        if PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{where}: not a picture by its extension: give a folder of masks alone")
        frame = _frame(name, str(files.path), reading)
        if frame.id in seen:
            raise UserError(f"{where}: {frame.name} has two masks: remove one")
        seen.add(frame.id)
        picture = files.mask(name, frame)
        mask = _ids(picture, where, reading) if reading.palette is None else _of_colours(picture, where, reading)
        if values <= {0, UNLABELLED}:
            values.update(np.unique(mask).tolist())
        if (returned := reading.returned(frame, mask, at=where)) is not None:
            yield returned
    if reading.palette is None and values == {0, UNLABELLED}:
        first, second = reading.classes[:2]
        logging.getLogger(__name__).warning(
            f"{files.path}: masks of 0 and 255 alone: 0 is {first}, 255 is unlabelled. If 255 is {second}, import "
            f"them again with --palette FILE of the lines '{first} 0 0 0' and '{second} 255 255 255'"
        )


def read_palette(path: Path, reading: Reading) -> dict[tuple[int, int, int], int]:
    """Colour -> class id, from lines "name r g b", where "unlabelled" names no class. Raises UserError."""
    palette: dict[tuple[int, int, int], int] = {}
    for line in read_lines(path, "--palette"):
        name, *values = line.rsplit(maxsplit=3)
        try:
            red, green, blue = (int(value) for value in values)
        except ValueError:
            raise UserError(f"{path}: {line!r}: give lines like: liver 255 0 0") from None
        if (red, green, blue) in palette:
            raise UserError(f"{path}: colour {(red, green, blue)} is there twice: give every class its own")
        nothing = name == NOTHING and name not in reading.classes
        palette[red, green, blue] = UNLABELLED if nothing else reading.class_id(name, str(path))
    return palette


def _frame(name: str, where: str, reading: Reading) -> ExpectedFrame:
    bare = PurePosixPath(name).with_suffix("").as_posix()
    try:
        return reading.frame(bare, where)  # frame_1.jpg.png
    except UserError:
        return reading.frame(bare, where, stem=True)


def _ids(picture: Image.Image, where: str, reading: Reading) -> NDArray[np.uint8]:
    try:
        values = one_channel(picture, where)
    except FaultyFile as fault:
        raise UserError(f"{fault}, or --palette FILE names the class of each colour") from None
    wrong = values[(values != UNLABELLED) & ((values < 0) | (values >= len(reading.classes)))]
    if wrong.size:
        raise UserError(
            f"{where}: class id {wrong[0]} is out of range: {len(reading.classes)} classes are named, and 255 is "
            "unlabelled"
        )
    return values.astype(np.uint8)


def _of_colours(picture: Image.Image, where: str, reading: Reading) -> NDArray[np.uint8]:
    palette = reading.palette
    assert palette is not None

    def id_of(colour: tuple[int, int, int]) -> int:
        if colour not in palette:
            raise UserError(f"{where}: colour {colour} is not in the palette: add it, as a class or as {NOTHING!r}")
        return palette[colour]

    return ids_by_colour(picture, id_of)
