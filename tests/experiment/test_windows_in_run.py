"""`--regions` in run: budgets, what is labelled, resuming, several processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import SMALL, contents, finish, rows, start_group

from alges_fast.data import load_dataset
from alges_fast.errors import UserError
from alges_fast.experiment import initial_pool
from alges_fast.experiment.curve import check_budget, curves_of
from alges_fast.experiment.state import RoundFolder
from alges_fast.prices import Prices
from alges_fast.run import main, parse
from alges_fast.training.labelled import Labelled
from alges_fast.windows import Window, named

SIZE = 64
FLAGS = [
    *("--image_size", str(SIZE), "--strategies", "random,entropy,alges-img,full@none", "--regions", "none,3x3"),
    *("--epochs", "2", "--lr", "0.01"),
]


@pytest.fixture(scope="module")
def command(root: Path) -> list[str]:
    return [*SMALL, "--data_root", str(root), *FLAGS]


def picked(out: Path, curve: str, round: int) -> list[Window | str]:
    return [named(name) for name in json.loads((out / curve / f"seed0/round{round:02d}/picks.json").read_text())["ids"]]


def test_results_have_a_row_for_every_strategy_and_grid(whole: Path) -> None:
    found = [(row["strategy"], row["regions"], row["round"], row["n_labelled"]) for row in rows(whole)]
    curves = [(strategy, grid) for strategy in ("random", "entropy", "alges-img") for grid in ("none", "3x3")]
    expected = [(*curve, str(r), str(2 + r)) for curve in curves for r in range(3)]
    assert found == [*expected, ("full", "none", "0", "6")]
    assert (whole / "report.html").stat().st_size > 0
    assert {path.name for path in whole.iterdir() if (path / "seed0").is_dir()} == {
        *("random", "random@3x3", "entropy", "entropy@3x3", "alges-img", "alges-img@3x3", "full"),
    }


@pytest.mark.parametrize("curve", ["random@3x3", "entropy@3x3", "alges-img@3x3"])
def test_a_query_spends_its_frames_worth_of_pixels_on_windows_and_no_more(whole: Path, curve: str) -> None:
    windows = [piece for round in (0, 1) for piece in picked(whole, curve, round)]
    assert all(isinstance(window, Window) for window in windows)
    assert len(set(windows)) == len(windows)
    sizes = [window.pixels for window in windows if isinstance(window, Window)]
    assert set(sizes) <= {21 * 21, 21 * 22, 22 * 22}
    for round in (0, 1):
        spent = sum(piece.pixels for r in range(round + 1) for piece in picked(whole, curve, r) if piece in windows)
        assert (round + 1) * SIZE**2 - 22 * 22 < spent <= (round + 1) * SIZE**2  # what one leaves the next spends


def test_effort_is_what_the_annotator_did(whole: Path, root: Path, environment: dict[str, str]) -> None:
    pool = load_dataset(
        "folder", root=root, image_size=SIZE, ignore_index=11, cache_dir=environment["ALGES_FAST_CACHE"]
    ).train
    first = tuple(pool.ids[p] for p in initial_pool(len(pool), 2, 0))
    checked = 0
    for row in rows(whole):
        if row["strategy"] == "full":
            assert (row["labelled_share"], row["n_frames"]) == ("1.0", "6")
            continue
        name = row["strategy"] if row["regions"] == "none" else f"{row['strategy']}@{row['regions']}"
        pieces = [piece for round in range(int(row["round"])) for piece in picked(whole, name, round)]
        effort = Labelled(pool, (*first, *pieces)).effort()
        assert float(row["labelled_share"]) == effort.labelled_share
        assert (int(row["n_frames"]), int(row["outline"])) == (effort.n_frames, effort.outline)
        assert int(row["windows"]) == effort.windows
        pictures, looks, drawn = (int(row[name]) for name in ("pictures", "windows", "outline"))
        seconds = Prices().seconds(pictures=pictures, looks=looks, outline=drawn, side=SIZE)
        assert float(row["seconds"]) == pytest.approx(seconds, abs=0.1)
        assert not {piece.id for piece in pieces if isinstance(piece, Window)}.intersection(first)
        checked += effort.outline > 0
    assert checked >= 12
    assert "annotating time" in (whole / "report.html").read_text()


def test_the_first_training_is_the_same_with_windows_and_without(whole: Path) -> None:
    first = {(row["strategy"], row["regions"]): row["dice"] for row in rows(whole) if row["round"] == "0"}
    del first["full", "none"]
    assert len(set(first.values())) == 1
    second = {row["regions"]: row["dice"] for row in rows(whole) if row["round"] == "1" and row["strategy"] == "random"}
    assert second["none"] != second["3x3"]


def test_a_run_with_windows_killed_and_resumed_equals_one_that_was_not(
    whole: Path, command: list[str], alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after every second step of a curve with windows, before and after the step is recorded."""
    finish_step, left = RoundFolder.finish, 0

    def stopped(folder: RoundFolder, step: str, **facts: float) -> None:
        nonlocal left
        left -= "@" in str(folder.path)
        if left == -1:
            raise KeyboardInterrupt
        finish_step(folder, step, **facts)
        if left == -2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RoundFolder, "finish", stopped)
    stops = 0
    for allowed in [0, 1, 2, 1, 0, 3, 1, 2, 100]:
        left = allowed
        code = main([*command, "--out", str(tmp_path / "out")])
        stops += code == 130
    assert code == 0
    assert stops == 8
    assert rows(tmp_path / "out") == rows(whole)
    assert contents(tmp_path / "out") == contents(whole)


def test_two_processes_give_the_windows_of_one(
    whole: Path, command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    processes = start_group(tmp_path / "logs", [*command, "--out", str(out)], environment, 2)
    codes = [finish(process, 300) for process in processes]
    assert codes == [0, 0], [path.read_text() for path in (tmp_path / "logs").iterdir()]
    for curve in ("random@3x3", "entropy@3x3", "alges-img@3x3"):
        for round in (0, 1):
            assert picked(out, curve, round) == picked(whole, curve, round)
    assert rows(out) == rows(whole)


def test_windows_that_are_not_the_pools_are_refused(
    whole: Path, command: list[str], alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    picks = out / "entropy@3x3/seed0/round01/picks.json"
    stored = json.loads(picks.read_text())
    earlier = json.loads((out / "entropy@3x3/seed0/round00/picks.json").read_text())["ids"][0]
    for name in (earlier, stored["ids"][0].replace("xywh=", "xywh=1"), "train/trainA_0"):
        picks.write_text(json.dumps({**stored, "ids": [name, *stored["ids"][1:]]}))
        assert main([*command, "--out", str(out)]) == 2
        assert f"{picks} is damaged" in capsys.readouterr().err


def test_queries_consider_some_frames_alone_and_say_how_many(command: list[str], alone: None, tmp_path: Path) -> None:
    given = [*command, "--out", str(tmp_path / "out"), "--strategies", "random@3x3", "--consider", "2"]
    assert main(given) == 0
    for number in (0, 1):
        picks = json.loads((tmp_path / f"out/random@3x3/seed0/round{number:02d}/picks.json").read_text())
        assert picks["considered"] == 2
        assert 1 <= len({named(id).id for id in picks["ids"]}) <= 2  # type: ignore[union-attr]
    with pytest.raises(UserError, match="--consider is 1: give at least what a query chooses, 2 frames"):
        parse([*given, "--consider", "1", "--query_size", "2"])


FRAMES_AND_WINDOWS = ["--preset", "none", "--strategies", "random,entropy", "--regions", "none,8x8"]


def test_curves_are_strategies_with_every_grid_or_their_own() -> None:
    config = parse(["--strategies", "random,entropy@4x4,full,coreset@none", "--regions", "none,8x8", "--rounds", "3"])
    names = ["random", "random@8x8", "entropy@4x4", "full", "coreset"]
    assert [curve.name for curve in curves_of(config)] == names
    assert [curve.n_rounds for curve in curves_of(config)] == [3, 3, 3, 1, 3]
    longer = parse([*FRAMES_AND_WINDOWS, "--rounds", "3", "--random_rounds", "9"])
    assert [curve.n_rounds for curve in curves_of(longer)] == [9, 9, 3, 3]
    coarser = parse([*FRAMES_AND_WINDOWS, "--rounds", "6", "--random_rounds", "4", "--random_query_size", "20"])
    assert [curve.n_labelled(coarser, 99, 2) for curve in curves_of(coarser)] == [50, 50, 30, 30]
    assert [curve.n_labelled(coarser, 99, curve.n_rounds - 1) for curve in curves_of(coarser)] == [70, 70, 60, 60]
    with pytest.raises(UserError, match=r"4 rounds of 10 \+ 20 frames a query need 70.*lower --random_rounds"):
        check_budget(coarser, curves_of(coarser), 69)
    check_budget(coarser, curves_of(coarser), 70)
    assert next(curve.name for curve in curves_of(parse(["--regions", "2x2"]))) == "random@2x2"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--regions", "4x"], "--regions 4x: give rows x columns"),
        (["--regions", "4x0"], "--regions 4x0"),
        (["--regions", "4x4,4x4"], "--regions names one twice"),
        (["--random_query_size", "3", "--query_size", "2"], "random_query_size is 3: give a multiple of --query_size"),
        (["--preset", "none", "--random_query_size", "20", "--rounds", "6", "--random_rounds", "3"], "give at least 4"),
        (["--random_rounds", "2", "--rounds", "3"], "--random_rounds is 2: give at least 3"),
    ],
)
def test_mistakes_are_told(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(flags)


def test_two_curves_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two strategies of one name"):
        curves_of(parse(["--strategies", "random,random@8x8", "--regions", "8x8"]))
