"""What came back of a sheet, as the frames whose windows are on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alges_fast.annotation.desk import Sheet, from_sheet
from alges_fast.annotation.imports.frames import ExpectedFrame, ReturnedFrame
from alges_fast.labels import UNLABELLED


def expected_sheet(sheet: Sheet) -> ExpectedFrame:
    """The sheet as a picture that may come back."""
    return ExpectedFrame(sheet.name, sheet.name, sheet.size, [cell.on(sheet.name) for cell in sheet.cells])


def frames_on(sheet: Sheet, picture: ReturnedFrame, sizes: Mapping[str, tuple[int, int]]) -> list[ReturnedFrame]:
    """The frames of which windows came back, or were refused, on a sheet.

    Args:
        sizes: id of a frame -> height and width.
    """
    masks, frames = from_sheet(sheet, picture.mask), []
    for id in dict.fromkeys(str(cell.window.id) for cell in sheet.cells):
        place = {cell.window: cell.on(sheet.name) for cell in sheet.cells if cell.window.id == id}
        refused = [window for window, on in place.items() if picture.refused or on in picture.refused_windows]
        windows = [window for window, on in place.items() if on in picture.windows]
        mask = np.full(sizes[id], UNLABELLED, np.uint8)
        for window in windows:
            mask[window.box] = masks[window]
        answered = [window for window in windows if place[window] in picture.answered]
        if windows or refused:
            frames.append(ReturnedFrame(id, mask, windows, refused_windows=refused, answered=answered))
    return frames
