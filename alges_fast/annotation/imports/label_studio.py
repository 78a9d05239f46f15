"""Label Studio's JSON: tasks with annotations of brushes, polygons, rectangles and ellipses.

Its PNG export cannot be matched to the images (label-studio#2482). Results are painted in their order, later over
earlier; a rectangle "annotate" is a window. Of several annotations of a task the newest that is not cancelled counts;
a task with cancelled ones alone is refused, one with none is not annotated yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from alges_fast.annotation.exports import ANNOTATE
from alges_fast.annotation.imports import shapes
from alges_fast.annotation.imports.frames import ExpectedFrame, Reading, ReturnedFrame, check_size, refused
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window


def read_label_studio(contents: bytes, where: str, reading: Reading) -> list[ReturnedFrame]:
    """The annotated and refused frames of a JSON export. Raises UserError."""
    try:
        tasks = json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON, or cut short ({error}): export it anew") from None
    return read_tasks(tasks, where, reading)


def read_tasks(tasks: Any, where: str, reading: Reading) -> list[ReturnedFrame]:
    """`read_label_studio` of parsed tasks, as its server's API gives them too."""
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list)
        for task in tasks
    ):
        raise UserError(f"{where}: no tasks with data and annotations: export from Label Studio as JSON (not JSON-MIN)")
    found: dict[str, ReturnedFrame | None] = {}
    for task in tasks:
        frame = _frame(task["data"], where, reading)
        if frame.id in found:
            raise UserError(f"{where}: {frame.name} is there twice: delete one of its tasks")
        try:
            found[frame.id] = _read_task(task["annotations"], frame, f"{where}: {frame.name}", reading)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{where}: {frame.name}: a damaged annotation ({what}): export it anew") from None
    return [frame for frame in found.values() if frame is not None]


def _frame(data: Mapping[str, Any], where: str, reading: Reading) -> ExpectedFrame:
    """By the name that `label_studio_tasks` leaves in the task, else by where its picture is."""
    if isinstance(data.get("frame"), str):
        return reading.frame(data["frame"], where)
    source = data.get("image")
    if not isinstance(source, str):
        raise UserError(f"{where}: a task whose data has no image: export the project that the tasks went to")
    address = urlsplit(source)
    name = parse_qs(address.query)["d"][0] if "d=" in address.query else unquote(address.path)
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
    windows: list[Window] = []
    for result in newest["result"]:
        kind, value = result["type"], result.get("value", {})
        if kind in ("choices", "textarea", "relation", "rating"):  # remarks: they have no pixels
            continue
        if kind not in _PIXELS:
            raise UserError(f"{at}: a region of type {kind} has no class or no pixels: use brush or polygon labels")
        check_size(frame, int(result["original_width"]), int(result["original_height"]), at)
        if result.get("image_rotation", 0) % 360:
            raise UserError(f"{at}: annotated on a turned picture: turn it back")
        labels = value[kind]
        if len(labels) != 1:
            raise UserError(f"{at}: a region with {len(labels)} classes: give it one")
        if labels[0] == ANNOTATE and kind == "rectanglelabels":
            windows.append(_window(value, frame, at))
            continue
        class_id = reading.class_id(labels[0], at)
        mask[_PIXELS[kind](value, frame.size)] = class_id
    return reading.returned(frame, mask, windows, submitted=True)


def _window(value: Mapping[str, Any], frame: ExpectedFrame, at: str) -> Window:
    height, width = frame.size
    left, right = (round(edge * width / 100) for edge in (value["x"], value["x"] + value["width"]))
    top, bottom = (round(edge * height / 100) for edge in (value["y"], value["y"] + value["height"]))
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(f"{at}: the rectangle {ANNOTATE!r} leaves the frame: draw it inside")
    return Window(frame.id, left, top, right - left, bottom - top)


def _brush(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    if value["format"] != "rle":
        raise ValueError(f"a brush of format {value['format']}")
    return shapes.brush(value["rle"], size)


def _polygon(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    return shapes.polygon([(x * size[1] / 100, y * size[0] / 100) for x, y in value["points"]], size)


def _rectangle(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    x, width = (value[name] * size[1] / 100 for name in ("x", "width"))
    y, height = (value[name] * size[0] / 100 for name in ("y", "height"))
    return shapes.rectangle(x, y, width, height, size, degrees=value.get("rotation", 0), about="corner")


def _ellipse(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    x, radius_x = (value[name] * size[1] / 100 for name in ("x", "radiusX"))
    y, radius_y = (value[name] * size[0] / 100 for name in ("y", "radiusY"))
    return shapes.ellipse(x, y, radius_x, radius_y, size, degrees=value.get("rotation", 0))


_PIXELS = {
    "brushlabels": _brush,
    "polygonlabels": _polygon,
    "rectanglelabels": _rectangle,
    "ellipselabels": _ellipse,
}
