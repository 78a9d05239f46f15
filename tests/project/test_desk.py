"""Rounds of windows on sheets: labels are those that come through frames, whatever the annotator answers with."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alges_fast.annotation.desk import Sheet
from alges_fast.annotation.exports import ALL, ANSWER
from alges_fast.project.folder import TimedPicture, opened
from alges_fast.project.timing import ENOUGH, fit_prices
from tests.project.annotators import Annotator, begin, contents, refused, run, said


def sheets_of(root: str, round: int, *, alone: bool = False) -> list[Sheet]:
    with opened(Path(root)) as project:
        return [sheet for sheet in project.rounds[round].sheets if (len(sheet.cells) == 1) == alone]


def first_round(annotator: Annotator) -> Path:
    """CVAT's file of a project's first round of windows, on a sheet."""
    begin()
    run("next", "p", "-n", "1", "--regions", "4x4")
    return annotator.cvat_of(annotator.on_sheets(Path("p/rounds/000"), alone=False), Path("a.xml"))


def test_two_rounds_on_sheets_and_on_frames_are_the_same_project(annotator: Annotator) -> None:
    ways = ("sheets", "frames")
    for desk in ways:
        begin(desk)
        for round in range(2):
            run("next", desk, "-n", "1", "--regions", "4x4", "--desk", desk)
            folder = Path(f"{desk}/rounds/{round:03d}")
            sheets = desk == "sheets"
            sent = annotator.on_sheets(folder, alone=False) if sheets else annotator.frames(folder / "picks.csv")
            run("import", desk, str(annotator.cvat_of(sent, Path("a.xml"))), "--accept_untouched")
            run("train", desk)
    labels = [contents(Path(desk) / "labels") for desk in ways]
    assert labels[0] == labels[1]
    assert len(labels[0]) > 1
    picks = [[Path(f"{desk}/rounds/00{round}/picks.csv").read_text() for round in range(2)] for desk in ways]
    assert picks[0] == picks[1]
    with opened(Path("sheets")) as on_sheets, opened(Path("frames")) as on_frames:
        assert on_sheets.labelled == on_frames.labelled
    assert "sheet" in Path("sheets/rounds/001/index.html").read_text()
    with zipfile.ZipFile("sheets/rounds/001/cvat.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith("images/")]
    assert names == ["images/round001_sheet1.jpg"]
    with Image.open("sheets/rounds/001/images/round001_sheet1.jpg") as picture:
        assert picture.size == sheets_of("sheets", 1)[0].size[::-1]


def test_cvat_gets_sheets_and_label_studio_windows_alone(annotator: Annotator) -> None:
    first_round(annotator)
    tasks = json.loads(Path("p/rounds/000/label_studio/tasks.json").read_text())
    assert len(tasks) == 16
    assert {task["data"]["frame"] for task in tasks} == {sheet.name for sheet in sheets_of("p", 0, alone=True)}
    (sheet,) = sheets_of("p", 0)
    assert len(sheet.cells) == 16
    assert 'hotkey="1"' in Path("p/rounds/000/label_studio/config.xml").read_text()


def test_only_windows_that_were_answered_or_changed_are_labels(
    annotator: Annotator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A half-done sheet comes back with the model's prediction in all other windows."""
    run("import", "p", str(first_round(annotator)))
    run("train", "p")
    run("next", "p", "-n", "1", "--regions", "4x4")
    with zipfile.ZipFile("p/rounds/001/cvat.zip") as archive:
        text = archive.read("annotations.xml").decode()
    answer = f'<attribute name="{ANSWER}">'
    for given in (ALL + annotator.classes[2], "prediction is right"):  # of the first two windows
        text = text.replace(f"{answer}as drawn", f"{answer}{given}", 1)
    Path("half.xml").write_text(text, encoding="utf-8")
    assert "13 more came back exactly as the model predicted" in refused(capsys, "import", "p", "half.xml")
    run("import", "p", "half.xml", "--leave_untouched")
    cells = sheets_of("p", 1)[0].cells
    with opened(Path("p")) as project:
        taken = [window for windows in project.imports[-1].frames.values() for window in windows or ()]
        assert set(taken) == {cells[0].window, cells[1].window}
        label = project.label(str(cells[0].window.id))
        assert (label[cells[0].window.box] == 2).all()
        assert len(project.missing) == 14
    assert "nothing new came back" in said(capsys, "import", "p", "half.xml", "--leave_untouched")


def test_refused_windows_are_not_asked_for_again(annotator: Annotator) -> None:
    path = first_round(annotator)
    answer = f'<attribute name="{ANSWER}">'
    path.write_text(path.read_text().replace(answer + "as drawn", answer + "refuse", 3), encoding="utf-8")
    run("import", "p", str(path))
    refused = {cell.window for cell in sheets_of("p", 0)[0].cells[:3]}
    with opened(Path("p")) as project:
        assert project.refused == refused
        assert not project.missing
    run("train", "p")
    run("next", "p", "-n", "4", "--regions", "4x4")
    with opened(Path("p")) as project:
        assert not refused & set(project.rounds[-1].picks or ())


def test_times_are_kept_and_prices_fitted(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    begin()
    run("next", "p", "-n", "2", "--regions", "4x4")
    crops = sheets_of("p", 0, alone=True)
    assert len(crops) >= ENOUGH
    tasks = json.loads(Path("p/rounds/000/label_studio/tasks.json").read_text())
    back = []
    for number, task in enumerate(tasks):
        annotation = {"id": number, "lead_time": 7.0, "result": task["predictions"][0]["result"]}
        chosen = {"type": "choices", "from_name": ANSWER, "value": {"choices": [ALL + annotator.classes[number % 3]]}}
        back.append({"data": task["data"], "annotations": [{**annotation, "result": [*annotation["result"], chosen]}]})
    Path("back.json").write_text(json.dumps(back))
    run("import", "p", "back.json")
    text = said(capsys, "status", "p")
    assert f"round 0: 7.0 s a window ({len(crops)})" in text
    assert f"mostly {annotator.classes[1]}: 7.0 s a window" in text
    assert f"prices fitted to {len(crops)} pictures" in text


def test_prices_are_found_again() -> None:
    generator = np.random.default_rng(0)
    true, times = np.array([6.0, 2.5, 80.0]), []
    for _ in range(60):
        looks, sides = int(generator.integers(1, 30)), float(generator.random() * 3)
        seconds = float(true @ [1, looks, sides] + generator.normal(0, 0.5))
        times.append(TimedPicture(seconds, looks, sides, 0, False))
    fitted = fit_prices(times)
    for name, value in zip(("open", "look", "draw"), true, strict=True):
        assert getattr(fitted.prices, name) == pytest.approx(value, rel=0.1)
        assert getattr(fitted.low, name) <= value <= getattr(fitted.high, name)
    assert fit_prices(times[: ENOUGH - 1]) is None
