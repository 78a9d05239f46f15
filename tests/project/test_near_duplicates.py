"""A project's near-duplicates: what is said of them, and that --thin leaves them out and forgets none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alges_fast.annotation.exports import AnnotatedFrame, file_name
from alges_fast.project.cli import main
from tests.project.annotators import CLASSES, Annotator, contents, small_pool


@pytest.fixture
def annotator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Annotator:
    """A project over a pool in which every frame is there three times, one after the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    made = small_pool(tmp_path / "pool", 2, 4)
    for path in sorted(Path("pool").rglob("*.png")):
        for more in (1, 2):
            name = f"{path.parent.name}/frame_{int(path.stem[-4:]) + more:04d}.png"
            shutil.copy(path, Path("pool") / name)
            made.truth[name] = made.truth[f"{path.parent.name}/{path.name}"]
    assert main(["new", "p", "--images", "pool", "--classes", ",".join(CLASSES), "--image_size", "64"]) == 0
    return made


def picked(annotator: Annotator, number: int) -> list[str]:
    return [frame.name for frame in annotator.frames(Path(f"p/rounds/{number:03d}/picks.csv"))]


def scene(name: str) -> tuple[str, int]:
    """What a frame is a copy of."""
    return name[:4], int(name[-8:-4]) // 60


def test_copies_are_left_out_counted_and_still_there(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "p"]) == 0
    assert "how alike the frames are is measured when a round first looks" in capsys.readouterr().out
    asked = ["next", "p", "-n", "4", "--strategy", "random", "--min_gap", "0", "--thin", "0.01"]
    assert main(asked) == 0
    first = picked(annotator, 0)
    assert all(int(name[-8:-4]) % 60 == 0 for name in first)
    assert json.loads(Path("p/rounds/000/round.json").read_text())["considered"] == [8, 8, 16]
    assert "Of the pool: 16 near-duplicates left out." in Path("p/rounds/000/index.html").read_text(encoding="utf-8")
    before = contents(Path("p"))
    assert main(asked) == 0
    assert contents(Path("p")) == before
    annotator.cvat(Path("p/rounds/000/picks.csv"), Path("a.xml"))
    assert main(["import", "p", "a.xml"]) == 0
    capsys.readouterr()
    assert main(["status", "p"]) == 0
    said = capsys.readouterr().out
    assert "100%, 100%, 100% of the frames have another of their video within 0.1, 0.2, 0.3" in said
    assert "of 24" in said
    assert "16 near-duplicates left out" in said

    assert main(["next", "p", "-n", "5", "--strategy", "random", "--min_gap", "0", "--thin", "0.01"]) == 2
    error = capsys.readouterr().err
    assert "the pool has 4 frames left to choose from" in error
    assert "16 frames more are near-duplicates that --thin 0.01 leaves out" in error
    assert main(["next", "p", "-n", "5", "--strategy", "random", "--min_gap", "0"]) == 0  # they are still there


def test_what_is_labelled_stands_for_its_copies(annotator: Annotator) -> None:
    Path("masks").mkdir()
    labelled = "OP 0/frame_0061.png"
    annotator.cvat_of([frame for frame in _frames(annotator) if frame.name == labelled], Path("a.xml"))
    assert main(["import", "p", "a.xml"]) == 0
    assert main(["next", "p", "-n", "7", "--strategy", "random", "--min_gap", "0", "--thin", "0.01"]) == 0
    found = picked(annotator, 1)
    assert scene(labelled) not in map(scene, found)
    assert len(set(map(scene, found))) == 7


def _frames(annotator: Annotator) -> list[AnnotatedFrame]:
    return [AnnotatedFrame(file_name(id), mask, 1.0, []) for id, mask in annotator.truth.items()]


@pytest.mark.parametrize("radius", ["0", "-1", "nan", "inf"])
def test_a_distance_that_is_none_is_refused(
    annotator: Annotator, capsys: pytest.CaptureFixture[str], radius: str
) -> None:
    assert main(["next", "p", f"--thin={radius}"]) == 2
    assert "give a finite number above 0" in capsys.readouterr().err
