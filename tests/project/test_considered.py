"""A project whose rounds consider some of the pool: which, what is said of it, and that it stays so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alges_fast.project import choosing
from alges_fast.project.cli import main
from tests.project.annotators import CLASSES, Annotator, contents, small_pool

RANDOM = ("-n", "2", "--strategy", "stratified-random", "--consider", "8")


@pytest.fixture
def annotator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Annotator:
    """A project over a pool in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    made = small_pool(tmp_path / "pool", 3, 6)
    assert main(["new", "p", "--images", "pool", "--classes", ",".join(CLASSES), "--image_size", "64"]) == 0
    return made


def record(number: int) -> list[int]:
    considered: list[int] = json.loads(Path(f"p/rounds/{number:03d}/round.json").read_text())["considered"]
    return considered


def test_rounds_say_how_many_frames_they_considered(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["next", "p", *RANDOM]) == 0
    assert record(0) == [8, 18, 0]
    assert "Of the pool: 8 of 18 frames considered." in Path("p/rounds/000/index.html").read_text(encoding="utf-8")
    first = contents(Path("p"))
    assert main(["next", "p", *RANDOM]) == 0
    assert contents(Path("p")) == first
    annotator.cvat(Path("p/rounds/000/picks.csv"), Path("a.xml"))
    assert main(["import", "p", "a.xml"]) == 0
    assert main(["next", "p", "-n", "1", "--regions", "2x3", "--strategy", "random", "--consider", "3"]) == 0
    assert record(1) == [3, 16, 0]
    capsys.readouterr()
    assert main(["status", "p"]) == 0
    said = capsys.readouterr().out
    assert "2 frames by stratified-random, 8 of 18 frames considered" in said
    assert "3 of 16 frames considered" in said
    assert "next p -n 1 --regions 2x3 --strategy random --consider 3" in Path("p/status.html").read_text() or (
        "import p" in said
    )


def test_what_is_refused_is_replaced_from_the_frames_that_were_considered(annotator: Annotator) -> None:
    assert main(["next", "p", *RANDOM]) == 0
    before = [frame.name for frame in annotator.frames(Path("p/rounds/000/picks.csv"))]
    Path("no.txt").write_text(before[0] + "\n", encoding="utf-8")
    assert main(["next", "p", *RANDOM, "--reject", "no.txt"]) == 0
    after = [frame.name for frame in annotator.frames(Path("p/rounds/000/picks.csv"))]
    assert after[0] == before[1]
    assert before[0] not in after
    assert record(0) == [8, 18, 0]


def test_by_default_a_pool_is_considered_up_to_a_size(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something looks at it; what is drawn blindly is drawn from all."""
    monkeypatch.setattr(choosing, "CONSIDERED", 7)
    assert main(["next", "p", "-n", "2"]) == 0
    assert record(0) == [7, 18, 0]
    annotator.cvat(Path("p/rounds/000/picks.csv"), Path("a.xml"))
    assert main(["import", "p", "a.xml"]) == 0
    assert main(["next", "p", "-n", "2", "--strategy", "random"]) == 0
    assert record(1) == [16, 16, 0]
    assert "considered" not in Path("p/rounds/001/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["-n", "9", "--consider", "8"], "--consider is 8, fewer frames than -n 9 asks for"),
        (["--consider", "0"], "--consider is 0: give at least 1"),
        (["-n", "30", "--strategy", "random"], "the pool has 18 frames left"),
        (["-n", "30", "--strategy", "random", "--consider", "40"], "what --consider 40 leaves has 18 frames left"),
    ],
)
def test_too_few_are_refused_in_a_line(
    annotator: Annotator, capsys: pytest.CaptureFixture[str], asked: list[str], said: str
) -> None:
    assert main(["next", "p", *asked]) == 2
    assert said in capsys.readouterr().err
