"""What is labelled so far: pixels by class and video, and how much an annotator drew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alges_fast.annotation.exports import file_name
from alges_fast.data.files import natural_key
from alges_fast.project.folder import Project
from alges_fast.training.labelled import outline


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels by frame, and their sums.

    Attributes:
        masks: id -> (H, W) class ids at the frame's own size.
        pixels: id -> (K,) int64, labelled pixels of each class.
        outline: length of the class boundaries inside what is labelled, in pixels of the frames.
        sides: the same in sides of the frames.
        n_windows: labelled windows, of frames that are not labelled as a whole.
    """

    masks: dict[str, NDArray[np.uint8]]
    pixels: dict[str, NDArray[np.int64]]
    outline: int
    sides: float
    n_windows: int

    def shares(self) -> Tensor:
        """(K,) shares of the classes among labelled pixels."""
        sums = torch.from_numpy(np.sum(list(self.pixels.values()), axis=0)).double()
        return sums / sums.sum().clamp(min=1)


def read_labels(project: Project) -> Labels:
    """All labels of a project. Raises UserError where one is damaged."""
    n_classes = len(project.config.classes)
    # In an order that does not depend on which came back first: equal labels train equal models.
    masks = {id: project.label(file_name(id)) for id in sorted(project.labelled, key=natural_key)}
    pixels = {id: np.bincount(mask.ravel(), minlength=256)[:n_classes] for id, mask in masks.items()}
    drawn = {
        id: sum(outline(masks[id][box]) for box in ([np.s_[:, :]] if windows is None else [w.box for w in windows]))
        for id, windows in project.labelled.items()
    }
    sides = sum(2 * length / sum(masks[id].shape) for id, length in drawn.items())
    n_windows = sum(len(windows) for windows in project.labelled.values() if windows is not None)
    return Labels(masks, pixels, sum(drawn.values()), sides, n_windows)
