"""Dice and IoU of a segmentation over a whole test set, streamed batch by batch, exact however the set is sharded.

Only integers are accumulated: a confusion matrix and, for each image, every class's overlap and two sizes. Floating
point begins in `SegmentationCounts.metrics`, which sums over images with correct rounding, so the order of images, the
batch size and the number of processes change nothing, not even the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alges_fast.data.frames import TAKEN_NAMES
from alges_fast.labels import UNLABELLED

RELEASED_CLASSES = (0, 1, 2, 3, 4, 5, 9, 10)  # the classes the paper's released code averages over


class SegmentationCounts:
    """Counts of predicted against true classes.

    Attributes:
        confusion: (K, K) int64 on `device`; entry [t, p] counts the pixels of true class t predicted as p.

    Example:
        >>> counts = SegmentationCounts(2)
        >>> counts.update(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, UNLABELLED]]]))
        >>> round(counts.metrics(["sky", "tool"])["dice"], 3)
        0.667
    """

    def __init__(self, n_classes: int, *, device: torch.device | str = "cpu") -> None:
        if not 1 <= n_classes <= UNLABELLED:
            raise ValueError(f"n_classes is {n_classes}; expected 1 to {UNLABELLED}, the id that does not count")
        self.n_classes = n_classes
        self.confusion = torch.zeros(n_classes, n_classes, dtype=torch.int64, device=device)
        self._out_of_range = torch.zeros((), dtype=torch.int64, device=device)
        self._images: list[Tensor] = []

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Add a batch. Does not wait for the device.

        Args:
            prediction: (B, *spatial) class ids, uint8 or int64.
            mask: (B, *spatial) true class ids, uint8 or int64; pixels of id `UNLABELLED` (255) do not count.

        Raises:
            ValueError: the shapes differ. Ids outside 0..K-1 are only found out when `metrics` is called.
        """
        if prediction.shape != mask.shape or prediction.ndim < 2:
            shapes = f"prediction is {tuple(prediction.shape)} and mask {tuple(mask.shape)}"
            raise ValueError(f"{shapes}; expected one shape (B, *spatial)")
        for name, ids in (("prediction", prediction), ("mask", mask)):
            if ids.dtype not in (torch.uint8, torch.int64):
                raise TypeError(f"{name} is {ids.dtype}; expected torch.uint8 or torch.int64")
        k, device = self.n_classes, self.confusion.device
        batch = mask.shape[0]
        truth = mask.to(device, torch.int64).flatten(1)
        guess = prediction.to(device, torch.int64).flatten(1)
        known = (truth >= 0) & (truth < k) & (guess >= 0) & (guess < k)
        first = torch.arange(batch, device=device).unsqueeze(1) * (k * k)
        cell = first + truth * k + guess
        # Two bins past the last image's: pixels that do not count, and ids that must not occur.
        ignored, out_of_range = batch * k * k, batch * k * k + 1
        cell = torch.where(known, cell, torch.where(truth == UNLABELLED, ignored, out_of_range)).flatten()
        # Not bincount: on CUDA it waits for the host to learn the number of bins.
        bins = torch.zeros(batch * k * k + 2, dtype=torch.int64, device=device)
        bins.scatter_add_(0, cell, torch.ones_like(cell))
        confusion = bins[:-2].view(batch, k, k)
        self.confusion += confusion.sum(0)
        self._out_of_range += bins[-1]
        self._images.append(torch.stack((confusion.diagonal(dim1=1, dim2=2), confusion.sum(2), confusion.sum(1)), 1))

    @property
    def per_image(self) -> Tensor:
        """(N, 3, K) int64: for every image and class, pixels right, pixels of the truth, pixels predicted."""
        if not self._images:
            return torch.zeros(0, 3, self.n_classes, dtype=torch.int64, device=self.confusion.device)
        return torch.cat(self._images)

    @staticmethod
    def merge(parts: Iterable[SegmentationCounts]) -> SegmentationCounts:
        """The counts of all parts together, on the first part's device.

        Raises:
            ValueError: there are no parts, or they differ in their number of classes.
        """
        parts = list(parts)
        sizes = [part.n_classes for part in parts]
        if len(set(sizes)) != 1:
            raise ValueError(f"parts have {sizes} classes; expected at least one part, all with the same number")
        device = parts[0].confusion.device
        whole = SegmentationCounts(parts[0].n_classes, device=device)
        for part in parts:
            whole.confusion += part.confusion.to(device)
            whole._out_of_range += part._out_of_range.to(device)
            whole._images.extend(images.to(device) for images in part._images)
        return whole

    def gather(self, group: torch.distributed.ProcessGroup | None = None) -> SegmentationCounts:
        """The counts of every rank of a torch.distributed group together, the same on each rank, on the CPU."""
        mine = SegmentationCounts.merge([SegmentationCounts(self.n_classes), self])  # on the CPU, like the first part
        parts = [mine] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(parts, mine, group=group)
        return SegmentationCounts.merge(parts)

    def metrics(self, classes: Sequence[str]) -> dict[str, float]:
        """All metrics of the images seen so far, each between 0 and 1. Waits for the device.

        Args:
            classes: the K classes' names.

        Returns:
            `dice`: 2 TP / (truth + predicted) from counts over all images, averaged over the classes that occur in the
            truth.
            `dice_image`: the same per image, averaged over the classes in either truth or prediction, then over the
            images; an image with no pixel that counts is left out.
            `dice_released`: what the paper's released code computes: (2 TP + 1) / (truth + predicted + 1) per image, so
            that a class absent from both scores 1, averaged over images, then over those of `RELEASED_CLASSES` that
            exist.
            `iou`: TP / (truth + predicted - TP), counted and averaged like `dice`.
            `dice_<class>`: the terms of `dice`; NaN for a class that does not occur in the truth.
            A mean over nothing is NaN.

        Raises:
            ValueError: not K distinct names, or one of `TAKEN_NAMES`; an id outside 0..K-1 was seen.
        """
        if len(classes) != self.n_classes or len(set(classes)) != len(classes):
            raise ValueError(f"classes is {list(classes)}; expected {self.n_classes} distinct names")
        if taken := [name for name in classes if name in TAKEN_NAMES]:
            raise ValueError(f"a class is named {taken[0]!r}, and dice_{taken[0]} is another metric; name it otherwise")
        if strays := int(self._out_of_range):
            raise ValueError(
                f"{strays} pixels have a class id in prediction or mask outside 0..{self.n_classes - 1} "
                f"(a mask may also hold {UNLABELLED}, to ignore)"
            )
        per_image = self.per_image.cpu().numpy()
        right, truth, predicted = per_image.transpose(1, 0, 2)  # each (N, K)
        total_right, total_truth, total_predicted = per_image.sum(0)
        iou = _ratio(total_right, total_truth + total_predicted - total_right, where=total_truth > 0)
        in_either = truth + predicted > 0
        image_dice = _ratio(2 * right, truth + predicted, where=in_either)
        image_means = [_mean(row[keep]) for row, keep in zip(image_dice, in_either, strict=True) if keep.any()]
        released = (2 * right + 1) / (truth + predicted + 1)
        released_classes = [k for k in RELEASED_CLASSES if k < self.n_classes]
        return {
            "dice": mean_dice(per_image),
            "dice_image": _mean(image_means),
            "dice_released": _mean(_mean(released[:, k]) for k in released_classes),
            "iou": _mean(iou[~np.isnan(iou)]),
            **{f"dice_{name}": float(value) for name, value in zip(classes, class_dice(per_image), strict=True)},
        }


def class_dice(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(K,) Dice of classes from `SegmentationCounts.per_image`, (N, 3, K); NaN where a class is not in the truth."""
    right, truth, predicted = counts.sum(0)
    return _ratio(2 * right, truth + predicted, where=truth > 0)


def mean_dice(counts: npt.NDArray[np.int64]) -> float:
    """Their mean over the classes that occur in the truth: the metric `dice`. NaN where none does."""
    dice = class_dice(counts)
    return _mean(dice[~np.isnan(dice)])


def _ratio(
    numerator: npt.NDArray[np.int64], denominator: npt.NDArray[np.int64], *, where: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    ratio = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=where)
    return ratio


def _mean(values: Iterable[float]) -> float:
    """Correctly rounded sum over count: independent of the values' order. NaN for none."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan
