"""What comes back of sheets, in every format, is what would have come back of the frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from alges_fast.annotation import exports
from alges_fast.annotation.desk import Sheet, lay_out, on_sheet
from alges_fast.annotation.exports import ALL, ANSWER, AnnotatedFrame, cvat_xml, label_studio_tasks
from alges_fast.annotation.imports import read_export, reading_of
from alges_fast.annotation.imports.frames import ReturnedFrame
from alges_fast.annotation.imports.sheets import expected_sheet, frames_on
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window, windows_of
from tests.annotation.test_round_trip import annotated, palette

CLASSES = ("background", "liver", "tool")
SIZES = {"v/a.png": (60, 80), "v/b.png": (60, 80), "c.png": (33, 47)}


def truth(seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    generator = np.random.default_rng(seed)
    coarse = {id: generator.integers(0, 3, (height // 6 + 1, width // 6 + 1)) for id, (height, width) in SIZES.items()}
    return {
        id: coarse[id].repeat(6, 0).repeat(6, 1)[:height, :width].astype(np.uint8)
        for id, (height, width) in SIZES.items()
    }


def picked() -> list[Window]:
    """40 windows of three frames, in an order in which frames alternate."""
    cells = [windows_of(id, size, (6, 6))[::2] for id, size in SIZES.items()]
    return [window for row in zip(*cells, strict=True) for window in row][:40]


def sent(sheets: Sequence[Sheet], masks: Mapping[Window, NDArray[np.uint8]]) -> list[AnnotatedFrame]:
    return [
        AnnotatedFrame(sheet.name, on_sheet(sheet, masks), 1.0, [cell.on(sheet.name) for cell in sheet.cells])
        for sheet in sheets
    ]


def as_cvat(pictures: Sequence[AnnotatedFrame], folder: Path) -> None:
    (folder / "annotations.xml").write_text(cvat_xml(pictures, CLASSES, palette(CLASSES)), encoding="utf-8")


def as_segmentation_masks(pictures: Sequence[AnnotatedFrame], folder: Path) -> None:
    """As CVAT writes them: colours, and the rectangles as pixels of a label of their own."""
    colours = palette(CLASSES)
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(CLASSES, colours, strict=True)]
    (folder / "labelmap.txt").write_text("\n".join([*lines, "annotate:9,9,9::"]))
    table = np.full((256, 3), 9, np.uint8)
    table[: len(colours)] = colours
    (folder / "SegmentationClass").mkdir()
    for picture in pictures:
        Image.fromarray(table[picture.mask]).save(folder / "SegmentationClass" / Path(picture.name).with_suffix(".png"))


def as_label_studio(pictures: Sequence[AnnotatedFrame], folder: Path) -> None:
    tasks = label_studio_tasks(pictures, CLASSES, image_prefix="/data/?d=", model_version="m")
    (folder / "project.json").write_text(annotated(tasks))


def as_masks(pictures: Sequence[AnnotatedFrame], folder: Path) -> None:
    for picture in pictures:
        Image.fromarray(picture.mask).save(folder / f"{picture.name}.png")


def read(folder: Path, sheets: Sequence[Sheet]) -> list[ReturnedFrame]:
    """Frames, put together from all sheets."""
    reading, by_name = reading_of([expected_sheet(sheet) for sheet in sheets], CLASSES), {s.name: s for s in sheets}
    frames: dict[str, ReturnedFrame] = {}
    for picture in read_export(folder, reading):
        for part in frames_on(by_name[picture.id], picture, SIZES):
            before = frames.setdefault(part.id, replace(part, windows=[], refused_windows=[], answered=[]))
            mask = before.mask.copy()
            for window in part.windows:
                mask[window.box] = part.mask[window.box]
            frames[part.id] = replace(
                before,
                mask=mask,
                windows=[*before.windows, *part.windows],
                refused_windows=[*before.refused_windows, *part.refused_windows],
                answered=[*before.answered, *part.answered],
            )
    return list(frames.values())


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("write", [as_cvat, as_segmentation_masks, as_label_studio, as_masks])
def test_labels_are_those_of_the_frames(
    tmp_path: Path, write: Callable[[Sequence[AnnotatedFrame], Path], None], alone: bool
) -> None:
    masks, windows = truth(), picked()
    sheets = lay_out(windows, "round001", alone=alone)
    write(sent(sheets, {window: masks[str(window.id)][window.box] for window in windows}), tmp_path)
    returned = {frame.id: frame for frame in read(tmp_path, sheets)}
    assert returned.keys() == SIZES.keys()
    for id, frame in returned.items():
        expected = np.full(SIZES[id], UNLABELLED)
        for window in (of_frame := [window for window in windows if window.id == id]):
            expected[window.box] = masks[id][window.box]
        np.testing.assert_array_equal(frame.mask, expected)
        assert set(frame.windows) == set(of_frame)
        assert not frame.refused_windows


def test_a_part_comes_back_and_the_rest_is_still_out(tmp_path: Path) -> None:
    masks, windows = truth(), picked()
    sheets = lay_out(windows, "round001")
    done = set(windows[:5])
    blank = {window: np.full((window.height, window.width), 255, np.uint8) for window in windows}
    as_masks(sent(sheets[:1], blank | {window: masks[str(window.id)][window.box] for window in done}), tmp_path)
    assert {window for frame in read(tmp_path, sheets) for window in frame.windows} == done


def with_answers(xml: str, given: Mapping[int, str]) -> str:
    """The file after an annotator pressed keys: window's place in it -> answer."""
    parts = xml.split(f'<attribute name="{ANSWER}">as drawn<')
    middle = [f'<attribute name="{ANSWER}">{given.get(number, "as drawn")}<' for number in range(len(parts) - 1)]
    return "".join(part + answer for part, answer in zip(parts, [*middle, ""], strict=True))


def test_answers_by_one_key_in_cvat(tmp_path: Path) -> None:
    windows = picked()[:3]
    sheets = lay_out(windows, "round001")
    predicted = {window: np.zeros((window.height, window.width), np.uint8) for window in windows}
    xml = cvat_xml(sent(sheets, predicted), CLASSES, palette(CLASSES))
    answers = {0: ALL + "tool", 1: exports.AS_PREDICTED, 2: exports.REFUSE}
    (tmp_path / "annotations.xml").write_text(with_answers(xml, answers))
    returned = {frame.id: frame for frame in read(tmp_path, sheets)}
    first, second, third = (returned[str(window.id)] for window in windows)
    assert (first.mask[windows[0].box] == 2).all()
    assert (second.mask[windows[1].box] == 0).all()
    assert (list(first.answered), list(second.answered)) == ([windows[0]], [windows[1]])
    assert (list(third.windows), list(third.refused_windows)) == ([], [windows[2]])
    for answer, says in (("all cheese", "class 'cheese' is unknown"), ("maybe", "'maybe' is no answer")):
        (tmp_path / "annotations.xml").write_text(with_answers(xml, {0: answer}))
        with pytest.raises(UserError, match=says):
            read(tmp_path, sheets)


@pytest.mark.parametrize("alone", [False, True])
def test_answers_by_one_key_in_label_studio(tmp_path: Path, alone: bool) -> None:
    windows = picked()[:2]
    sheets = lay_out(windows, "round001", alone=alone)
    predicted = {window: np.zeros((window.height, window.width), np.uint8) for window in windows}
    tasks: list[dict[str, Any]] = json.loads(
        annotated(label_studio_tasks(sent(sheets, predicted), CLASSES, image_prefix="", model_version="m"))
    )
    chosen = {"from_name": ANSWER, "to_name": "image", "type": "choices", "value": {"choices": [ALL + "tool"]}}
    if not alone:
        chosen["id"] = tasks[0]["annotations"][0]["result"][0]["id"]  # of a region, in the place of the picture
    tasks[0]["annotations"][0]["result"].append(chosen)
    if alone:
        tasks[1]["annotations"][0] |= {"was_cancelled": True, "result": []}
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    returned = {frame.id: frame for frame in read(tmp_path, sheets)}
    first, second = (returned[str(window.id)] for window in windows)
    assert (first.mask[windows[0].box] == 2).all()
    assert list(first.answered) == [windows[0]]
    assert list(second.refused_windows if alone else second.windows) == [windows[1]]


def test_what_is_drawn_beside_the_windows_is_dropped_and_counted(tmp_path: Path) -> None:
    (window, *_) = picked()
    sheets = lay_out([window], "round001")
    (picture,) = sent(sheets, {window: truth()[str(window.id)][window.box]})
    picture.mask[:2, :3] = 1
    as_masks([picture], tmp_path)
    reading = reading_of([expected_sheet(sheet) for sheet in sheets], CLASSES)
    (returned,) = list(read_export(tmp_path, reading))
    assert returned.outside == 6
    np.testing.assert_array_equal(read(tmp_path, sheets)[0].mask[window.box], truth()[str(window.id)][window.box])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("round001_sheet1.png", (10, 10), "10 x 10 pixels, where"),
        ("round007_sheet1.png", None, "no frame that went out"),
    ],
)
def test_a_damaged_or_foreign_sheet_is_one_line(
    tmp_path: Path, name: str, size: tuple[int, int] | None, message: str
) -> None:
    sheets = lay_out(picked()[:2], "round001")
    Image.fromarray(np.zeros(size or sheets[0].size, np.uint8)).save(tmp_path / name)
    with pytest.raises(UserError, match=message):
        read(tmp_path, sheets)
