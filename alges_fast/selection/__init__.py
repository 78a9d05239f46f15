"""Which images of a pool to annotate next, or which windows of them: a driver over the strategies."""

from alges_fast.selection.candidates import Place
from alges_fast.selection.select import Budget, RegionSelection, Selection, select, select_regions

__all__ = ["Budget", "Place", "RegionSelection", "Selection", "select", "select_regions"]
