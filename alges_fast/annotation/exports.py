"""Predicted masks as pre-annotations, in the import formats of CVAT and Label Studio.

Both formats are text around run-length codes, written here with the standard library: the tools' own libraries would
pull some fifty packages into every installation. The tests read the files back with those libraries (datumaro, which
CVAT's importers are built on, and label-studio-sdk) and compare the masks pixel by pixel.

Formats:
    CVAT, "CVAT for images 1.1": https://docs.cvat.ai/docs/manual/advanced/xml_format/
    Label Studio, tasks with predictions of brush labels: https://labelstud.io/guide/predictions and, for the code of a
    brush's mask, https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack

Where windows of a picture are to be annotated, each is a rectangle with the label "annotate", and has masks of its own
that end at it, to be corrected one by one. A window also takes an answer in the place of a drawing, by one key: all of
it is one class, the prediction is right, it is refused.
"""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from alges_fast.data.files import IMAGE_SUFFIXES
from alges_fast.windows import Window

ANNOTATE = "annotate"
"""Label of the rectangles that say where to annotate."""

REFUSED = "refused"
"""Label of the tag by which an annotator refuses a frame in CVAT; Label Studio has a button for it."""

ANSWER = "window"
"""Name of a window's answer: the attribute of its rectangle in CVAT, the choice of its region in Label Studio."""
AS_DRAWN, AS_PREDICTED, REFUSE, ALL = "as drawn", "prediction is right", "refuse", "all "
"""Answers; the last is followed by a class's name."""

_ANNOTATE_COLOUR, _REFUSED_COLOUR = "#ffd400", "#d4351c"
_RUN_BITS = (3, 4, 8, 16)  # the four lengths' widths that a Label Studio code declares; the shortest that fits is used


@dataclass(frozen=True, eq=False)
class AnnotatedFrame:
    """One image to annotate and what the model sees in it.

    name: the image's path inside the import, with forward slashes.
    mask: (H, W) uint8 class ids at the image's own size; a value that is no class id is nothing to import.
    score: 0 to 1, larger for what is wanted more; Label Studio can sort its tasks by it.
    windows: what is to be annotated of it; empty for the whole frame.
    """

    name: str
    mask: NDArray[np.uint8]
    score: float
    windows: Sequence[Window] = ()


def file_name(id: str) -> str:
    """The name that a frame of this id has in exports: its path below the pool, as a picture."""
    name = "/".join(part for part in id.split("/") if part not in ("", ".", ".."))
    return name if suffix_of(name).lower() in IMAGE_SUFFIXES else f"{name}.png"  # a frame of a video


def suffix_of(name: str) -> str:
    """As of a path, with its dot: pools of hours have names by the ten thousand, and a path takes longer to make."""
    last = name.rpartition("/")[2]
    dot = last.rfind(".")
    return last[dot:] if 0 < dot < len(last) - 1 else ""


def cvat_xml(frames: Sequence[AnnotatedFrame], classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> str:
    """`annotations.xml` of "CVAT for images 1.1": a mask for every class that occurs in a frame, and its windows."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "task"), "labels")
    kinds = [(name, "#{:02x}{:02x}{:02x}".format(*rgb), "mask") for name, rgb in zip(classes, palette, strict=True)]
    if any(frame.windows for frame in frames):
        kinds.append((ANNOTATE, _ANNOTATE_COLOUR, "rectangle"))
    if REFUSED not in classes:
        kinds.append((REFUSED, _REFUSED_COLOUR, "tag"))
    for name, colour, kind in kinds:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        ET.SubElement(label, "color").text = colour
        ET.SubElement(label, "type").text = kind
        attributes = ET.SubElement(label, "attributes")
        if name == ANNOTATE:
            _add_answers(attributes, classes)
    for number, frame in enumerate(frames):
        height, width = frame.mask.shape
        image = ET.SubElement(root, "image", id=str(number), name=frame.name, width=str(width), height=str(height))
        for window in frame.windows:
            box = ET.SubElement(
                image,
                "box",
                label=ANNOTATE,
                source="auto",
                occluded="0",
                xtl=str(window.x),
                ytl=str(window.y),
                xbr=str(window.x + window.width),
                ybr=str(window.y + window.height),
                z_order="-1",  # under the masks, which stay within reach of the pointer
            )
            ET.SubElement(box, "attribute", name=ANSWER).text = AS_DRAWN
        for class_id, top, left, where in _shapes(frame, len(classes)):
            values, lengths = _runs(where)
            # Lengths alternate from "outside" on: a mask that begins inside opens with a run of none.
            counts = ([0] if values[0] else []) + lengths.tolist()
            ET.SubElement(
                image,
                "mask",
                label=classes[class_id],
                source="auto",
                occluded="0",
                rle=", ".join(map(str, counts)),
                left=str(left),
                top=str(top),
                width=str(where.shape[1]),
                height=str(where.shape[0]),
                z_order="0",
            )
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def label_studio_config(
    classes: Sequence[str], palette: Sequence[tuple[int, int, int]], *, windows: Literal["none", "one", "many"] = "none"
) -> str:
    """The labelling interface of the tasks of `label_studio_tasks`: whole pictures, one window a picture, or many.
    A window's answers have the keys 1 to 9, in the order of the classes."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image", zoom="true")
    if windows != "none":
        choices = ET.SubElement(view, "Choices", name=ANSWER, toName="image", choice="single", showInline="true")
        if windows == "many":
            choices.attrib |= {"perRegion": "true", "whenTagName": "windows"}
        keys = {ALL + name: str(number) for number, name in enumerate(classes[:9], 1)}
        for answer in answers(classes):
            choice = ET.SubElement(choices, "Choice", value=answer)
            if answer in keys:
                choice.set("hotkey", keys[answer])
    brush = ET.SubElement(view, "BrushLabels", name="classes", toName="image")
    for name, colour in zip(classes, palette, strict=True):
        ET.SubElement(brush, "Label", value=name, background="#{:02x}{:02x}{:02x}".format(*colour))
    if windows != "none":
        rectangles = ET.SubElement(view, "RectangleLabels", name="windows", toName="image", fillOpacity="0")
        ET.SubElement(rectangles, "Label", value=ANNOTATE, background=_ANNOTATE_COLOUR)
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def answers(classes: Sequence[str]) -> list[str]:
    """What a window may be answered, the default first."""
    return [AS_DRAWN, *(ALL + name for name in classes), AS_PREDICTED, REFUSE]


def label_studio_tasks(
    frames: Sequence[AnnotatedFrame], classes: Sequence[str], *, image_prefix: str, model_version: str
) -> str:
    """Tasks as JSON, one a frame, each with the predicted masks, and its windows if it has any, as a prediction.

    `image_prefix` is what Label Studio serves the images under, such as "/data/local-files/?d=images/".
    """
    tasks: list[dict[str, Any]] = []
    for frame in frames:
        height, width = frame.mask.shape
        common = {"to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0}
        results: list[dict[str, Any]] = [
            {
                "id": f"window{number}",
                "type": "rectanglelabels",
                "from_name": "windows",
                **common,
                "readonly": True,
                "value": {  # in percent of the image
                    "x": 100 * window.x / width,
                    "y": 100 * window.y / height,
                    "width": 100 * window.width / width,
                    "height": 100 * window.height / height,
                    "rotation": 0,
                    "rectanglelabels": [ANNOTATE],
                },
            }
            for number, window in enumerate(frame.windows)
        ]
        for number, (class_id, top, left, part) in enumerate(_shapes(frame, len(classes))):
            where = np.zeros_like(frame.mask, bool)
            where[top : top + part.shape[0], left : left + part.shape[1]] = part
            value = {"format": "rle", "rle": _brush_code(where), "brushlabels": [classes[class_id]]}
            results.append(
                {"id": f"shape{number}", "type": "brushlabels", "from_name": "classes", **common, "value": value}
            )
        prediction = {"model_version": model_version, "score": frame.score, "result": results}
        # The picture's address may change in the tool (uploads do); "frame" is what finds the frame again.
        data = {"image": image_prefix + quote(frame.name), "frame": frame.name}
        tasks.append({"data": data, "predictions": [prediction]})
    return json.dumps(tasks)  # an indent would take the encoder that is written in Python, ten times as long


def _shapes(frame: AnnotatedFrame, n_classes: int) -> Iterator[tuple[int, int, int, NDArray[np.bool_]]]:
    """Class id, top, left and pixels of every class in the picture, or in each of its windows."""
    height, width = frame.mask.shape
    for window in frame.windows or [Window(frame.name, 0, 0, width, height)]:
        mask = frame.mask[window.box]
        for class_id in np.flatnonzero(np.bincount(mask.ravel(), minlength=n_classes)[:n_classes]).tolist():
            where = mask == class_id
            rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
            top, left = int(rows[0]), int(columns[0])
            yield class_id, window.y + top, window.x + left, where[top : rows[-1] + 1, left : columns[-1] + 1]


def _add_answers(attributes: ET.Element, classes: Sequence[str]) -> None:
    attribute = ET.SubElement(attributes, "attribute")
    ET.SubElement(attribute, "name").text = ANSWER
    ET.SubElement(attribute, "mutable").text = "False"
    ET.SubElement(attribute, "input_type").text = "select"
    ET.SubElement(attribute, "default_value").text = AS_DRAWN
    ET.SubElement(attribute, "values").text = "\n".join(answers(classes))


def _runs(where: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Values and lengths of the runs of equal pixels, row after row."""
    flat = where.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    return flat[starts], np.diff(np.append(starts, flat.size))


def _brush_code(where: NDArray[np.bool_]) -> list[int]:
    """A mask as Label Studio's brush code: RGBA bytes, each 0 or 255, run-length packed into bits.

    Header: 32 bits number of bytes, 5 bits word size - 1, four times 4 bits run width - 1. Then, for every run: a 1,
    two bits that name the run width, length - 1 in that width, the byte.
    """
    values, lengths = _runs(where)
    most = 1 << _RUN_BITS[-1]
    parts = -(-4 * lengths // most)  # of a run that is longer than a code may say
    values, run = np.repeat(values, parts), np.full(parts.sum(), most)
    run[np.cumsum(parts) - 1] = (4 * lengths - 1) % most + 1
    widths = np.array(_RUN_BITS)
    choice = np.searchsorted(1 << widths, run)
    code = (((4 | choice) << widths[choice] | run - 1) << 8) | 255 * values.astype(np.int64)
    sizes = 1 + 2 + widths[choice] + 8
    head = f"{where.size * 4:032b}{8 - 1:05b}" + "".join(f"{width - 1:04b}" for width in _RUN_BITS)
    ends = len(head) + np.cumsum(sizes)
    bits = np.zeros(int(ends[-1]), np.uint8)
    bits[: len(head)] = [int(bit) for bit in head]
    for at in range(int(sizes.max())):  # bits of every code from its last one on
        has = sizes > at
        bits[ends[has] - 1 - at] = code[has] >> at & 1
    packed: list[int] = np.packbits(bits).tolist()
    return packed


def cvat_archive(out: Path, xml: str, names: Sequence[str]) -> bytes:
    """CVAT's import: annotations.xml beside these of `out`/images. Equal contents give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("annotations.xml"), xml, zipfile.ZIP_DEFLATED)
        for name in names:
            archive.writestr(zipfile.ZipInfo(f"images/{name}"), (out / "images" / name).read_bytes())
    return buffer.getvalue()


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the first one's columns. A text that spreadsheets would take for a formula begins with an apostrophe,
    which they show as none; `csv_rows` takes it away."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def csv_rows(text: str) -> Iterator[dict[str, str]]:
    """What `csv_text` was given, as text."""
    for row in csv.DictReader(io.StringIO(text, newline="")):
        yield {name: value[1:] if _APOSTROPHE.match(value or "") else value for name, value in row.items()}


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
_FORMULA, _APOSTROPHE = re.compile(r"'*[=+\-@\t\r]"), re.compile(r"'+[=+\-@\t\r]")


def _no_formula(value: Any) -> Any:
    """Numbers of ours, which are negative sometimes, are numbers."""
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"
