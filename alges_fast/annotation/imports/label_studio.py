"""Label Studio's JSON: tasks with annotations of brushes, polygons, rectangles and ellipses.

Its PNG export cannot be matched to the images (label-studio#2482). Results are painted in their order, later over
earlier; a rectangle "annotate" is a window. Of several annotations of a task the newest that is not cancelled counts;
a task with cancelled ones alone is refused, one with none is not annotated yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from alges_fast.annotation.exports import ANNOTATE, ANSWER, AS_DRAWN
from alges_fast.annotation.imports import shapes
from alges_fast.annotation.imports.documents import json_mappings
from alges_fast.annotation.imports.frames import ExpectedFrame, Reading, ReturnedFrame, check_size, refused
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window


def read_label_studio(contents: bytes, where: str, reading: Reading) -> Iterator[ReturnedFrame]:
    """The annotated and refused frames of a JSON export. Raises UserError."""
    return read_tasks(json_mappings(contents, where), where, reading)


def read_tasks(tasks: Iterable[Mapping[str, Any]], where: str, reading: Reading) -> Iterator[ReturnedFrame]:
    """`read_label_studio` of parsed tasks, as its server's API gives them too."""
    seen: set[str] = set()
    for task in tasks:
        if not isinstance(task.get("data"), dict) or not isinstance(task.get("annotations"), list):
            raise UserError(
                f"{where}: no tasks with data and annotations: export from Label Studio as JSON (not JSON-MIN)"
            )
        frame = _frame(task["data"], where, reading)
        if frame.id in seen:
            raise UserError(f"{where}: {frame.name} is there twice: delete one of its tasks")
        seen.add(frame.id)
        try:
            returned = _read_task(task["annotations"], frame, f"{where}: {frame.name}", reading)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{where}: {frame.name}: a damaged annotation ({what}): export it anew") from None
        if returned is not None:
            yield returned


def _frame(data: Mapping[str, Any], where: str, reading: Reading) -> ExpectedFrame:
    """By the name that `label_studio_tasks` leaves in the task, else by where its picture is."""
    if isinstance(data.get("frame"), str):
        return reading.frame(data["frame"], where)
    source = data.get("image")
    if not isinstance(source, str):
        raise UserError(f"{where}: a task whose data has no image: export the project that the tasks went to")
    try:
        address = urlsplit(source)
        name = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    except ValueError:  # "http://[", or far too many fields
        name = source
    try:
        return reading.frame(name, where)
    except UserError:
        # An uploaded picture: /data/upload/PROJECT/8 digits of a uuid-name.
        uploaded = re.sub(r"^.*/[0-9a-f]{8}-", "", name)
        if uploaded == name:
            raise
        return reading.frame(uploaded, where)


def _read_task(
    annotations: Sequence[Mapping[str, Any]], frame: ExpectedFrame, at: str, reading: Reading
) -> ReturnedFrame | None:
    drawn = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if not drawn:
        return refused(frame) if annotations else None
    newest = max(drawn, key=lambda annotation: (str(annotation.get("updated_at", "")), annotation.get("id", 0)))
    mask = np.full(frame.size, UNLABELLED, np.uint8)
    windows: dict[Any, Window] = {}
    answers: dict[Any, str] = {}
    for result in newest["result"]:
        kind, value = result["type"], result.get("value", {})
        if kind == "choices" and result.get("from_name") == ANSWER:
            (answers[result.get("id")],) = value["choices"]
        if kind in ("choices", "textarea", "relation", "rating"):  # remarks: they have no pixels
            continue
        if kind not in _PIXELS:
            raise UserError(f"{at}: a region of type {kind} has no class or no pixels: use brush or polygon labels")
        width, height = (int(_number(result, f"original_{side}")) for side in ("width", "height"))
        check_size(frame, width, height, at)
        if _number(result, "image_rotation", 0) % 360:
            raise UserError(f"{at}: annotated on a turned picture: turn it back")
        labels = value[kind]
        if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
            raise UserError(f"{at}: a region with {_n_classes(labels)} classes: give it one")
        if labels[0] == ANNOTATE and kind == "rectanglelabels":
            windows[result.get("id", len(windows))] = _window(value, frame, at)
            continue
        class_id = reading.class_id(labels[0], at)
        shapes.paint(mask, _PIXELS[kind](value, frame.size), class_id)
    answered = {window: answers.pop(id, AS_DRAWN) for id, window in windows.items()}
    if answers:  # of the picture, which then is one window's
        only = list(answered) or list(frame.windows)
        if len(only) != 1 or len(answers) != 1:
            raise UserError(f"{at}: {', '.join(answers.values())} of no window: choose it for a rectangle {ANNOTATE!r}")
        answered[only[0]] = next(iter(answers.values()))
    returned = reading.returned(frame, mask, answered, at=at, submitted=True)
    return returned and replace(returned, seconds=_seconds(newest.get("lead_time")))


def _seconds(value: Any) -> float | None:
    is_time = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    return float(value) if is_time else None


def _window(value: Mapping[str, Any], frame: ExpectedFrame, at: str) -> Window:
    height, width = frame.size
    x, y, across, down = (_number(value, name) for name in ("x", "y", "width", "height"))
    left, right = (round(edge * width / 100) for edge in (x, x + across))
    top, bottom = (round(edge * height / 100) for edge in (y, y + down))
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(f"{at}: the rectangle {ANNOTATE!r} leaves the frame: draw it inside")
    return Window(frame.id, left, top, right - left, bottom - top)


def _brush(value: Mapping[str, Any], size: tuple[int, int]) -> shapes.Patch:
    if value["format"] != "rle":
        raise ValueError("a brush of another format than rle")
    return shapes.brush(value["rle"], size)


def _polygon(value: Mapping[str, Any], size: tuple[int, int]) -> shapes.Patch:
    points = value["points"]
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ValueError("points that are no list of two numbers each")
    return shapes.polygon([(_checked(x) * size[1] / 100, _checked(y) * size[0] / 100) for x, y in points], size)


def _rectangle(value: Mapping[str, Any], size: tuple[int, int]) -> shapes.Patch:
    x, width = (_number(value, name) * size[1] / 100 for name in ("x", "width"))
    y, height = (_number(value, name) * size[0] / 100 for name in ("y", "height"))
    return shapes.rectangle(x, y, width, height, size, degrees=_number(value, "rotation", 0), about="corner")


def _ellipse(value: Mapping[str, Any], size: tuple[int, int]) -> shapes.Patch:
    x, radius_x = (_number(value, name) * size[1] / 100 for name in ("x", "radiusX"))
    y, radius_y = (_number(value, name) * size[0] / 100 for name in ("y", "radiusY"))
    return shapes.ellipse(x, y, radius_x, radius_y, size, degrees=_number(value, "rotation", 0))


def _number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A field that must be a number: of text, % would format and * repeat."""
    return _checked(fields[name] if default is None else fields.get(name, default))


def _checked(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= shapes.FAR:
        raise ValueError(f"{str(value)[:40]!r} where a number should be")
    return float(value)


def _n_classes(labels: Any) -> str:
    return str(len(labels)) if isinstance(labels, list) else "no list of"


_PIXELS = {"brushlabels": _brush, "polygonlabels": _polygon, "rectanglelabels": _rectangle, "ellipselabels": _ellipse}
