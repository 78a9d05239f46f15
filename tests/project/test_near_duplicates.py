"""A project's near-duplicates: what is said of them, and that --thin leaves them out and forgets none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alges_fast.annotation.exports import AnnotatedFrame
from tests.project.annotators import Annotator, begin, contents, refused, run, said, small_pool


@pytest.fixture
def annotator(here: Path) -> Annotator:
    """A project over a pool in which every frame is there three times, one after the other."""
    made = small_pool(here / "pool", 2, 4)
    for path in sorted(Path("pool").rglob("*.png")):
        for more in (1, 2):
            name = f"{path.parent.name}/frame_{int(path.stem[-4:]) + more:04d}.png"
            shutil.copy(path, Path("pool") / name)
            made.truth[name] = made.truth[f"{path.parent.name}/{path.name}"]
    begin()
    return made


def picked(annotator: Annotator, number: int) -> list[str]:
    return [frame.name for frame in annotator.frames(Path(f"p/rounds/{number:03d}/picks.csv"))]


def scene(name: str) -> tuple[str, int]:
    """What a frame is a copy of."""
    return name[:4], int(name[-8:-4]) // 60


def test_copies_are_left_out_counted_and_still_there(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    assert "how alike the frames are is measured when a round first looks" in said(capsys, "status", "p")
    asked = ["next", "p", "-n", "4", "--strategy", "random", "--min_gap", "0", "--thin", "0.01"]
    run(*asked)
    first = picked(annotator, 0)
    assert all(int(name[-8:-4]) % 60 == 0 for name in first)
    assert json.loads(Path("p/rounds/000/round.json").read_text())["considered"] == [8, 8, 16]
    assert "Of the pool: 16 near-duplicates left out." in Path("p/rounds/000/index.html").read_text(encoding="utf-8")
    before = contents(Path("p"))
    run(*asked)
    assert contents(Path("p")) == before
    annotator.answer(0, train=False)
    text = said(capsys, "status", "p")
    assert "100%, 100%, 100% of the frames have another of their video within 0.1, 0.2, 0.3" in text
    assert "of 24" in text
    assert "16 near-duplicates left out" in text

    error = refused(capsys, "next", "p", "-n", "5", "--strategy", "random", "--min_gap", "0", "--thin", "0.01")
    assert "the pool has 4 frames left to choose from" in error
    assert "16 frames more are near-duplicates that --thin 0.01 leaves out" in error
    run("next", "p", "-n", "5", "--strategy", "random", "--min_gap", "0")  # they are still there


def test_what_is_labelled_stands_for_its_copies(annotator: Annotator) -> None:
    labelled = "OP 0/frame_0061.png"
    annotator.cvat_of([AnnotatedFrame(labelled, annotator.truth[labelled], 1.0, [])], Path("a.xml"))
    run("import", "p", "a.xml")
    run("next", "p", "-n", "7", "--strategy", "random", "--min_gap", "0", "--thin", "0.01")
    found = picked(annotator, 1)
    assert scene(labelled) not in map(scene, found)
    assert len(set(map(scene, found))) == 7


@pytest.mark.parametrize("radius", ["0", "-1", "nan", "inf"])
def test_a_distance_that_is_none_is_refused(
    annotator: Annotator, capsys: pytest.CaptureFixture[str], radius: str
) -> None:
    assert "give a finite number above 0" in refused(capsys, "next", "p", f"--thin={radius}")
