"""CholecSeg8k (Hong et al. 2020): classes, encodings and splits of the laparoscopic video the paper uses."""

from __future__ import annotations

CLASSES = (
    "black background",
    "abdominal wall",
    "liver",
    "gastrointestinal tract",
    "fat",
    "grasper",
    "connective tissue",
    "blood",
    "cystic duct",
    "L-hook electrocautery",
    "gallbladder",
    "hepatic vein",
    "liver ligament",
)
PALETTE = (
    (127, 127, 127),
    (210, 140, 140),
    (255, 114, 114),
    (231, 70, 156),
    (186, 183, 75),
    (170, 255, 0),
    (255, 85, 0),
    (255, 0, 0),
    (255, 255, 0),
    (169, 255, 184),
    (255, 160, 165),
    (0, 50, 128),
    (111, 74, 0),
)
WATERSHED_CODES = (50, 11, 21, 13, 12, 31, 23, 24, 25, 32, 22, 33, 5)
"""Value of class k in frame_<n>_endo_watershed_mask.png; every other value is not labelled."""

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
