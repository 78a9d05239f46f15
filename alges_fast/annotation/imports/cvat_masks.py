"""CVAT's Segmentation mask 1.1: SegmentationClass/*.png whose colours labelmap.txt names.

The format has no place for windows or refusals, and names frames without their extension. A window's rectangle comes
back as pixels of the label "annotate": nothing is drawn there. So are those of "background", unless a class has that
name: CVAT paints it where nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from alges_fast.annotation.exports import ANNOTATE
from alges_fast.annotation.imports.files import ExportFiles, ids_by_colour
from alges_fast.annotation.imports.frames import Reading, ReturnedFrame
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

LABEL_MAP, FOLDER = "labelmap.txt", "SegmentationClass"
MAX_LABEL_MAP = 1 << 20
_SHADE = r"\s*(\d{1,3})\s*"


def read_cvat_masks(files: ExportFiles, reading: Reading) -> Iterator[ReturnedFrame]:
    """The annotated frames of an export. Raises UserError."""
    label_map = next(name for name in files.names if PurePosixPath(name).name == LABEL_MAP)
    labels = _read_label_map(files.read(label_map, MAX_LABEL_MAP), files.where(label_map))
    folder = (PurePosixPath(label_map).parent / FOLDER).as_posix() + "/"
    seen: set[str] = set()
    for name in files.names:
        if not name.startswith(folder):
            continue
        where = files.where(name)
        frame = reading.new_frame(name[len(folder) :].removesuffix(".png"), str(files.path), seen, stem=True)
        mask = ids_by_colour(files.mask(name, frame), lambda colour: _class_id(colour, labels, where, reading))  # noqa: B023
        if (returned := reading.returned(frame, mask, at=where)) is not None:
            yield returned


def _class_id(
    colour: tuple[int, int, int], labels: dict[tuple[int, int, int], str], where: str, reading: Reading
) -> int:
    if colour not in labels:
        raise UserError(f"{where}: colour {colour} is not in {LABEL_MAP}: export it anew")
    label = labels[colour]
    if label == ANNOTATE or (label == "background" and label not in reading.classes):
        return UNLABELLED
    return reading.class_id(label, where)


def _read_label_map(contents: bytes, where: str) -> dict[tuple[int, int, int], str]:
    """Lines "label:r,g,b:parts:actions", and comments; a label may have colons of its own."""
    labels: dict[tuple[int, int, int], str] = {}
    try:
        lines = contents.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{where}: no UTF-8 text: export it anew") from None
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        parts = re.fullmatch(rf"(.*):{_SHADE},{_SHADE},{_SHADE}:[^:]*:[^:]*", line)
        if parts is None:
            raise UserError(f"{where}: {line!r} is no label: expected lines like liver:255,0,0::")
        colour = (int(parts[2]), int(parts[3]), int(parts[4]))
        if colour in labels:
            raise UserError(
                f"{where}: {labels[colour]} and {parts[1]} have one colour: give them two in CVAT, then export anew"
            )
        labels[colour] = parts[1]
    return labels
