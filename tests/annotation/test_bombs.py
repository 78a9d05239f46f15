"""Files that would take much memory, and honest ones that are large: each is read, or is one line, within 500 MB."""

from __future__ import annotations

import json
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alges_fast.annotation.imports import ExpectedFrame, read_export, reading_of
from alges_fast.errors import UserError
from tests.annotation.test_bad_imports import png, xml, zipped

MEGABYTES = 500
SIZE = (1080, 1920)
NAMES = [f"frame_{number}.png" for number in range(40)]
NEARLY = 15 << 20
"""Bytes: just below what is read of a frame."""


def of_one(shapes: str) -> bytes:
    return xml(shapes, name=NAMES[0], size='width="1920" height="1080"')


def of_all(shapes: str) -> bytes:
    images = [f'<image id="0" name="{name}" width="1920" height="1080">{shapes}</image>' for name in NAMES]
    return f"<annotations>{''.join(images)}</annotations>".encode()


def task(value: str, kind: str = "brushlabels") -> bytes:
    region = f'{{"type": "{kind}", "original_width": 1920, "original_height": 1080, "value": {value}}}'
    return f'[{{"data": {{"image": "{NAMES[0]}"}}, "annotations": [{{"id": 1, "result": [{region}]}}]}}]'.encode()


def turned_by_text() -> bytes:
    value = {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": "%50000000d", "rectanglelabels": ["a"]}
    return task(json.dumps(value), "rectanglelabels")


def brush(words: str) -> bytes:
    """Of a head that fits the frame."""
    return task(f'{{"format": "rle", "rle": [0, 126, 144, 0, 57, 27, 255{words}], "brushlabels": ["a"]}}')


def mask(runs: str) -> str:
    return f'<mask label="a" left="0" top="0" width="9" height="9" rle="{runs}81"/>'


def polygons() -> bytes:
    """Ten thousand small ones in a frame, as a tool for cells exports them."""
    return of_one("".join(
        f'<polygon label="a" points="{19 * x},{10 * y};{19 * x + 9},{10 * y};{19 * x + 9},{10 * y + 5}" z_order="{x}"/>'
        for x in range(100) for y in range(100)
    ))  # fmt: skip


FILES: dict[str, tuple[str, Callable[[], bytes], bool]] = {
    # name: (file, contents, whether it is read)
    "ten thousand polygons": ("a.xml", polygons, True),
    "forty masks": ("a.zip", lambda: zipped(dict.fromkeys(NAMES, png(np.zeros(SIZE)))), True),
    "elements of nothing": ("a.xml", lambda: of_one("<a/>" * (NEARLY // 4)), False),
    "attributes of nothing": ("a.xml", lambda: of_one("<a " + 'b="" ' * (NEARLY // 5) + "/>"), False),
    "points without end": ("a.xml", lambda: of_one(f'<polygon label="a" points="{"1,1;" * (NEARLY // 4)}"/>'), False),
    "runs of nothing": ("a.xml", lambda: of_one(mask("0," * (NEARLY // 2))), False),
    "a document of 63 MB": ("a.xml", lambda: of_all(" " * (1 << 20)), False),
    "a member of 600 MB": ("a.zip", lambda: zipped({"a.xml": bytes(600 << 20)}), False),
    "a mask of 600 MB": ("a.zip", lambda: zipped({NAMES[0]: bytes(600 << 20)}), False),
    "lists of nothing": ("a.json", lambda: task("[" + "[]," * (NEARLY // 3) + "1]"), False),
    "short texts": ("a.json", lambda: task("[" + '"ab",' * (NEARLY // 5) + "1]"), False),
    "short numbers": ("a.json", lambda: task("[" + "0.5e9," * (NEARLY // 6) + "1]"), False),
    "a count for a list": ("a.json", lambda: task('{"format": "rle", "rle": 20000000, "brushlabels": ["a"]}'), False),
    "a format": ("a.json", turned_by_text, False),
    "a brush of all words": ("a.json", lambda: brush(", 0" * (NEARLY // 4)), False),
}


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
