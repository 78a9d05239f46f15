"""What annotating costs, in seconds: pictures opened, windows or frames looked at, outline drawn.

    seconds = open x pictures + look x windows (or frames) + draw x outline

Outline is counted in sides of the image, so a frame's price does not depend on the size it is shown at. None of the
three was measured here; docs/effort.md has where each comes from. A project fits its own from the times that Label
Studio keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CELLS = 30
"""Windows on a sheet, of 24 to 36."""


@dataclass(frozen=True)
class Prices:
    """Seconds.

    Attributes:
        open: a picture, be it a frame, a sheet of windows or a window alone.
        look: at a window or a frame in which nothing is to be drawn, and saying what it is.
        draw: as much outline as a side of the image is long.
    """

    open: float = 5.0
    look: float = 2.0
    draw: float = 100.0

    def seconds(self, *, pictures: float, looks: float, outline: float, side: float) -> float:
        """What annotating took.

        Args:
            outline: drawn, in pixels.
            side: of the image, in the same pixels.
        """
        return self.open * pictures + self.look * looks + self.draw * outline / side


LOW, HIGH = Prices(1.0, 1.0, 20.0), Prices(20.0, 5.0, 200.0)
"""The least and the most that is plausible."""


def sheets_for(windows: int) -> int:
    """Pictures that so many windows of a round are annotated in."""
    return math.ceil(windows / CELLS)
