"""Which images of a pool to annotate next, or which windows of them: a driver over the strategies."""

from alges_fast.selection.select import (
    DRAWN,
    EMBEDDING,
    STRATEGIES,
    Place,
    RegionSelection,
    Selection,
    select,
    select_regions,
    unfit,
    weighted,
)

__all__ = [
    "DRAWN",
    "EMBEDDING",
    "STRATEGIES",
    "Place",
    "RegionSelection",
    "Selection",
    "select",
    "select_regions",
    "unfit",
    "weighted",
]
