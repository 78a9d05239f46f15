"""The simulated annotator: effort and masks against cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from alges_fast.data import FrameSet
from alges_fast.labels import UNLABELLED
from alges_fast.training.labelled import Labelled, corrected, outline
from alges_fast.windows import Window, windows_of

X = UNLABELLED


def pool(*masks: list[list[int]]) -> FrameSet:
    names = tuple("abcdef"[: len(masks)])
    size = len(masks[0])
    images = np.zeros((len(masks), 3, size, size), np.uint8)
    return FrameSet(names, names, names, images, np.array(masks, np.uint8))


STRIPES = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 1, 1], [X, X, 1, 1]]


@pytest.mark.parametrize(
    ("mask", "length"),
    [
        ([[0, 0], [0, 0]], 0),
        ([[0, 1], [0, 1]], 2),
        ([[0, 1], [1, 0]], 4),
        ([[0, X], [1, X]], 1),  # a class beside what has none is no boundary
        ([[X, 1], [1, X]], 0),
        (STRIPES, 5),  # three down the middle, two above the 2s
    ],
)
def test_outline_counts_pairs_of_neighbours_that_differ(mask: list[list[int]], length: int) -> None:
    assert outline(np.array(mask, np.uint8)) == length
    assert outline(np.array(mask, np.uint8).T) == length


def test_outlines_of_many_pieces_of_a_frame_are_those_of_each() -> None:
    draw = np.random.default_rng(0)
    mask, predicted = draw.integers(0, 3, (2, 23, 31), np.uint8)
    mask[draw.random(mask.shape) < 0.2] = UNLABELLED
    boxes = [window.box for window in windows_of("a", mask.shape, (6, 9))] + [np.s_[:, :], np.s_[22:23, 30:31]]
    assert outline(mask, boxes) == sum(outline(mask[box]) for box in boxes) > 0
    assert corrected(mask, predicted, boxes) == sum(corrected(mask[box], predicted[box]) for box in boxes) > 0
    assert outline(mask, ()) == 0


def test_outline_of_a_disc_is_its_perimeter_in_pixels_sides() -> None:
    """Of horizontal and vertical steps, the perimeter of a convex shape is that of its bounding box."""
    y, x = np.mgrid[:41, :41]
    disc = ((x - 20) ** 2 + (y - 20) ** 2 <= 15**2).astype(np.uint8)
    assert outline(disc) == 4 * 31


def test_effort_of_frames_and_windows() -> None:
    """By the default prices: 5 s a picture, 2 s a look, 100 s a side of 4 pixels."""
    frames = pool(STRIPES, STRIPES, [[0] * 4] * 4)
    whole = Labelled(frames).with_pieces(["b"])
    effort = whole.effort()
    assert (effort.labelled_share, effort.n_frames, effort.windows, effort.outline) == (1 / 3, 1, 1, 5)
    assert (effort.pictures, effort.openings, effort.corrected) == (1, 1, 5)  # nothing was predicted
    assert effort.seconds == effort.seconds_corrected == 5 + 2 + 125
    assert not whole.windows
    window = Window("a", 1, 1, 2, 2)  # 0 1 / 2 1: three of its four pairs differ
    both = whole.with_pieces([window, Window("a", 0, 3, 4, 1)], corrected=1)
    effort = both.effort()
    assert (effort.labelled_share, effort.n_frames, effort.windows) == ((16 + 4 + 4) / 48, 2, 3)
    assert (effort.outline, effort.corrected) == (5 + 3, 5 + 1)
    assert (effort.pictures, effort.openings) == (2, 2)  # both windows are on one sheet, and of one frame
    assert effort.seconds == 2 * 5 + 3 * 2 + 200
    assert effort.seconds_corrected == 2 * 5 + 3 * 2 + 150
    assert both.windows
    assert both.pieces == ("b", window, Window("a", 0, 3, 4, 1))


def test_pictures_and_openings_are_counted_query_by_query() -> None:
    frames = pool(*[[[0] * 8] * 8] * 3)
    windows = [window for name in "abc" for window in windows_of(name, (8, 8), (8, 8))]
    labelled = Labelled(frames).with_pieces(windows[:31]).with_pieces(windows[31:40])
    effort = labelled.effort()
    assert (effort.pictures, effort.openings, effort.n_frames) == (3, 2, 1)  # 30 and 1 on sheets, then 9


@pytest.mark.parametrize(
    ("mask", "predicted", "length"),
    [
        (STRIPES, STRIPES, 0),  # all of it is right
        ([[0, 0], [0, 0]], [[1, 1], [1, 1]], 0),  # all of it is wrong, and one key says what it is
        ([[0, 1], [0, 1]], [[1, 0], [1, 0]], 2),  # all of it is wrong: the whole outline is drawn
        ([[0, 1], [0, 1]], [[1, 1], [1, 1]], 2),  # a half is wrong: its outline is drawn
        ([[0, 0, 0]] * 3, [[0, 0, 0], [0, 1, 0], [0, 0, 0]], 4),  # around a wrong pixel
        ([[0, X], [1, X]], [[0, 1], [0, 0]], 1),  # what has no class is not drawn
    ],
)
def test_corrected_is_the_outline_of_what_is_wrong(
    mask: list[list[int]], predicted: list[list[int]], length: int
) -> None:
    assert corrected(np.array(mask, np.uint8), np.array(predicted, np.uint8)) == length


def test_windows_that_touch_are_drawn_apart() -> None:
    """The boundary between classes that runs along the edge of two windows is in neither."""
    frames = pool(STRIPES)
    left, right = Window("a", 0, 0, 2, 4), Window("a", 2, 0, 2, 4)
    assert Labelled(frames, (left, right)).effort().outline == 2
    assert Labelled(frames, ("a",)).effort().outline == 5


def test_masks_are_cut_to_what_is_labelled() -> None:
    frames = pool(STRIPES, STRIPES, STRIPES)
    labelled = Labelled(frames, ("c", Window("a", 1, 2, 2, 2), Window("a", 0, 0, 1, 1)))
    shown = labelled.frames()
    assert shown.ids == ("c", "a")
    assert labelled.positions == [2, 0]
    assert shown.masks[0].tolist() == STRIPES
    assert shown.masks[1].tolist() == [[0, X, X, X], [X, X, X, X], [X, 2, 1, X], [X, X, 1, X]]
    assert frames.masks[0].tolist() == STRIPES  # the pool's own are left alone


def test_class_shares_are_of_pixels_that_have_a_class() -> None:
    labelled = Labelled(pool(STRIPES), (Window("a", 0, 2, 3, 2),))  # 2 2 1 / X X 1
    assert labelled.class_shares(3).tolist() == [0, 0.5, 0.5]
    assert Labelled(pool(STRIPES)).class_shares(3).tolist() == [0, 0, 0]


def test_a_grid_of_windows_is_the_frame() -> None:
    generator = np.random.default_rng(0)
    frames = pool(generator.integers(0, 3, (12, 12)).tolist())
    windows = Labelled(frames, tuple(windows_of("a", (12, 12), (3, 5))))
    assert (windows.frames().masks == frames.masks).all()
    assert windows.effort().labelled_share == 1
    assert windows.class_shares(3).tolist() == Labelled(frames, ("a",)).class_shares(3).tolist()


def test_what_is_labelled_is_not_asked_for_again() -> None:
    frames = pool([[0] * 4] * 4)
    windows = [window for name in "ab" for window in windows_of(name, (4, 4), (2, 2))]
    labelled = Labelled(frames, ("a", windows[5]))
    free = [window for window in windows if labelled.leaves([window], windows)]
    assert free == [windows[4], *windows[6:]]
    assert labelled.leaves(free, windows)
    assert not labelled.leaves([*free, windows[0]], windows)
    assert not labelled.leaves([windows[4]._replace(x=1)], windows)
    assert Labelled(frames, ("b",)).leaves(["a"], ["a", "b"])
    assert not Labelled(frames, ("b",)).leaves(["b"], ["a", "b"])
