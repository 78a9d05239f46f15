"""What a user sees of each picked frame: why it was picked, where its gradient mass lies, what the model predicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.annotation.sources import FrameReader, PoolFrame, resized
from alges_fast.last_layer import LastLayer, logits_of
from alges_fast.pool import PRECISIONS
from alges_fast.selection import EMBEDDING, weighted


@dataclass(frozen=True, eq=False)
class Pick:
    """One picked frame.

    rank: from 1 on, in order of picking.
    leading_class: the class whose row of the embedding is largest (of alges-sem: whose entry).
    nearest: id of the nearest earlier pick; None for the first.
    distance: to it, Euclidean, between the embeddings the strategy seeds from (alges-img's where it seeds from none).
    image: (H, W, 3) uint8 RGB at the frame's own size; mask (H, W) uint8 predicted class ids.
    norm_map: (H, W) float32, the size of each pixel's gradient; None where the model's tail does not define it.
    """

    frame: PoolFrame
    rank: int
    leading_class: int
    nearest: str | None
    distance: float
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    norm_map: NDArray[np.float32] | None


def explain(
    model: nn.Module,
    frames: Sequence[PoolFrame],
    *,
    strategy: str,
    class_weights: Sequence[float] | None,
    image_size: int,
    device: torch.device,
    precision: str,
    transform: object,
) -> Iterator[Pick]:
    """The picks one by one, in order; a frame is in memory at its own size only while it is looked at."""
    assert callable(transform)
    reader = FrameReader()
    output = EMBEDDING.get(strategy, "image")
    dtype = PRECISIONS[precision]
    layer: LastLayer | None = None
    maps = True
    earlier: list[Tensor] = []
    for rank, frame in enumerate(frames, start=1):
        image = reader.read(frame)
        inputs = transform(resized(image, image_size)[None].to(device))
        with torch.no_grad(), torch.autocast(device.type, enabled=dtype is not None, dtype=dtype):
            if layer is None:
                layer = LastLayer.find(model, inputs)
                maps = _defines_norm_maps(layer, inputs)
            found = layer.pixel_gradients(inputs, outputs=tuple({output, "norm_map"} if maps else {output}))
            logits = logits_of(model(inputs))
        values = getattr(found, output)
        embedding = weighted(values.float().cpu(), class_weights)[0]
        distances = [float((embedding - other).norm()) for other in earlier]
        earlier.append(embedding)
        nearest = min(range(len(distances)), key=distances.__getitem__) if distances else None
        yield Pick(
            frame=frame,
            rank=rank,
            leading_class=int(embedding.reshape(len(embedding), -1).norm(dim=1).argmax()),
            nearest=None if nearest is None else frames[nearest].id,
            distance=math.nan if nearest is None else distances[nearest],
            image=image,
            mask=_stretched(logits, image).argmax(1)[0].to(torch.uint8).cpu().numpy(),
            norm_map=_stretched(found.norm_map[:, None], image)[0, 0].cpu().numpy()
            if found.norm_map is not None
            else None,
        )


def _defines_norm_maps(layer: LastLayer, inputs: Tensor) -> bool:
    try:
        layer.pixel_gradients(inputs, outputs=("norm_map",))
    except ValueError:
        return False
    return True


def _stretched(values: Tensor, image: NDArray[np.uint8]) -> Tensor:
    return F.interpolate(values.float(), size=image.shape[:2], mode="bilinear", align_corners=False)
