"""The report of a run with windows: what it says, over what it draws, and that old runs still read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_run import write_fake_run
from matplotlib.figure import Figure

from alges_fast.report import figures, sections, tables
from alges_fast.report.artefacts import PickRecord
from alges_fast.report.findings import RANDOM_WINDOWS, find, sentences
from alges_fast.report.run_folder import RunFolder, read_results, read_run
from alges_fast.report.saving import CORRECTING, FRAMES, OUTLINE, PIXELS, PRICED, SECONDS
from alges_fast.report.style import LIGHT, in_order, strategy_styles

STRATEGIES = ("random", "stratified-random", "entropy", "alges-effort", "full")
GRIDS = ("none", "4x4", "8x8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("run") / "out"
    return read_run(write_fake_run(out, strategies=STRATEGIES, seeds=6, rounds=4, regions=GRIDS, random_rounds=8))


def test_random_draws_may_take_larger_steps_than_the_others(tmp_path: Path) -> None:
    """They are compared where both have trainings; a saving is told after every training."""
    settings = {"strategies": STRATEGIES[:4], "seeds": 3, "rounds": 5, "query_size": 5, "regions": ("none", "4x4")}
    settings |= {"random_query_size": 10, "artefacts": False}
    run = read_run(write_fake_run(tmp_path / "a", **settings, random_rounds=6))
    assert run.missing() == []
    assert {row["n_labelled"] for row in run.shared_rows} == {10, 20, 30}
    assert {row["n_labelled"] for row in run.compared_rows} == {10, 15, 20, 25, 30}
    found = find(run)
    assert {family.baseline: len(family.comparisons) for family in found.to_baselines} == {
        "random": 7,
        "stratified-random": 7,
        RANDOM_WINDOWS: 3,
    }
    assert list(found.savings[OUTLINE]["entropy@4x4"]) == [15, 20, 25, 30]
    stopped = write_fake_run(tmp_path / "b", **settings, random_rounds=6, unfinished=[("random", 0, 2)])
    assert read_run(stopped).missing() == [f"random{grid} with seed 0 has 2 of 3 trainings" for grid in ("", "@4x4")]
    short = [(name, seed, 1) for name in STRATEGIES[1:4] for seed in range(3)]
    begun = write_fake_run(tmp_path / "c", **settings, random_rounds=6, unfinished=short)
    lacking = read_run(begun).missing()
    assert not any(text.startswith("random") for text in lacking)
    assert "entropy with seed 0 has 1 of 5 trainings" in lacking


def changed(run: RunFolder, out: Path, change: Callable[[dict[str, str]], None]) -> RunFolder:
    """The run with results changed row by row."""
    import csv

    out.mkdir()
    (out / "config.yaml").write_text((run.out / "config.yaml").read_text())
    with (run.out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        change(row)
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return read_run(out)


def test_a_strategy_with_windows_is_a_curve_of_its_own(run: RunFolder) -> None:
    assert run.strategies[:4] == ["random", "random@4x4", "random@8x8", "stratified-random"]
    assert len(run.strategies) == 4 * 3 + 1
    assert run.windows
    assert run.missing() == []
    assert in_order(["a@8x8", "random@16x16", "a", "random@2x2"]) == ["random@2x2", "random@16x16", "a", "a@8x8"]


def test_every_curve_looks_different_and_the_dash_says_the_grid(run: RunFolder) -> None:
    styles = strategy_styles(run.strategies)
    looks = {(style.colour, style.dash, style.marker) for name, style in styles.items() if name != "full"}
    assert len(looks) == len(styles) - 1
    assert {styles[name].dash for name in styles if name.endswith("@8x8")} == {"-"}
    assert len({styles[f"random{grid}"].dash for grid in ("", "@4x4", "@8x8")}) == 3


def test_families_are_random_frames_stratified_frames_and_random_windows(run: RunFolder) -> None:
    found = find(run)
    for families in (found.at_equal, found.to_baselines):
        assert [family.baseline for family in families] == ["random", "stratified-random", RANDOM_WINDOWS]
        assert [len(family.comparisons) for family in families] == [11, 11, 6]
        assert all(c.n == 6 for family in families for c in family.comparisons)
    pairs = [(c.first, c.second) for c in found.at_equal[2].comparisons]
    assert ("alges-effort@8x8", "random@8x8") in pairs
    assert ("alges-effort@4x4", "random@4x4") in pairs
    assert set(found.savings) == {SECONDS, CORRECTING, OUTLINE, PIXELS, FRAMES, *PRICED}
    assert set(found.savings_to_windows) == {first for first, _ in pairs}


def test_comparisons_end_where_all_curves_end_and_savings_are_read_off_the_longer_one(run: RunFolder) -> None:
    found = find(run)
    assert len(found.areas) == 12
    assert {len(by_seed) for by_seed in found.areas.values()} == {6}
    assert max(saving.frames for saving in found.savings[OUTLINE]["alges-effort@8x8"].values()) > 40


def test_the_opening_names_a_strategy_that_beats_random_windows_and_says_by_how_much(run: RunFolder) -> None:
    said = sentences(run, find(run))
    assert re.fullmatch(
        r"For the accuracy \(mean Dice 0\.\d{3}\) that \d+ frames chosen at random give, windows \(4 x 4 to a frame\) "
        r"chosen by alges-effort need \d\.\d times less time \(95 % interval [\d.> to]+, 6 seeds\)\.",
        said[0],
    ), said[0]
    assert re.match(r"Windows of the same grid chosen at random take \d\.\d .* times as much as these\.", said[1])
    assert "highest of 11" in said[2]
    assert "in outline drawn" in said[3]
    assert "in time, windows in their frames" in said[3]
    assert said[4].startswith("Every frame labelled gives")
    assert "over equal annotating time: above: " in said[5]


@pytest.mark.parametrize(("others", "how"), [(0.0, "however chosen,"), (-0.05, "chosen at random")])
def test_no_strategy_is_credited_with_what_random_windows_do_too(
    run: RunFolder, tmp_path: Path, others: float, how: str
) -> None:
    """Strategies' windows as good as random ones but for luck, or worse: the best-looking of them is not named."""
    noise = np.random.default_rng(1)

    def level(row: dict[str, str]) -> None:
        windows, chosen = row["regions"] != "none", row["strategy"] != "random"
        gain = (0.1 + others * chosen) * windows if row["round"] != "0" else 0.0
        row["dice"] = str(0.3 + 0.02 * int(row["round"]) + gain + noise.normal(0, 0.004))
        row["outline"] = row["seconds"] = str(3000 * (1 + int(row["round"])))

    said = sentences(alike := changed(run, tmp_path / "out", level), find(alike))
    assert re.search(rf"windows \(\d x \d to a frame\) {how} need \d", said[0]), said[0]
    assert re.match(r"Of .*alges-effort@.* none does better than windows chosen at random\.", said[1])
    assert "alges" not in said[0]


def test_where_nothing_separates_the_opening_says_so(run: RunFolder, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)

    def level(row: dict[str, str]) -> None:
        row["dice"] = str(0.3 + 0.02 * int(row["round"]) + noise.normal(0, 0.03))

    said = sentences(flat := changed(run, tmp_path / "out", level), find(flat))
    assert said[0].startswith("For as much labelling, no way of choosing gave a more accurate model than frames chosen")
    assert "6 seeds" in said[0]


def test_random_frames_that_never_get_there_give_a_bound(run: RunFolder, tmp_path: Path) -> None:
    def raise_one(row: dict[str, str]) -> None:
        if row["strategy"] == "alges-effort" and row["regions"] == "8x8" and row["round"] != "0":
            row["dice"] = str(0.8 + 0.001 * int(row["seed"]))

    said = sentences(high := changed(run, tmp_path / "out", raise_one), find(high))
    assert re.search(
        r"\(mean Dice 0\.80\d\) that 80 frames chosen at random do not reach, windows \(8 x 8 to a frame\) chosen by "
        r"alges-effort need at least \d\.\d times less time \(95 % interval > \d\.\d, 6 seeds\)",
        said[0],
    ), said[0]


def test_the_distance_to_full_supervision_is_in_every_measure(run: RunFolder) -> None:
    found = find(run).to_full
    assert list(found) == [SECONDS, CORRECTING, OUTLINE, PIXELS, *PRICED, FRAMES]
    assert {*found[PIXELS]} == {*run.strategies} - {"full"}
    random = found[PIXELS]["random"]  # of a pool of 640, 80 labelled in the end
    assert (random.bound, random.factor) == (">", pytest.approx(80 / 640))


def test_curves_are_drawn_over_outline_pixels_and_frames_in_frames_worth(run: RunFolder) -> None:
    axes = figures.axes_of(run)
    hours, outline, pixels, frames = axes
    assert list(hours.curves(run.curve_rows)["random"])[:1] == pytest.approx(
        [(5 * 10 + 2 * 10 + 100 * 3000 / 96) / 3600]
    )
    assert list(outline.curves(run.curve_rows)["random"])[:2] == pytest.approx([10, 20], rel=0.01)
    assert list(pixels.curves(run.curve_rows)["random@8x8"])[:4] == pytest.approx([10, 20, 30, 40])
    assert list(frames.curves(run.curve_rows)["random"])[:2] == [10, 20]
    for axis in axes:
        figure = figures.curves(run.curve_rows, run.full_rows, strategy_styles(run.strategies), LIGHT, axis=axis)
        (ax,) = figure.axes
        assert ax.get_xlabel() == axis.label
        assert {text.get_text().split()[0] for text in ax.texts} >= {"random", "random@8x8", "alges-effort@4x4"}


def test_where_curves_are_many_the_baselines_and_the_highest_are_named(run: RunFolder) -> None:
    found = find(run)
    assert sections._shown(run, found) == run.strategies[:-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "MOST_SHOWN", 8)
        shown = sections._shown(run, found)
    assert {"random", "random@4x4", "random@8x8", "stratified-random", "alges-effort@8x8"} <= set(shown)
    assert "entropy" not in shown


def test_tables_of_savings_and_rare_classes(run: RunFolder) -> None:
    found = find(run)
    saved = tables.label_savings(found.savings[OUTLINE])
    assert saved.header == ("chosen by", "20", "30", "40")
    assert saved.rows[0][0] in ("alges-effort@8x8", "alges-effort@4x4")
    assert all(re.fullmatch(r"[<>]? ?\d+\.\d \([\d.> to]+\)", cell) for row in saved.rows for cell in row[1:])
    rare = tables.rare_classes(run, 40)
    assert "of pixels)" in rare.header[2]
    assert [row[0] for row in rare.rows] == run.strategies[:-1]


def test_windows_are_framed_in_the_sheet_of_picks(run: RunFolder) -> None:
    name = next(iter(run.thumbnails))

    def sheet(pieces: tuple[str, ...], size: int | None) -> np.ndarray:
        figure = figures.contact_sheet([PickRecord("a", 0, 0, pieces)], run.thumbnails, LIGHT, size=size)
        return np.asarray(_image(figure))

    whole, framed = sheet((name,), 96), sheet((f"{name}#xywh=24,48,24,24",), 96)
    yellow = (framed == (255, 200, 0)).all(-1)
    assert not (whole == (255, 200, 0)).all(-1).any()
    ys, xs = np.nonzero(yellow)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (32, 47, 16, 31)
    assert (framed[33:47, 17:31] == whole[33:47, 17:31]).all()
    assert (framed[:32] == whole[:32] // 2).all()


def _image(figure: Figure) -> np.ndarray:
    (ax,) = figure.axes
    return ax.images[0].get_array()


def test_results_of_runs_before_windows_still_read(run: RunFolder, tmp_path: Path) -> None:
    def old(row: dict[str, str]) -> None:
        for name in ("regions", "labelled_share", "n_frames", "outline"):
            del row[name]

    frames = write_fake_run(tmp_path / "frames", strategies=("random", "coreset"), seeds=3, rounds=2, artefacts=False)
    before = changed(read_run(frames), tmp_path / "old", old)
    found = find(before)
    assert not before.windows
    assert list(found.at_equal) == []
    assert [row["strategy"] for row in read_results(tmp_path / "old" / "results.csv")] == ["random"] * 6 + [
        "coreset"
    ] * 6
