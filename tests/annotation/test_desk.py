"""Windows on sheets: every window is there once, magnified in its surroundings, and what is drawn on it is its own."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alges_fast.annotation.desk import CELLS, Sheet, cut_out, draw, from_sheet, lay_out, on_sheet, view_of
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window, windows_of


def some_windows(n: int, size: tuple[int, int] = (480, 854), grid: tuple[int, int] = (16, 16)) -> list[Window]:
    frames = -(-n // 7)
    cells = [
        window for frame in range(frames) for window in windows_of(f"v/{frame}.png", size, grid)[: grid[0] * 16 : 37]
    ]
    return cells[:n]


@given(st.integers(1, 80), st.booleans(), st.sampled_from([(480, 854), (192, 192), (1080, 1920), (31, 500)]))
@settings(max_examples=30, deadline=None)
def test_every_window_is_on_one_sheet_and_cells_are_apart(n: int, alone: bool, size: tuple[int, int]) -> None:
    windows = some_windows(n, size)
    sheets = lay_out(windows, "round003", alone=alone)
    assert [cell.window for sheet in sheets for cell in sheet.cells] == windows
    assert [cell.number for sheet in sheets for cell in sheet.cells] == list(range(1, len(windows) + 1))
    assert len({sheet.name for sheet in sheets}) == len(sheets)
    assert all(sheet.name.startswith("round003_") for sheet in sheets)
    for sheet in sheets:
        covered = np.zeros(sheet.size, np.int64)
        for cell in sheet.cells:
            height, width = cell.window.height * cell.scale, cell.window.width * cell.scale
            around = np.s_[cell.y - height : cell.y + 2 * height, cell.x - width : cell.x + 2 * width]
            covered[around] += 1
            assert covered[around].size == 9 * height * width  # its own side of context, all of it on the sheet
        assert covered.max() == 1
    assert [Sheet.from_json(json.loads(json.dumps(sheet.to_json()))) for sheet in sheets] == sheets


@pytest.mark.parametrize("size", [(480, 854), (192, 192), (720, 1280), (1080, 1920)])
def test_a_round_of_256_windows_is_a_handful_of_sheets(size: tuple[int, int]) -> None:
    sheets = lay_out([Window(str(i), 0, 0, size[1] // 16, size[0] // 16) for i in range(256)], "round000")
    assert all(len(sheet.cells) in CELLS for sheet in sheets[:-1])
    assert 8 <= len(sheets) <= 11
    assert max(max(sheet.size) for sheet in sheets) < 6000


@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_what_is_drawn_at_magnification_comes_back_as_it_is(seed: int) -> None:
    generator = np.random.default_rng(seed)
    windows = some_windows(9, (48, 80), (4, 4))
    masks = {w: generator.choice([0, 1, 5, UNLABELLED], (w.height, w.width)).astype(np.uint8) for w in windows}
    (sheet,) = lay_out(windows, "round000")
    returned = from_sheet(sheet, on_sheet(sheet, masks))
    for window in windows:
        np.testing.assert_array_equal(returned[window], masks[window])


@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_a_subdivided_pixel_takes_the_class_that_most_of_it_has(seed: int) -> None:
    generator = np.random.default_rng(seed)
    (sheet,) = lay_out([Window("a.png", 2, 3, 5, 4)], "round000")
    (cell,) = sheet.cells
    mask = generator.choice([3, 1, UNLABELLED], sheet.size, p=[0.4, 0.3, 0.3]).astype(np.uint8)
    (returned,) = from_sheet(sheet, mask).values()
    inside = mask[cell.box]
    for y in range(4):
        for x in range(5):
            square = inside[y * cell.scale : (y + 1) * cell.scale, x * cell.scale : (x + 1) * cell.scale]
            counts = Counter(square.ravel().tolist())
            assert returned[y, x] == min(counts, key=lambda class_id: (-counts[class_id], class_id))


def pictured(y: int, x: int) -> tuple[NDArray[np.uint8], Window]:
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(40)[:, None], np.arange(60)
    return image, Window("a.png", x, y, 10, 8)


@pytest.mark.parametrize(("y", "x"), [(16, 20), (0, 0), (32, 50)])
def test_a_view_shows_the_frame_around_the_window(y: int, x: int) -> None:
    image, window = pictured(y, x)
    view = view_of(window, image, np.zeros((40, 60), np.uint8))
    rows, columns = np.mgrid[y - 8 : y + 16, x - 10 : x + 20]
    known = (rows >= 0) & (rows < 40) & (columns >= 0) & (columns < 60)
    np.testing.assert_array_equal(view.surroundings[known], image[rows[known], columns[known]])
    assert (view.surroundings[~known] == view.surroundings[~known][:1]).all()
    assert view.mask.shape == (8, 10)


def test_the_window_is_drawn_where_its_cell_is_and_its_pixels_are_not_drawn_over() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    window = Window("a.png", 20, 16, 10, 8)
    image[16:24, 20:30] = (10, 200, 30)
    for alone in (False, True):
        (sheet,) = lay_out([window], "round000", alone=alone)
        picture = np.asarray(draw(sheet, {window: view_of(window, image, image[..., 0])}))
        assert picture.shape[:2] == sheet.size
        rows, columns = sheet.cells[0].box
        edge = 2 * sheet.cells[0].scale  # blended with what is beside the window
        inner = picture[rows, columns][edge:-edge, edge:-edge]
        assert (inner == (10, 200, 30)).all()
        assert (picture[rows.start - 1, columns] == (255, 212, 0)).all()


def test_a_crop_is_cut_out_of_its_sheet_as_it_is_drawn_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (110, 170, 3), np.uint8)  # windows of several sizes
    windows = windows_of("video/one.mp4@00001.000s", image.shape[:2], (7, 9))[::2]
    views = {window: view_of(window, image, np.zeros(image.shape[:2], np.uint8)) for window in windows}
    crops = {crop.cells[0].number: crop for crop in lay_out(windows, "round000", alone=True)}
    for sheet in lay_out(windows, "round000"):
        picture = draw(sheet, views)
        for cell in sheet.cells:
            crop = crops.pop(cell.number)
            assert np.array_equal(cut_out(picture, cell, crop), draw(crop, views))
    assert not crops
