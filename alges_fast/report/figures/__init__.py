"""The report's figures. Each function draws one in a given `Theme` and returns it; nothing here reads or writes
files."""

from alges_fast.report.figures.classes import class_dice, class_shares
from alges_fast.report.figures.comparisons import forest, label_savings
from alges_fast.report.figures.learning_curves import BANDS_TOGETHER, Axis, axes_of, curves, curves_apart
from alges_fast.report.figures.pictures import PICKS_SHOWN, ROUNDS_SHOWN, contact_sheet, frame_maps
from alges_fast.report.figures.timing import round_seconds

__all__ = [
    "BANDS_TOGETHER",
    "PICKS_SHOWN",
    "ROUNDS_SHOWN",
    "Axis",
    "axes_of",
    "class_dice",
    "class_shares",
    "contact_sheet",
    "curves",
    "curves_apart",
    "forest",
    "frame_maps",
    "label_savings",
    "round_seconds",
]
