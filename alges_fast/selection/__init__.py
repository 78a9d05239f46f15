"""Which images of a pool to annotate next, or which windows of them: a driver over the strategies."""

from alges_fast.selection.choose import BrokenPromise, NotEnough, Place, Selection, Unit, choose
from alges_fast.selection.select import select

__all__ = ["BrokenPromise", "NotEnough", "Place", "Selection", "Unit", "choose", "select"]
