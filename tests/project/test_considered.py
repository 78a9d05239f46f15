"""A project whose rounds consider some of the pool: which, what is said of it, and that it stays so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alges_fast.project import choosing
from tests.project.annotators import Annotator, begin, contents, refused, run, said, small_pool

RANDOM = ("-n", "2", "--strategy", "stratified-random", "--consider", "8")


@pytest.fixture
def annotator(here: Path) -> Annotator:
    """A project over a pool in the working directory."""
    annotator = small_pool(here / "pool", 3, 6)
    begin()
    return annotator


def record(number: int) -> list[int]:
    considered: list[int] = json.loads(Path(f"p/rounds/{number:03d}/round.json").read_text())["considered"]
    return considered


def test_rounds_say_how_many_frames_they_considered(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    run("next", "p", *RANDOM)
    assert record(0) == [8, 18, 0]
    assert "Of the pool: 8 of 18 frames considered." in Path("p/rounds/000/index.html").read_text(encoding="utf-8")
    first = contents(Path("p"))
    run("next", "p", *RANDOM)
    assert contents(Path("p")) == first
    annotator.answer(0, train=False)
    run("next", "p", "-n", "1", "--regions", "2x3", "--strategy", "random", "--consider", "3")
    assert record(1) == [3, 16, 0]
    text = said(capsys, "status", "p")
    assert "2 frames by stratified-random, 8 of 18 frames considered" in text
    assert "3 of 16 frames considered" in text


def test_what_is_refused_is_replaced_from_the_frames_that_were_considered(annotator: Annotator) -> None:
    run("next", "p", *RANDOM)
    before = [frame.name for frame in annotator.frames(Path("p/rounds/000/picks.csv"))]
    Path("no.txt").write_text(before[0] + "\n", encoding="utf-8")
    run("next", "p", *RANDOM, "--reject", "no.txt")
    after = [frame.name for frame in annotator.frames(Path("p/rounds/000/picks.csv"))]
    assert after[0] == before[1]
    assert before[0] not in after
    assert record(0) == [8, 18, 0]


def test_by_default_a_pool_is_considered_up_to_a_size(annotator: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something looks at it; what is drawn blindly is drawn from all."""
    monkeypatch.setattr(choosing, "CONSIDERED", 7)
    run("next", "p", "-n", "2")
    assert record(0) == [7, 18, 0]
    annotator.answer(0, train=False)
    run("next", "p", "-n", "2", "--strategy", "random")
    assert record(1) == [16, 16, 0]
    assert "considered" not in Path("p/rounds/001/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["-n", "9", "--consider", "8"], "--consider is 8, fewer frames than -n 9 asks for"),
        (["--consider", "0"], "--consider is 0: give at least 1"),
        (["-n", "30", "--strategy", "random"], "the pool has 18 frames left"),
        (["-n", "30", "--strategy", "random", "--consider", "40"], "what --consider 40 leaves has 18 frames left"),
    ],
)
def test_too_few_are_refused_in_a_line(
    annotator: Annotator, capsys: pytest.CaptureFixture[str], asked: list[str], says: str
) -> None:
    assert says in refused(capsys, "next", "p", *asked)
