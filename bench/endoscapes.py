"""Makes a `folder` data set of Endoscapes-Seg50 (Murali et al. 2023): `python bench/endoscapes.py SOURCE ROOT`.

SOURCE holds either form in which the 493 frames of 50 cholecystectomies are had, of V the video and F the frame:

    {train,val,test}_seg/V_F.jpg and semseg/V_F.png          as its authors give them
    REAL/V_F.jpg, GROUND_TH/V_F.png and matches.json         masks gathered by others, the split in matches.json

ROOT becomes {train,val,test}/{images,masks}/V_F.png with classes.txt, in the authors' split, which is by video. Other
objects (255, and 7 in one mask) are not labelled. ROOT must lie outside the repository: the images are not ours to pass
on (CC BY-NC-SA 4.0).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from as_folder import SPLITS, Frame, arguments, write_folder
from PIL import Image

CLASSES = ("background", "cystic plate", "Calot's triangle", "cystic artery", "cystic duct", "gallbladder", "tool")


def splits(source: Path) -> dict[str, str]:
    """Stem -> split."""
    if (listed := source / "matches.json").is_file():
        return {stem: about["folders"][1] for stem, about in json.loads(listed.read_text()).items()}
    return {path.stem: split for split in SPLITS for path in sorted((source / f"{split}_seg").glob("*.jpg"))}


def frames(source: Path) -> Iterator[Frame]:
    split_of = splits(source)
    if not split_of:
        sys.exit(f"{source}: neither train_seg/ nor matches.json: give the folder that holds Endoscapes' frames")
    gathered = (source / "matches.json").is_file()
    for stem, split in sorted(split_of.items()):
        images, masks = ("REAL", "GROUND_TH") if gathered else (f"{split}_seg", "semseg")
        image = np.asarray(Image.open(source / images / f"{stem}.jpg").convert("RGB"))
        classes = np.array(Image.open(source / masks / f"{stem}.png"))
        classes[classes >= len(CLASSES)] = 255
        yield Frame(split, stem, image, classes)


def main() -> None:
    given = arguments(__doc__).parse_args()
    write_folder(given.root, CLASSES, frames(given.source))


if __name__ == "__main__":
    main()
