"""A user's own frames: {train, val, test}/{images, masks} with the same stems, class ids as pixel values."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from alges_fast.data.files import (
    SPLITS,
    Faults,
    FaultyFile,
    FrameFile,
    Listing,
    class_ids,
    list_pictures,
    pairs,
    read_lines,
)
from alges_fast.data.frames import TAKEN_NAMES
from alges_fast.data.layouts import Layout, register_layout
from alges_fast.errors import UserError


@register_layout
class Folder(Layout):
    """The folders' names are the splits', and those of a mask and of its image are the same."""

    name = "folder"
    holds = (
        "{train,val,test}/images/<stem>.png or .jpg",
        "{train,val,test}/masks/<stem>.png, pixel values are class ids",
    )
    sign = "*/masks/"
    names_unlabelled = True

    def listing(self, root: Path, split: str, ignore_index: int | None, faults: Faults) -> Listing:
        """List a folder data set.

        The validation split's folder is called val or validation. An optional ROOT/classes.txt names the classes, one a
        line; without it the masks tell how many there are. ignore_index and 255 are not labelled. Raises UserError.
        """
        names = _class_names(root)
        splits = {}
        for split in SPLITS:
            folder = _split_folder(root, split)
            images = list_pictures(folder / "images", faults)
            masks = list_pictures(folder / "masks", faults)
            splits[split] = tuple(
                FrameFile(f"{folder.name}/{stem}", video_of(stem), video_of(stem), image, mask)
                for stem, image, mask in pairs(images, masks, lambda stem: stem, faults)
            )
        seen = Counter(video for files in splits.values() for video in {file.video for file in files})
        shared = sorted(video for video, times in seen.items() if times > 1)
        notes = (
            (f"videos in more than one split, whose frames may be near-duplicates: {', '.join(shared)}",)
            if shared
            else ()
        )
        return Listing(
            name="folder",
            root=root,
            classes=names,
            palette=None,
            splits=splits,
            read_mask=class_ids(ignore_index, len(names) if names else None),
            mask_key=f"ids, ignore {ignore_index}, {len(names) if names else 'any'} classes",
            faults=tuple(faults.messages),
            notes=notes,
        )


def video_of(stem: str) -> str:
    """The video a frame is from: its stem up to the last underscore, else without its trailing digits."""
    video, underscore, _ = stem.rpartition("_")
    if not underscore:
        video = re.sub(r"[0-9]+$", "", stem).rstrip("-. ")
    return video or "video"


def classes_of_masks(pixels: dict[str, dict[int, str]]) -> int:
    """How many classes unnamed ids make: pixels[split] maps each id that occurs to the first mask that has it.

    The training masks decide. Raises UserError for an id beyond theirs in another split, and where most of the ids
    below the largest never occur: such values are codes or grey levels, not class ids.
    """
    n_classes = 1 + max(pixels["train"], default=-1)
    for split in SPLITS[1:]:
        for value, mask in pixels[split].items():
            if value >= n_classes:
                raise FaultyFile(
                    f"{mask}: class id {value} is out of range (the training masks go up to {n_classes - 1}): "
                    "correct it, name the classes in classes.txt, or name the id with --ignore_index"
                )
    used = {value for split in SPLITS for value in pixels[split]}
    if n_classes < 2 or 2 * len(used) < n_classes:
        largest = max(used, default=0)
        example = pixels["train"].get(largest, "the masks")
        raise UserError(
            f"{example}: {len(used)} distinct values up to {largest} do not look like class ids 0, 1, 2, ... (255 is "
            "not labelled): renumber the masks, or list the classes in classes.txt"
        )
    return n_classes


def _split_folder(root: Path, split: str) -> Path:
    candidates = ("val", "validation") if split == "validation" else (split,)
    found = [root / name for name in candidates if (root / name).is_dir()]
    if not found:
        raise UserError(
            f"{root}: no folder {' or '.join(candidates)}: a folder data set is {{train,val,test}}/{{images,masks}}"
        )
    for part in ("images", "masks"):
        if not (found[0] / part).is_dir():
            raise UserError(f"{found[0] / part}: no such folder: put the split's {part} there")
    return found[0]


def _class_names(root: Path) -> tuple[str, ...] | None:
    path = root / "classes.txt"
    if not path.is_file():
        return None
    names = tuple(read_lines(path))
    if not 2 <= len(names) <= 255 or len(set(names)) != len(names):
        raise UserError(f"{path}: {len(names)} names: expected 2 to 255 different class names, one a line")
    if taken := [name for name in names if name in TAKEN_NAMES]:
        raise UserError(f"{path}: results.csv has another column dice_{taken[0]}: give class {taken[0]!r} another name")
    return names
