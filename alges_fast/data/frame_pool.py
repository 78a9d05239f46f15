"""A pool of frames as `embed_pool` and the strategies read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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

    def view_of(self, positions: Sequence[int]) -> Tensor | None:
        """The images at evenly spaced positions, of which nothing is copied; None where there is no such view."""
        if self.stacked is None:
            return None
        step = positions[1] - positions[0] if len(positions) > 1 else 1
        if step < 1 or tuple(positions) != tuple(range(positions[0], positions[-1] + 1, step)):
            return None
        return self.stacked[positions[0] : positions[-1] + 1 : step]
