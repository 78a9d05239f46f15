"""CVAT for images 1.1: annotations.xml (https://docs.cvat.ai/docs/manual/advanced/xml_format/).

Masks, polygons, boxes and ellipses are painted by z_order, later over earlier. A box "annotate" is a window; a tag
"refused" refuses the frame. Which frames are finished is a job's state in CVAT and not in the file, so frames in which
nothing is drawn are taken for not annotated yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from xml.etree.ElementTree import Element

import numpy as np

from alges_fast.annotation.exports import ANNOTATE, ANSWER, AS_DRAWN, REFUSED
from alges_fast.annotation.imports import shapes
from alges_fast.annotation.imports.documents import xml_children
from alges_fast.annotation.imports.frames import ExpectedFrame, Reading, ReturnedFrame, check_size, refused
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window


def read_cvat_images(contents: bytes, where: str, reading: Reading) -> Iterator[ReturnedFrame]:
    """The annotated and refused frames of an annotations.xml. Raises UserError."""
    children = xml_children(contents, where)
    root = next(children)
    if root.tag != "annotations":
        raise UserError(f"{where}: no annotations of CVAT (its root is {root.tag}): export as CVAT for images 1.1")
    seen: set[str] = set()
    for child in children:
        if child.tag == "track":
            raise UserError(f"{where}: CVAT for video: export as CVAT for images 1.1")
        if child.tag != "image":
            continue
        frame = reading.new_frame(_text(child, "name", where), where, seen)
        if (returned := _read_image(child, frame, where, reading)) is not None:
            yield returned


def _read_image(image: Element, frame: ExpectedFrame, where: str, reading: Reading) -> ReturnedFrame | None:
    at = f"{where}: {frame.name}"
    check_size(frame, int(_number(image, "width", at)), int(_number(image, "height", at)), at)
    mask = np.full(frame.size, UNLABELLED, np.uint8)
    windows: dict[Window, str] = {}
    drawn: list[tuple[float, int, Element]] = []
    for shape in image:
        label = _text(shape, "label", at)
        if shape.tag == "tag" and label == REFUSED and REFUSED not in reading.classes:
            return refused(frame)
        if shape.tag == "box" and label == ANNOTATE:
            left, top, right, bottom = (round(_number(shape, side, at)) for side in ("xtl", "ytl", "xbr", "ybr"))
            if not (0 <= left < right <= frame.size[1] and 0 <= top < bottom <= frame.size[0]):
                raise UserError(f"{at}: the box {ANNOTATE!r} leaves the frame: draw it inside")
            windows[Window(frame.id, left, top, right - left, bottom - top)] = _answer(shape)
            continue
        if shape.tag not in _PIXELS:
            raise UserError(f"{at}: a {shape.tag} {label!r} has no pixels: draw a mask or a polygon instead")
        drawn.append((_number(shape, "z_order", at, "0"), reading.class_id(label, at), shape))
    for _, class_id, shape in sorted(drawn, key=lambda shape: shape[0]):
        try:
            shapes.paint(mask, _PIXELS[shape.tag](shape, frame.size, at), class_id)
        except (ValueError, OverflowError) as error:
            label = _text(shape, "label", at)
            raise UserError(f"{at}: a damaged {shape.tag} {label!r} ({error}): export it anew") from None
    return reading.returned(frame, mask, windows, at=at)


def _answer(shape: Element) -> str:
    answers = (attribute.text for attribute in shape.iter("attribute") if attribute.get("name") == ANSWER)
    return next(answers, None) or AS_DRAWN


def _mask(shape: Element, size: tuple[int, int], at: str) -> shapes.Patch:
    left, top, width, height = (int(_text(shape, name, at)) for name in ("left", "top", "width", "height"))
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > size[1] or top + height > size[0]:
        raise ValueError("it leaves the frame")
    return shapes.run_lengths(_whole_numbers(_text(shape, "rle", at)), left, top, width, height)


def _whole_numbers(text: str) -> Iterator[int]:
    """Those with commas between, piece by piece: as words they would take 25 times the text."""
    at = 0
    while at <= len(text):
        end = text.find(",", at + 10_000)
        end = len(text) if end < 0 else end
        yield from map(int, text[at:end].split(","))
        at = end + 1


def _polygon(shape: Element, size: tuple[int, int], at: str) -> shapes.Patch:
    text = _text(shape, "points", at)
    if text.count(";") > shapes.MAX_POINTS:
        raise ValueError(f"more than {shapes.MAX_POINTS} points")
    points = [point.split(",") for point in text.split(";")]
    return shapes.polygon([(float(x), float(y)) for x, y in points], size)


def _box(shape: Element, size: tuple[int, int], at: str) -> shapes.Patch:
    left, top, right, bottom = (_number(shape, side, at) for side in ("xtl", "ytl", "xbr", "ybr"))
    return shapes.rectangle(
        left, top, right - left, bottom - top, size, degrees=_number(shape, "rotation", at, "0"), about="centre"
    )


def _ellipse(shape: Element, size: tuple[int, int], at: str) -> shapes.Patch:
    x, y, radius_x, radius_y = (_number(shape, name, at) for name in ("cx", "cy", "rx", "ry"))
    return shapes.ellipse(x, y, radius_x, radius_y, size, degrees=_number(shape, "rotation", at, "0"))


_PIXELS: dict[str, Callable[[Element, tuple[int, int], str], shapes.Patch]] = {
    "mask": _mask,
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
}


def _text(element: Element, name: str, at: str) -> str:
    value = element.get(name)
    if value is None:
        raise UserError(f"{at}: a {element.tag} without {name}: export it anew, as CVAT for images 1.1")
    return value


def _number(element: Element, name: str, at: str, default: str | None = None) -> float:
    text = default if default is not None and element.get(name) is None else _text(element, name, at)
    try:
        number = float(text)
        if not np.isfinite(number):
            raise ValueError
    except ValueError:
        raise UserError(f"{at}: {name}={text!r} of a {element.tag} is no number: export it anew") from None
    return number
