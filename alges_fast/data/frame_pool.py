"""A pool of frames as `embed_pool` and the strategies read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor


class FramePool(Sequence[tuple[str, Tensor]]):
    """(id, image (3, S, S) uint8) pairs; an image is read when it is indexed.

    A network's input is made of a whole batch, on its device, by a transform such as `alges_fast.data.to_input`.

    Args:
        ids: the frames' ids, in order.
        image_at: the image of the frame at a position in `ids`.
        stacked: all of them (N, ...), where they lie in memory or are mapped there.
    """

    def __init__(self, ids: Sequence[str], image_at: Callable[[int], Tensor], stacked: Tensor | None = None) -> None:
        self.ids = tuple(ids)
        self.image_at = image_at
        self.stacked = stacked

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return self.ids[index], self.image_at(index)

    def views_of(self, positions: Sequence[int]) -> list[Tensor] | None:
        """Views that are together, in order, the images at rising positions; nothing is copied.

        None where the images are not stacked, or gaps would make the views so short that a copy is faster.
        """
        if self.stacked is None:
            return None
        steps = np.diff(positions)
        step = int(steps.min(initial=len(self)))
        runs = np.split(np.asarray(positions), np.flatnonzero(steps != step) + 1)
        if step < 1 or (len(runs) > 1 and (len(positions) < _RUN * len(runs) or self.stacked.device.type != "cpu")):
            return None
        return [self.stacked[int(run[0]) : int(run[-1]) + 1 : step] for run in runs]


_RUN = 4
"""Images of a view from which on handling one more view costs less than copying them (measured, 400 KB each)."""
