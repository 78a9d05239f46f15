"""What a user sees of the picks: why each was picked, where a frame's gradient mass lies, what the model predicts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.annotation.sources import FrameReader, PoolFrame
from alges_fast.data.frame_pool import FramePool
from alges_fast.labels import UNLABELLED
from alges_fast.last_layer import LastLayer, logits_of
from alges_fast.pool import PRECISIONS
from alges_fast.strategies.alges import weighted
from alges_fast.windows import Window, cell_boxes, cut, windows_of


@dataclass(frozen=True)
class Pick:
    """A picked frame, or a window of one.

    score: what the strategy rates it; None where it rates nothing by itself.
    cost: what it takes of the budget.
    outline: how long the boundaries between predicted classes are in it, in its pixels, where the budget counts them.
    """

    frame: PoolFrame
    window: Window | None
    score: float | None
    cost: int
    outline: float | None = None

    @property
    def id(self) -> str:
        return self.frame.id if self.window is None else str(self.window)


@dataclass(frozen=True, eq=False)
class PickedFrame:
    """A frame with picks.

    picks: positions in the list of all picks; one for a whole frame, one for each of its picked windows.
    embeddings: (picks, K, ...) float32, those that the strategy seeds from (alges-img's where it seeds from none);
        without a model (picks, 1, channels), mean features of a frozen encoder; None where there is neither.
    image: (H, W, 3) uint8 RGB at the frame's own size.
    mask: (H, W) uint8 predicted class ids, UNLABELLED where there is no model.
    norm_map: (H, W) float32, the size of each pixel's gradient; None where the model's tail does not define it.
    """

    frame: PoolFrame
    picks: Sequence[int]
    embeddings: Tensor | None
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    norm_map: NDArray[np.float32] | None


@dataclass(frozen=True)
class Reason:
    """Why a pick was picked.

    leading_class: the class whose row of the embedding is largest (of alges-sem: whose entry).
    nearest: position of the nearest earlier pick; None for the first.
    distance: to it, Euclidean, between embeddings.
    """

    leading_class: int
    nearest: int | None
    distance: float


def show_picked(
    model: nn.Module,
    picks: Sequence[Pick],
    *,
    output: str,
    class_weights: Sequence[float] | None,
    regions: tuple[int, int] | None,
    inputs_of: Callable[[PoolFrame, NDArray[np.uint8]], Tensor],
    device: torch.device,
    precision: str,
) -> Iterator[PickedFrame]:
    """The picked frames one by one, in order of their first pick; only one is in memory at its own size.

    `output` is the embedding that shows why they were picked; `inputs_of` makes of a frame and its picture (H, W, 3)
    what the model takes, a batch of one.
    """
    reader = FrameReader()
    dtype = PRECISIONS[precision]
    layer: LastLayer | None = None
    maps = True
    for numbers in _at_frames(picks):
        frame = picks[numbers[0]].frame
        image = reader.read(frame)
        inputs = inputs_of(frame, image).to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=dtype is not None, dtype=dtype):
            if layer is None:
                layer = LastLayer.find(model, inputs)
                maps = layer.defines("norm_map", inputs)
            outputs = tuple(({output} if regions is None else set()) | ({"norm_map"} if maps else set()))
            found = layer.pixel_gradients(inputs, outputs=outputs)
            logits = logits_of(model(inputs))
            if regions is None:
                values = getattr(found, output)
            else:
                rows = _cells(picks, numbers, image.shape[:2], regions)
                values = getattr(layer.window_gradients(inputs, regions, outputs=(output,)), output)[0, rows]
        yield PickedFrame(
            frame=frame,
            picks=numbers,
            embeddings=weighted(values.float().cpu(), class_weights),
            image=image,
            mask=predicted_classes(logits, image.shape[:2]),
            norm_map=_stretched(found.norm_map[:, None], image.shape[:2])[0, 0].cpu().numpy()
            if found.norm_map is not None
            else None,
        )


def show_untrained(
    picks: Sequence[Pick], maps: FramePool | None, regions: tuple[int, int] | None
) -> Iterator[PickedFrame]:
    """The picked frames, as `show_picked` gives them, where there is no model.

    Args:
        maps: what a frozen encoder makes of the pool's frames, (C, h, w) by id; None where nothing looked at them.
        regions: rows and columns of the grid whose windows are picked; None for whole frames.
    """
    reader = FrameReader()
    for numbers in _at_frames(picks):
        frame = picks[numbers[0]].frame
        image = reader.read(frame)
        means = None
        if maps is not None:
            values: Tensor = maps[maps.ids.index(frame.id)][1].float()
            means = values.flatten(1).mean(1)[None, None]
            if regions is not None:
                boxes = cell_boxes(values.shape[1:], regions)
                cells = _cells(picks, numbers, image.shape[:2], regions)
                means = torch.stack([cut(values, boxes[cell]).flatten(1).mean(1)[None] for cell in cells])
        unknown: NDArray[np.uint8] = np.full(image.shape[:2], UNLABELLED, np.uint8)
        yield PickedFrame(frame, numbers, means, image, unknown, None)


def reasons(embeddings: Tensor) -> list[Reason]:
    """Of (n, K, ...) embeddings in order of picking."""
    leading = embeddings.flatten(2).norm(dim=2) if embeddings.ndim > 2 else embeddings
    points = embeddings.flatten(1)
    found: list[Reason] = []
    for number, row in enumerate(leading):
        nearest, distance = None, 0.0
        if number:
            distances = (points[:number] - points[number]).norm(dim=1)
            nearest = int(distances.argmin())
            distance = float(distances[nearest])
        found.append(Reason(int(row.argmax()), nearest, distance))
    return found


def predicted_classes(logits: Tensor, size: Sequence[int]) -> NDArray[np.uint8]:
    """(H, W) class ids at a frame's own size, of its logits (1, K, h, w)."""
    classes = _stretched(logits, size)[0].max(0).indices  # those of `argmax`, which takes ten times as long on the CPU
    ids: NDArray[np.uint8] = classes.to(torch.uint8).cpu().numpy()
    return ids


def _at_frames(picks: Sequence[Pick]) -> list[list[int]]:
    """Positions of the picks by frame, frames in order of their first pick."""
    found: dict[str, list[int]] = {}
    for number, pick in enumerate(picks):
        found.setdefault(pick.frame.id, []).append(number)
    return list(found.values())


def _cells(picks: Sequence[Pick], numbers: Sequence[int], size: Sequence[int], regions: tuple[int, int]) -> list[int]:
    """Which cells of their frame's grid the windows among these picks are, row by row."""
    numbers_of = _numbers((size[0], size[1]), regions)
    return [numbers_of[window[1:]] for number in numbers if (window := picks[number].window) is not None]


@functools.lru_cache(64)
def _numbers(size: tuple[int, int], regions: tuple[int, int]) -> dict[tuple[int, ...], int]:
    """A window's x, y, width and height -> its number in the grid."""
    return {window[1:]: number for number, window in enumerate(windows_of("", size, regions))}


def _stretched(values: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(values.float(), size=tuple(size), mode="bilinear", align_corners=False)
