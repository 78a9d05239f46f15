"""Files that would take much memory, and honest ones that are large: each is read, or is one line, within 500 MB."""

from __future__ import annotations

import io
import json
import multiprocessing
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alges_fast.annotation.imports import ExpectedFrame, read_export, reading_of
from alges_fast.errors import UserError

MEGABYTES = 500
SIZE = (1080, 1920)
N = 40
NAMES = [f"frame_{number}.png" for number in range(N)]


def image(shapes: str, name: str = NAMES[0]) -> str:
    return f'<image id="0" name="{name}" width="1920" height="1080">{shapes}</image>'


def xml(*images: str) -> bytes:
    return f"<annotations>{''.join(images)}</annotations>".encode()


def zipped(contents: bytes, name: str) -> bytes:
    buffer = io.BytesIO()
    archive = zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open(name, "w") as file:
        for _ in range(1000):
            file.write(contents)
    return buffer.getvalue()


def task(value: str, kind: str = "brushlabels") -> bytes:
    region = f'{{"type": "{kind}", "original_width": 1920, "original_height": 1080, "value": {value}}}'
    return f'[{{"data": {{"image": "{NAMES[0]}"}}, "annotations": [{{"id": 1, "result": [{region}]}}]}}]'.encode()


def turned_by_text() -> bytes:
    value = {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": "%50000000d", "rectanglelabels": ["a"]}
    return task(json.dumps(value), "rectanglelabels")


def brush(words: str) -> bytes:
    """Of a head that fits the frame."""
    return task(f'{{"format": "rle", "rle": [0, 126, 144, 0, 57, 27, 255{words}], "brushlabels": ["a"]}}')


def polygon(points: str) -> bytes:
    return xml(image(f'<polygon label="a" points="{points}"/>'))


def polygons() -> bytes:
    """Ten thousand small ones in a frame, as a tool for cells exports them."""
    corners = [(x, y) for x in range(100) for y in range(100)]
    shapes = (
        f'<polygon label="a" points="{19 * x},{10 * y};{19 * x + 9},{10 * y};{19 * x + 9},{10 * y + 5}" z_order="{x}"/>'
        for x, y in corners
    )
    return xml(image("".join(shapes)))


def many_masks() -> bytes:
    buffer, picture = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(picture, "png")
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in NAMES:
            archive.writestr(name, picture.getvalue())
    return buffer.getvalue()


NEARLY = 15 << 20
"""Bytes: just below what is read of a frame."""
FILES: dict[str, tuple[str, Callable[[], bytes], bool]] = {
    # name: (file, contents, whether it is read)
    "ten thousand polygons": ("a.xml", polygons, True),
    "forty masks": ("a.zip", many_masks, True),
    "elements of nothing": ("a.xml", lambda: xml(image("<a/>" * (NEARLY // 4))), False),
    "attributes of nothing": ("a.xml", lambda: xml(image("<a " + 'b="" ' * (NEARLY // 5) + "/>")), False),
    "points without end": ("a.xml", lambda: polygon("1,1;" * (NEARLY // 4)), False),
    "runs of nothing": (
        "a.xml",
        lambda: xml(image(f'<mask label="a" left="0" top="0" width="9" height="9" rle="{"0," * (NEARLY // 2)}81"/>')),
        False,
    ),
    "a document of 63 MB": ("a.xml", lambda: xml(*(image(" " * (1 << 20), name) for name in NAMES)), False),
    "a member of a gigabyte": ("a.zip", lambda: zipped(bytes(1 << 20), "a.xml"), False),
    "a mask of a gigabyte": ("a.zip", lambda: zipped(bytes(1 << 20), NAMES[0]), False),
    "lists of nothing": ("a.json", lambda: task("[" + "[]," * (NEARLY // 3) + "1]"), False),
    "short texts": ("a.json", lambda: task("[" + '"ab",' * (NEARLY // 5) + "1]"), False),
    "short numbers": ("a.json", lambda: task("[" + ".5e9,".replace(".", "0.") * (NEARLY // 6) + "1]"), False),
    "a count for a list": ("a.json", lambda: task('{"format": "rle", "rle": 20000000, "brushlabels": ["a"]}'), False),
    "a format": ("a.json", turned_by_text, False),
    "a brush of all words": ("a.json", lambda: brush(", 0" * (NEARLY // 4)), False),
}  # fmt: skip


def read(path: Path, channel: Any) -> None:
    """In a process of its own: how many frames, or the line; and the memory that it took."""
    frames = [ExpectedFrame(name, name, SIZE) for name in NAMES]
    reading = reading_of(frames, ("a", "b"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        came: Any = sum(1 for _ in read_export(path, reading))
    except UserError as error:
        came = str(error)
    channel.send((came, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000))


@pytest.mark.parametrize("name", FILES)
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    file, contents, is_read = FILES[name]
    (tmp_path / file).write_bytes(contents())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alges_fast.annotation.imports", "tests.annotation.test_bombs"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=read, args=(tmp_path / file, theirs))
    process.start()
    theirs.close()
    came, megabytes = ours.recv()
    process.join()
    print(f"{name}: {megabytes:.0f} MB, {came}")
    assert isinstance(came, int) is is_read, came
    assert megabytes <= MEGABYTES
