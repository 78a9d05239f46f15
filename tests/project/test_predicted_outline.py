"""`project next --budget outline`: what is predicted, spent, drawn and said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alges_fast.project.cli import main
from alges_fast.training.labelled import box_of, outline
from tests.project.annotators import Annotator, begin, refused, rows_of, run


def test_predicted_outline_is_spent_and_stands_beside_what_was_drawn(
    annotator: Annotator, capsys: pytest.CaptureFixture[str]
) -> None:
    begin()
    says = refused(capsys, "next", "p", "--budget", "outline")
    assert "--budget outline is predicted by a trained model: give --model, or leave" in says
    run("next", "p", "-n", "8")
    annotator.answer(0, train=False)
    assert ", predicted" not in capsys.readouterr().out
    run("train", "p")

    chosen = ("next", "p", "-n", "3", "--regions", "3x4", "--budget", "outline")
    run(*chosen)
    rows = rows_of(Path("p/rounds/001/picks.csv"))
    expected = sum(float(row["outline"]) for row in rows)
    assert expected > 0
    page = Path("p/rounds/001/index.html").read_text(encoding="utf-8")
    assert f"expects {expected:,.0f} pixels of outline to be drawn" in page
    assert "pixels of predicted outline" in page
    assert 0.9 < float(rows[-1]["budget_spent"]) <= 1  # the next window would have exceeded it
    assert main([*chosen[:-2]]) == 2  # another round than the one that is out
    run(*chosen)

    sent = annotator.frames(Path("p/rounds/001/picks.csv"))
    drawn = sum(outline(frame.mask[box_of(window)]) for frame in sent for window in frame.windows)
    annotator.cvat(Path("p/rounds/001/picks.csv"), Path("second.xml"))
    capsys.readouterr()
    run("import", "p", "second.xml", "--accept_untouched")
    found = re.search(r"outline drawn: ([\d,]+) pixels, predicted: ([\d,]+)", capsys.readouterr().out)
    assert int(found[1].replace(",", "")) == drawn
    assert int(found[2].replace(",", "")) == pytest.approx(expected, abs=1)
    run("train", "p")
    run("status", "p")
    said = capsys.readouterr().out
    assert f"outline drawn {drawn:,} pixels, predicted {expected:,.0f}" in said
    assert sorted(chosen) in [sorted(line.split()[3:]) for line in said.splitlines()]  # what it says to type now
