"""`project next --budget outline`: what is predicted, spent, drawn and said."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from alges_fast.project.cli import main
from alges_fast.training.labelled import box_of, outline
from tests.project.annotators import CLASSES, small_pool


def run(*argv: str) -> int:
    return main(list(argv))


def test_predicted_outline_is_spent_and_stands_beside_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    annotator = small_pool(tmp_path / "pool")
    assert run("new", "p", "--images", "pool", "--classes", ",".join(CLASSES), "--image_size", "64") == 0
    assert run("next", "p", "--budget", "outline") == 2
    assert (
        "--budget outline is predicted by a trained model: give --model, or leave it out of the first"
        in capsys.readouterr().err
    )
    assert run("next", "p", "-n", "8") == 0
    annotator.cvat(Path("p/rounds/000/picks.csv"), Path("first.xml"))
    assert run("import", "p", "first.xml") == 0
    assert ", predicted" not in capsys.readouterr().out
    assert run("train", "p") == 0

    chosen = ("next", "p", "-n", "3", "--regions", "3x4", "--budget", "outline")
    assert run(*chosen) == 0
    with Path("p/rounds/001/picks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = sum(float(row["outline"]) for row in rows)
    assert expected > 0
    page = Path("p/rounds/001/index.html").read_text(encoding="utf-8")
    assert f"expects {expected:,.0f} pixels of outline to be drawn" in page
    assert 0.9 < float(rows[-1]["budget_spent"]) <= 1  # the next window would have exceeded it
    assert run(*chosen[:-2]) == 2  # another round than the one that is out
    assert run(*chosen) == 0

    sent = annotator.frames(Path("p/rounds/001/picks.csv"))
    drawn = sum(outline(frame.mask[box_of(window)]) for frame in sent for window in frame.windows)
    annotator.cvat(Path("p/rounds/001/picks.csv"), Path("second.xml"))
    capsys.readouterr()
    assert run("import", "p", "second.xml", "--accept_untouched") == 0
    found = re.search(r"outline drawn: ([\d,]+) pixels, predicted: ([\d,]+)", capsys.readouterr().out)
    assert found is not None
    assert int(found[1].replace(",", "")) == drawn
    assert int(found[2].replace(",", "")) == pytest.approx(expected, abs=1)
    assert run("train", "p") == 0
    assert run("status", "p") == 0
    said = capsys.readouterr().out
    assert f"outline drawn {drawn:,} pixels, predicted {expected:,.0f}" in said
    assert sorted(chosen) in [sorted(line.split()[3:]) for line in said.splitlines()]  # what it says to type now
