"""m2caiSeg (Maqbool et al. 2020): 307 annotated frames of two laparoscopic videos, 19 classes.

ROOT/{train,trainval,test}/images/<stem>.jpg with ../groundtruth/<stem>_gt.png, whose colours are classes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from alges_fast.data.files import Faults, FaultyFile, FrameFile, Listing, MaskReading, list_pictures, pairs
from alges_fast.data.layouts import Layout, register_layout
from alges_fast.data.layouts.folder import video_of
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

COLOURS = {
    "black": (0, 0, 0),
    "grasper": (0, 85, 170),
    "bipolar": (0, 85, 255),
    "hook": (0, 170, 255),
    "scissors": (0, 255, 85),
    "clipper": (0, 255, 170),
    "irrigator": (85, 0, 170),
    "specimen bag": (85, 0, 255),
    "trocars": (170, 85, 85),
    "clip": (170, 170, 170),
    "liver": (85, 170, 0),
    "gallbladder": (85, 170, 255),
    "fat": (85, 255, 0),
    "upper wall": (85, 255, 170),
    "artery": (170, 0, 255),
    "intestine": (255, 0, 255),
    "bile": (255, 255, 0),
    "blood": (255, 0, 0),
    "unknown": (170, 0, 85),
}
"""Colour of each class, in the order of the class ids."""


@register_layout
class M2caiSeg(Layout):
    """The data set as its authors give it out."""

    name = "m2caiseg"
    holds = ("{train,trainval,test}/images/<stem>.jpg", "{train,trainval,test}/groundtruth/<stem>_gt.png")
    sign = "*/groundtruth/"

    def listing(self, root: Path, split: str, ignore_index: int | None, faults: Faults) -> Listing:
        """List the data set. Raises UserError.

        Test is the test folder and train the train folder; validation is what trainval holds beyond train. Where that
        is nothing, validation is the last fifth of each video of train: neighbouring frames look alike.
        """
        if not (root / "train").is_dir() or not (root / "test").is_dir():
            raise UserError(f"{root}: no folders train and test: give the folder of m2caiSeg that holds them")
        train = _list_part(root / "train", faults)
        both = _list_part(root / "trainval", faults) if (root / "trainval").is_dir() else {}
        validation = {stem: file for stem, file in both.items() if stem not in train}
        notes = []
        if not validation:
            held_out = _last_fifths(train)
            validation = {stem: train.pop(stem) for stem in held_out}
            notes.append(f"trainval holds nothing beyond train: validation is {len(held_out)} frames held out of train")
        return Listing(
            name="m2caiseg",
            root=root,
            classes=tuple(COLOURS),
            palette=tuple(COLOURS.values()),
            splits={
                "train": tuple(train.values()),
                "validation": tuple(validation.values()),
                "test": tuple(_list_part(root / "test", faults).values()),
            },
            read_mask=read_colours,
            mask_key="m2caiseg colours",
            same_size=False,
            faults=tuple(faults.messages),
            notes=tuple(notes),
        )


def read_colours(picture: Image.Image, path: Path) -> MaskReading:
    """Class ids of a colour mask; a colour of no class is UNLABELLED and counted. Raises FaultyFile."""
    if picture.mode.startswith(("I", "F")):
        raise FaultyFile(f"{path}: {picture.mode} pixels: a mask of m2caiSeg has 8-bit colours")
    colours = np.asarray(picture.convert("RGB")).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    place = np.searchsorted(_CODES, colours).clip(max=len(_CODES) - 1)
    known = _CODES[place] == colours
    ids = np.where(known, _CLASS_OF_CODE[place], np.uint8(UNLABELLED))
    values, counts = np.unique(colours[~known], return_counts=True)
    unknown = Counter({f"#{value:06x}": int(count) for value, count in zip(values, counts, strict=True)})
    return MaskReading(ids, unknown)


_CLASS_OF_CODE = np.argsort([(r << 16) + (g << 8) + b for r, g, b in COLOURS.values()]).astype(np.uint8)
_CODES = np.sort(np.array([(r << 16) + (g << 8) + b for r, g, b in COLOURS.values()], np.int32))


def _list_part(folder: Path, faults: Faults) -> dict[str, FrameFile]:
    images = list_pictures(folder / "images", faults)
    masks = list_pictures(folder / "groundtruth", faults)
    return {
        stem: FrameFile(f"{folder.name}/{stem}", video_of(stem), video_of(stem), image, mask)
        for stem, image, mask in pairs(images, masks, lambda stem: f"{stem}_gt", faults)
    }


def _last_fifths(files: dict[str, FrameFile]) -> list[str]:
    chosen = []
    for video in sorted({file.video for file in files.values()}):
        stems = [stem for stem, file in files.items() if file.video == video]
        chosen += stems[len(stems) - len(stems) // 5 :]
    return chosen
