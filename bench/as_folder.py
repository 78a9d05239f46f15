"""What the converters beside it share: writing frames as a `folder` data set that lies outside the repository."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SPLITS = ("train", "val", "test")


class Frame(NamedTuple):
    """A frame and its split, one of SPLITS. image: (H, W) or (H, W, 3). classes: (H, W) ids, 255 not labelled."""

    split: str
    stem: str
    image: NDArray[np.uint8]
    classes: NDArray[np.uint8]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser of SOURCE and ROOT."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="the data set's folder, as it was had")
    parser.add_argument("root", type=Path, help="folder to make, outside the repository")
    return parser


def write_folder(root: Path, classes: Iterable[str], frames: Iterable[Frame]) -> None:
    """Write {train,val,test}/{images,masks}/STEM.png and classes.txt, and say how many frames each split got."""
    if Path(__file__).resolve().parents[1] in [root.resolve(), *root.resolve().parents]:
        sys.exit(f"{root} is inside the repository: give a folder outside it")
    count = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True, exist_ok=True)
    for frame in frames:
        count[frame.split] += 1
        for part, values in (("images", frame.image), ("masks", frame.classes)):
            Image.fromarray(np.ascontiguousarray(values)).save(root / frame.split / part / f"{frame.stem}.png")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    print(", ".join(f"{split} {n}" for split, n in count.items()), "frames:", root)
