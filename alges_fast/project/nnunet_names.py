"""What a project's classes and frames are called in a data set of nnU-Net v2."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.project.config import ProjectConfig

DATASET = "dataset.json"
"""What describes one, and lies beside what its networks predict."""
OURS = "alges_fast"
"""Key of it that nnU-Net passes over: which imports' labels it holds."""
BACKGROUND, IGNORE = "background", "ignore"


@dataclass(frozen=True)
class LabelNames:
    """What classes are called and numbered in a data set of nnU-Net.

    names: of `background`, the classes and `ignore`, to their values.
    values: (256,) uint8, of class ids, and of `UNLABELLED`.
    ids: (256,) uint8, back; UNLABELLED for what stands for no class.
    """

    names: Mapping[str, int]
    values: NDArray[np.uint8]
    ids: NDArray[np.uint8]


def label_names(config: ProjectConfig) -> LabelNames:
    """The class of the pixels under no shape, or else one called background, is nnU-Net's background, which it counts
    in no Dice. Where there is none, all are foreground and 0 stands for nothing.

    Raises:
        UserError: a class whose name has another meaning there.
    """
    background = config.background or next((name for name in config.classes if name.lower() == BACKGROUND), None)
    others = [name for name in config.classes if name != background]
    if taken := [name for name in others if name in (BACKGROUND, IGNORE)]:
        raise UserError(f"class {taken[0]!r} has a meaning of its own for nnU-Net: begin a project with another name")
    names = {BACKGROUND: 0, **{name: number for number, name in enumerate(others, 1)}, IGNORE: len(others) + 1}
    if names[IGNORE] > 255:
        raise UserError(
            f"{len(config.classes)} classes are more than a label of nnU-Net's has room for: 254 are the most"
        )
    values = np.full(256, names[IGNORE], np.uint8)
    ids = np.full(256, UNLABELLED, np.uint8)
    for class_id, name in enumerate(config.classes):
        values[class_id] = names[BACKGROUND if name == background else name]
        ids[values[class_id]] = class_id
    return LabelNames(names, values, ids)


def case_of(id: str) -> str:
    """The name of a frame as nnU-Net's case: what can be read of its id in plain letters, and a digest of all of it,
    since names there have no folders and should not differ in case or accents alone."""
    plain = re.sub("[^A-Za-z0-9]+", "-", id.rpartition(".")[0] if "@" not in id else id).strip("-")[-80:]
    return f"{plain or 'frame'}-{hashlib.blake2b(id.encode(), digest_size=4).hexdigest()}"
