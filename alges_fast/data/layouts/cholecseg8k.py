"""CholecSeg8k (Hong et al. 2020): 8080 annotated frames of 17 laparoscopic cholecystectomies, the paper's data set.

ROOT/videoNN/videoNN_SSSSS/frame_<n>_endo.png with frame_<n>_endo_watershed_mask.png beside it, SSSSS the clip's first
frame. The watershed mask is the ground truth; frame_<n>_endo_mask.png and _color_mask.png are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from alges_fast.data.files import (
    SPLITS,
    Faults,
    FaultyFile,
    FrameFile,
    Listing,
    MaskReading,
    natural_key,
    one_channel,
    pairs,
)
from alges_fast.data.layouts import Layout, register_layout
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

LABELS = {
    "black background": (50, (127, 127, 127)),
    "abdominal wall": (11, (210, 140, 140)),
    "liver": (21, (255, 114, 114)),
    "gastrointestinal tract": (13, (231, 70, 156)),
    "fat": (12, (186, 183, 75)),
    "grasper": (31, (170, 255, 0)),
    "connective tissue": (23, (255, 85, 0)),
    "blood": (24, (255, 0, 0)),
    "cystic duct": (25, (255, 255, 0)),
    "L-hook electrocautery": (32, (169, 255, 184)),
    "gallbladder": (22, (255, 160, 165)),
    "hepatic vein": (33, (0, 50, 128)),
    "liver ligament": (5, (111, 74, 0)),
}
"""Of each class its value in frame_<n>_endo_watershed_mask.png, all others being unlabelled, and a colour."""
CLASSES, WATERSHED_CODES = tuple(LABELS), tuple(code for code, _ in LABELS.values())
PALETTE = tuple(colour for _, colour in LABELS.values())

VIDEO_SPLITS = {
    "alges": {
        "train": ("01", "09", "12", "37", "43", "48", "52", "55"),
        "validation": ("17", "18", "20", "24"),
        "test": ("25", "26", "27", "28", "35"),
    },
    "endovit": {
        "train": ("01", "09", "18", "20", "24", "25", "26", "28", "35", "37", "43", "48", "55"),
        "validation": ("17", "52"),
        "test": ("12", "27"),
    },
}
"""Videos per split. "alges" is reconstructed: the only blocks of consecutive videos with the paper's sums for train and
validation (4640, 1600); it gives 1840 test frames as the released code does, where the paper prints 1640."""

FRAMES_PER_VIDEO = {
    "01": 1280, "09": 240, "12": 640, "17": 320, "18": 160, "20": 160, "24": 960, "25": 320, "26": 320, "27": 400,
    "28": 560, "35": 240, "37": 480, "43": 720, "48": 240, "52": 800, "55": 240,
}  # fmt: skip
"""Of the whole data set, in clips of 80."""

SYNTHETIC_MARK = "SYNTHETIC.txt"
"""File that `write-synthetic` leaves in its root: what lies there is drawn, in CholecSeg8k's layout."""

SYNTHETIC_NOTE = "synthetic video in CholecSeg8k's layout, not CholecSeg8k: it says nothing about surgery"

_CLASS_OF = np.full(256, UNLABELLED, np.uint8)
_CLASS_OF[list(WATERSHED_CODES)] = range(len(CLASSES))


@register_layout
class CholecSeg8k(Layout):
    """The data set as its authors give it out, or the synthetic one written so."""

    name = "cholecseg8k"
    holds = (
        "videoNN/videoNN_SSSSS/frame_<n>_endo.png",
        "videoNN/videoNN_SSSSS/frame_<n>_endo_watershed_mask.png",
    )
    sign = "video[0-9][0-9]/"
    ways_to_split = tuple(VIDEO_SPLITS)

    def listing(self, root: Path, split: str, ignore_index: int | None, faults: Faults) -> Listing:
        """List the videos of a split, frames in the order of their numbers. Raises UserError."""
        present = {path.name[5:]: path for path in root.iterdir() if re.fullmatch(r"video[0-9]{2}", path.name)}
        if not present:
            raise UserError(f"{root}: no folder video01, video09, ...: give the folder of CholecSeg8k that holds them")
        splits = {}
        for part in SPLITS:
            files = []
            for name in VIDEO_SPLITS[split][part]:
                if name in present:
                    files += _list_video(present[name], faults)
                else:
                    faults.add(FaultyFile(f"{root / f'video{name}'}: no such folder: split {split} has it in {part}"))
            splits[part] = tuple(files)
        notes = [SYNTHETIC_NOTE] if (root / SYNTHETIC_MARK).exists() else []
        listed = Counter(file.video.removeprefix("video") for files in splits.values() for file in files)
        if listed != FRAMES_PER_VIDEO:
            videos = [f"{name} {listed[name]} of {n}" for name, n in FRAMES_PER_VIDEO.items() if listed[name] != n]
            notes.append(
                f"{listed.total()} frames, where the published CholecSeg8k has {sum(FRAMES_PER_VIDEO.values())}; by "
                f"video: {', '.join(videos)}"
            )
        if extra := sorted(set(present) - set(FRAMES_PER_VIDEO)):
            notes.append(f"videos that no split has are not used: {', '.join(extra)}")
        return Listing(
            name="cholecseg8k",
            root=root,
            classes=CLASSES,
            palette=PALETTE,
            splits=splits,
            read_mask=read_watershed,
            mask_key=f"watershed, split {split}",
            faults=tuple(faults.messages),
            notes=tuple(notes),
        )


def read_watershed(picture: Image.Image, path: Path) -> MaskReading:
    """Class ids of a watershed mask; what is no class's code is UNLABELLED and counted. Raises FaultyFile."""
    codes = one_channel(picture, path)
    if codes.dtype != np.uint8:
        raise FaultyFile(f"{path}: {picture.mode} pixels: a watershed mask has 8-bit values")
    counts = np.bincount(codes.ravel(), minlength=256)
    unknown = Counter(
        {str(code): int(counts[code]) for code in np.flatnonzero(counts) if _CLASS_OF[code] == UNLABELLED}
    )
    return MaskReading(_CLASS_OF[codes], unknown)


def _list_video(video: Path, faults: Faults) -> list[FrameFile]:
    files = []
    for clip in sorted((path for path in video.iterdir() if path.is_dir()), key=lambda path: natural_key(path.name)):
        images, masks = {}, {}
        for path in sorted(clip.iterdir(), key=lambda path: natural_key(path.name)):
            if frame := re.fullmatch(r"(frame_[0-9]+)_endo\.png", path.name):
                images[frame[1]] = path
            elif frame := re.fullmatch(r"(frame_[0-9]+)_endo_watershed_mask\.png", path.name):
                masks[frame[1]] = path
        for stem, image, mask in pairs(images, masks, lambda stem: stem, faults):
            files.append(FrameFile(f"{clip.name}/{stem}", video.name, clip.name, image, mask))
    if not files:
        faults.add(FaultyFile(f"{video}: no frames: expected {video.name}_SSSSS/frame_<n>_endo.png"))
    return files
