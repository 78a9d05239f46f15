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
    """

    def __init__(self, ids: Sequence[str], image_at: Callable[[int], Tensor]) -> None:
        self.ids = tuple(ids)
        self.image_at = image_at

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return self.ids[index], self.image_at(index)
