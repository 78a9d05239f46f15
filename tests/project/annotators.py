"""Pools for projects, and annotators who know the truth."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from alges_fast.annotation.desk import DESK, Sheet, on_sheet
from alges_fast.annotation.exports import AnnotatedFrame, cvat_xml, file_name
from alges_fast.data.loading import palette
from alges_fast.project.cli import main
from alges_fast.windows import Window

CLASSES = ("wall", "große Ader", "tool")


@dataclass(frozen=True)
class Annotator:
    """Draws what is true: id -> mask, 255 where it is not known."""

    truth: dict[str, NDArray[np.uint8]]
    classes: Sequence[str]

    def frames(self, picks: Path) -> list[AnnotatedFrame]:
        """The picked frames and windows as they should come back."""
        windows: dict[str, list[Window]] = {}
        for row in rows_of(picks):
            box = [int(row[name]) for name in ("x", "y", "width", "height")] if row["x"] else []
            windows.setdefault(row["frame"], []).extend([Window(row["frame"], *box)] if box else [])
        return [
            AnnotatedFrame(file_name(id), within(self.truth[id], boxes), 1.0, boxes) for id, boxes in windows.items()
        ]

    def on_sheets(self, round: Path, *, alone: bool) -> list[AnnotatedFrame]:
        """A round's sheets, or its windows that are alone in a picture, as they should come back."""
        pictures = []
        for sheet in map(Sheet.from_json, json.loads((round / DESK).read_text(encoding="utf-8"))):
            if (len(sheet.cells) == 1) == alone:
                masks = {cell.window: self.truth[str(cell.window.id)][cell.window.box] for cell in sheet.cells}
                boxes = [cell.on(sheet.name) for cell in sheet.cells]
                pictures.append(AnnotatedFrame(sheet.name, on_sheet(sheet, masks), 1.0, boxes))
        return pictures

    def cvat(self, picks: Path, path: Path, *, only: slice = slice(None)) -> Path:
        """An export of CVAT with these of the picked frames."""
        return self.cvat_of(self.frames(picks)[only], path)

    def cvat_of(self, pictures: Sequence[AnnotatedFrame], path: Path) -> Path:
        """An export of CVAT with these pictures."""
        path.write_text(cvat_xml(pictures, self.classes, palette(len(self.classes))), encoding="utf-8")
        return path

    def answer(self, number: int, *flags: str, train: bool = True) -> None:
        """Import the truth of all that a round of the project `p` picked, then train."""
        run("import", "p", str(self.cvat(Path(f"p/rounds/{number:03d}/picks.csv"), Path("returned.xml"))), *flags)
        if train:
            run("train", "p")


def within(mask: NDArray[np.uint8], windows: Sequence[Window]) -> NDArray[np.uint8]:
    """The mask inside of windows alone; all of it for none."""
    if not windows:
        return mask
    found = np.full_like(mask, 255)
    for _, x, y, width, height in windows:
        found[y : y + height, x : x + width] = mask[y : y + height, x : x + width]
    return found


def small_pool(folder: Path, n_videos: int = 4, n_frames: int = 6) -> Annotator:
    """Videos of pictures of 60 x 48: a bright tool and a dark vessel that move over a wall."""
    truth = {}
    for video in range(n_videos):
        generator = np.random.default_rng(video)
        for number in range(n_frames):
            mask = np.zeros((48, 60), np.uint8)
            y, x = generator.integers(2, 30), generator.integers(2, 40)
            mask[y : y + 6, :] = 1
            mask[x // 2 : x // 2 + 14, x : x + 14] = 2
            colours = np.array([(150, 90 + 10 * video, 80), (90, 20, 20), (220, 220, 230)], np.float64)
            picture = (colours[mask] + generator.normal(0, 12, (48, 60, 3))).clip(0, 255).astype(np.uint8)
            id = f"OP {video}/frame_{number * 60:04d}.png"
            (folder / id).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / id)
            truth[id] = mask
    return Annotator(truth, CLASSES)


def camvid_pool(root: Path, folder: Path, every: int) -> Annotator:
    """Frames of CamVid's training split at a quarter of their side, in order, with its masks as the truth."""
    classes = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
    truth = {}
    folder.mkdir(parents=True)
    for path in sorted((root / "train" / "images").iterdir())[::every]:
        with Image.open(path) as picture:
            picture.reduce(4).save(folder / f"{path.stem}.png")
        with Image.open(root / "train" / "masks" / f"{path.stem}.png") as picture:
            mask = np.array(picture)[2::4, 2::4]
        mask[mask >= len(classes)] = 255
        truth[f"{path.stem}.png"] = mask
    return Annotator(truth, classes)


def run(*argv: str) -> None:
    assert main(list(argv)) == 0


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a step prints."""
    capsys.readouterr()
    run(*argv)
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a step is refused with, which changes nothing."""
    before = contents(Path("p"))
    capsys.readouterr()
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert contents(Path("p")) == before
    return error


def rows_of(path: Path) -> list[dict[str, str]]:
    """Of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def begin(root: str = "p", *more: str, classes: Sequence[str] = CLASSES) -> None:
    run("new", root, "--images", "pool", "--classes", ",".join(classes), "--image_size", "64", *more)


def contents(root: Path) -> dict[str, bytes]:
    """Files by their path below the folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
