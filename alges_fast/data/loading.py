"""From a listed tree to a `Dataset`: every frame decoded once, in parallel, into the cache."""

from __future__ import annotations

import colorsys
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alges_fast.data.cache import CacheWriter, content_key, load_or_build
from alges_fast.data.files import SPLITS, Decoded, Faults, FaultyFile, FrameFile, Listing, decode, read_image
from alges_fast.data.frames import Dataset
from alges_fast.data.layouts.folder import classes_of_masks
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Survey:
    """What reading every frame tells beside its pixels.

    pixels[split] counts each id before resizing (256 entries); first[split] maps an id to the first mask that has it;
    faults are the frames left out, one line each; unknown counts pixels per mask value that stands for no class;
    oddities counts frames per remark.
    """

    pixels: dict[str, list[int]]
    first: dict[str, dict[str, str]]
    faults: list[str]
    unknown: dict[str, int]
    oddities: dict[str, int]

    def notes(self) -> list[str]:
        total = sum(map(sum, self.pixels.values()))
        notes = []
        if self.unknown:
            codes = ", ".join(f"{code} ({pixels} px)" for code, pixels in sorted(self.unknown.items()))
            share = 100 * sum(self.unknown.values()) / total
            notes.append(f"mask values of no class, not labelled ({share:.2g} % of all pixels): {codes}")
        present = {value for pixels in self.pixels.values() for value, count in enumerate(pixels) if count}
        if present == {0, UNLABELLED}:
            notes.append(
                "the masks hold class 0 alone, and 255, which is not labelled: if 255 is a class, save it as 1"
            )
        for remark, frames in sorted(self.oddities.items()):
            notes.append(f"{frames} {'frame' if frames == 1 else 'frames'}: {remark}")
        return notes


def load_listing(
    listing: Listing, on_bad_image: str, image_size: int, cache_dir: Path | None, progress: Progress
) -> Dataset:
    """The data set of a listing, decoded at image_size or taken from the cache. Raises UserError."""

    def build(writer: CacheWriter) -> dict[str, Any]:
        def keep(split: str, file: FrameFile, frame: Decoded) -> None:
            writer.append(split, file.id, file.video, file.clip, frame.image, frame.mask)

        survey = read_all(listing, Faults(on_bad_image), image_size, keep, progress)
        for split in SPLITS:
            if not any(survey.pixels[split]):
                raise _empty(listing, split)
        return asdict(survey)

    for split in SPLITS:
        if not listing.splits[split]:
            raise _empty(listing, split)
    listed = [path for split in SPLITS for file in listing.splits[split] for path in (file.image, file.mask)]
    key = f"{listing.mask_key} {content_key(listing.root, listed)}"
    splits, facts = load_or_build(cache_dir, listing.name, key, image_size, build)
    survey = Survey(**facts)
    faults = Faults(on_bad_image)
    for message in survey.faults:  # a cache made with "skip" does not hide them from "stop"
        faults.add(FaultyFile(message))
    names = class_names(listing, survey)
    paths = {file.id: file.image for split in SPLITS for file in listing.splits[split]}
    splits = {
        split: replace(frames, read=lambda id, side: read_image(paths[id], side)) for split, frames in splits.items()
    }
    left_out = (f"left out: {message}" for message in (*listing.faults, *survey.faults))
    notes = (*listing.notes, *left_out, *survey.notes())
    return Dataset(listing.name, names, listing.palette or palette(len(names)), **splits, notes=notes)


def read_all(
    listing: Listing,
    faults: Faults,
    image_size: int,
    keep: Callable[[str, FrameFile, Decoded], None] | None,
    progress: Progress,
) -> Survey:
    """Decode every frame in listed order, on all cores, handing each to keep(split, file, decoded)."""
    total = sum(len(files) for files in listing.splits.values())
    pixels = {split: np.zeros(256, np.int64) for split in SPLITS}
    first: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    unknown: Counter[str] = Counter()
    oddities: Counter[str] = Counter()
    for done, (split, file, result) in enumerate(_decode_in_order(listing, image_size), start=1):
        progress("reading frames", done, total)
        if isinstance(result, FaultyFile):
            faults.add(result)
            continue
        if keep is not None:
            keep(split, file, result)
        pixels[split] += result.pixels
        for value in np.flatnonzero(result.pixels[:255]):
            first[split].setdefault(str(value), str(file.mask))
        unknown.update(result.unknown)
        oddities.update(result.oddities)
    return Survey(
        {split: pixels[split].tolist() for split in SPLITS}, first, faults.messages, dict(unknown), dict(oddities)
    )


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 8) -> Iterator[Result]:
    """function of each item, computed on all cores, in the order of the items; at most `ahead` of them a core at once.

    Items are taken while others are computed, and only a few ahead of what was taken: results do not pile up before a
    slow disk, and little is lost when the caller stops.
    """
    threads = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as executor:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) == ahead * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def class_names(listing: Listing, survey: Survey) -> tuple[str, ...]:
    """The listing's names, or "class 0", "class 1", ... where its masks decide how many there are."""
    if listing.classes is not None:
        return listing.classes
    first = {split: {int(value): mask for value, mask in survey.first[split].items()} for split in SPLITS}
    return tuple(f"class {k}" for k in range(classes_of_masks(first)))


def palette(n_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes that have none: hues a golden angle apart, alternately lighter and darker."""
    colours = (
        colorsys.hsv_to_rgb(0.618034 * k % 1, 0.75 - 0.25 * (k % 2), 0.95 - 0.2 * (k % 3)) for k in range(n_classes)
    )
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)


def _decode_in_order(listing: Listing, image_size: int) -> Iterator[tuple[str, FrameFile, Decoded | FaultyFile]]:
    def attempt(file: FrameFile) -> Decoded | FaultyFile:
        try:
            return decode(file, listing, image_size)
        except FaultyFile as fault:
            return fault

    files = [(split, file) for split in SPLITS for file in listing.splits[split]]
    for (split, file), result in zip(files, map_in_order(attempt, [file for _, file in files]), strict=True):
        yield split, file, result


def _empty(listing: Listing, split: str) -> UserError:
    return UserError(f"{listing.root}: no usable frame in the {split} split: add images with their masks")
