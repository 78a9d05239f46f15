"""Makes a `folder` data set of EndoVis 2015, rigid instruments: `python bench/endovis.py SOURCE ROOT --test 1`.

SOURCE holds the training part of the challenge's segmentation task, four operations of 40 frames:

    OPn/Raw/img_NN_raw.png, OPn/Masks/img_NN_class.png

ROOT becomes {train,val,test}/{images,masks}/opn_NN.png with classes.txt: the operation that --test names is for
testing, the next (after 4 comes 1) for choosing settings, the other two are the pool. ROOT must lie outside the
repository: the images are not ours to pass on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from as_folder import Frame, arguments, write_folder
from PIL import Image

CLASSES = {0: "background", 70: "shaft", 160: "manipulator"}
"""By their value in the masks; any other is not labelled."""


def frames(source: Path, split_of: dict[int, str]) -> Iterator[Frame]:
    masks = sorted(source.rglob("OP*/Masks/img_*_class.png"))
    if not masks:
        sys.exit(f"{source}: no OPn/Masks/img_NN_class.png: give the folder that holds the operations")
    for path in masks:
        folder, number = path.parents[1], path.name.split("_")[1]
        operation = int(folder.name[2:])
        values = np.asarray(Image.open(path).convert("L"))
        classes = np.full(values.shape, 255, np.uint8)
        for id, value in enumerate(CLASSES):
            classes[values == value] = id
        image = np.asarray(Image.open(folder / "Raw" / f"img_{number}_raw.png").convert("RGB"))
        yield Frame(split_of.get(operation, "train"), f"op{operation}_{number}", image, classes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--test", type=int, choices=range(1, 5), required=True, help="operation to test on")
    given = parser.parse_args()
    split_of = {given.test: "test", given.test % 4 + 1: "val"}
    write_folder(given.root, CLASSES.values(), frames(given.source, split_of))


if __name__ == "__main__":
    main()
