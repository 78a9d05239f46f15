"""A report from a folder: complete, self-contained, honest about seeds, and whole when the run is not."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_run import ABSENT, write_fake_run
from PIL import Image
from rich.console import Console
from scipy import stats

from alges_fast.data.layouts.cholecseg8k import SYNTHETIC_NOTE
from alges_fast.errors import UserError
from alges_fast.report import figures, write_report
from alges_fast.report.__main__ import main
from alges_fast.report.console import summary_table
from alges_fast.report.figures.learning_curves import spaced
from alges_fast.report.findings import find
from alges_fast.report.run_folder import read_results, read_run
from alges_fast.report.statistics import choosing_seconds
from alges_fast.report.style import LIGHT, in_order, strategy_styles

SMALL = {"seeds": 3, "rounds": 2, "query_size": 4}


class _Page(HTMLParser):
    """The text of a page, the addresses it would load, and the tags left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "poster")]
        if tag not in ("img", "meta", "source", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page(out: Path) -> _Page:
    return _Page((out / "report.html").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    strategies = ("random", "coreset", "alges-img", "full")
    out = write_fake_run(tmp_path_factory.mktemp("run") / "out", strategies=strategies, **SMALL)
    write_report(out)
    return out


@pytest.fixture(autouse=True)
def blank_figures(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those of `finished`: to draw takes most of a report's time."""
    monkeypatch.setattr("alges_fast.report.page._draw", lambda picture, theme: Image.new("RGB", (8, 8)))


def test_a_finished_run_has_every_figure_and_no_external_request(finished: Path) -> None:
    names = {path.stem for path in (finished / "figures").iterdir()}
    assert names >= {
        *("learning_curves", "learning_curves_by_strategy", "paired_differences_to_random", "class_dice"),
        *("class_shares", "seconds_per_round", "picks_random", "picks_coreset", "picks_alges-img"),
        "frames_alges-img-seed0-round00",
    }
    read = page(finished)
    assert read.open == []
    assert len(read.addresses) == 4 * len(names)
    assert all(address.startswith("data:image/webp;base64,") for address in read.addresses)
    assert not re.search(r"url\(|@import|<script", (finished / "report.html").read_text())


def test_figures_hold_more_than_paper(finished: Path) -> None:
    for path in (finished / "figures").iterdir():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 150, path.name
        assert (pixels < 250).mean() > 0.01, path.name


def test_the_report_is_the_same_when_written_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    assert main([str(again)]) == 0
    for name in ("table.md", "report.html", "figures/learning_curves.png"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()


def test_table_holds_the_means_of_results_csv(finished: Path) -> None:
    rows = read_results(finished / "results.csv")
    values = [row["dice"] for row in rows if row["strategy"] == "coreset" and row["n_labelled"] == 14]
    table = (finished / "table.md").read_text().partition("## Dice by labelled images")[2]
    line = next(line for line in table.splitlines() if line.startswith("| coreset"))
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in line
    assert "Table 1" not in (finished / "table.md").read_text()


def _scores(out: Path, dice: dict[str, list[list[float]]]) -> Path:
    """results.csv of dice[strategy][seed][round] alone: no other file, no other column."""
    out.mkdir()
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["strategy", "seed", "round", "n_labelled", "dice"])
        for strategy, by_seed in dice.items():
            for seed, values in enumerate(by_seed):
                writer.writerows([strategy, seed, r, 10 + 10 * r, value] for r, value in enumerate(values))
    return out


def test_results_alone_make_a_report_that_says_what_is_absent(tmp_path: Path) -> None:
    out = _scores(tmp_path / "out", {"random": [[0.2, 0.3]] * 2, "alges-img": [[0.2, 0.31]] * 2})
    write_report(out)
    text = page(out).text
    for absence in ("test frames", "picks", "Dice per class", "timings", "a description of the data"):
        assert absence in text.partition("The folder has none of:")[2]


def test_a_real_difference_is_named_and_noise_is_not(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.004, (2, 5, 1))
    base = np.linspace(0.3, 0.4, 5)[:, None] + np.array([[0.0, 0.1]])
    dice = {"random": base, "entropy": base + noise[0] - noise[0].mean(), "alges-img": base + 0.05 + noise[1]}
    out = _scores(tmp_path / "out", {name: values.tolist() for name, values in dice.items()})
    write_report(out)
    text = page(out).text
    said = r"Against random, .* above: alges-img \(\+0\.05\d\); not separate: entropy \(t-test paired over 5 seeds"
    assert re.search(rf"{said} at 5 %, Holm's correction for 2\)", text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"strategies": ("random", "alges-img"), "seeds": 1, "rounds": 3},
            "a difference from the luck of one seed",
        ),
        ({"strategies": ("alges-sem",), "seeds": 2, "rounds": 1}, "nothing to compare"),
        ({"strategies": ("alges-sem",), "seeds": 2, "rounds": 1}, "there is no curve yet"),
        ({"strategies": ("full",), "seeds": 1}, "none of: a learning curve"),
    ],
)
def test_too_little_to_say_something_claims_nothing(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    out = write_fake_run(tmp_path / "out", **settings, artefacts=False)
    write_report(out)
    assert said in page(out).text
    assert not (out / "figures" / "paired_differences_to_random.png").exists()


def test_an_unfinished_run_is_named_and_its_seed_left_out_of_the_comparison(tmp_path: Path) -> None:
    strategies = ("random", "alges-img")
    stopped = [("alges-img", 2, 1)]
    out = write_fake_run(
        tmp_path / "out", strategies=strategies, seeds=4, rounds=3, artefacts=False, unfinished=stopped
    )
    write_report(out)
    text = page(out).text
    assert "The run is not finished: alges-img with seed 2 has 1 of 3 trainings." in text
    assert "paired over 3 seeds" in text
    assert "(n = 3)" in (out / "table.md").read_text()


def test_runs_that_have_not_begun_are_counted(tmp_path: Path) -> None:
    out = write_fake_run(tmp_path / "out", strategies=("random", "alges-img"), seeds=2, rounds=2, artefacts=False)
    config = yaml.safe_load((out / "config.yaml").read_text())
    config.update(strategies=["random", "alges-img", "mine.py:Own"], seeds=[0, 1, 2])
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    write_report(out)
    assert "The run is not finished: 5 of 9 strategies with a seed have no training yet." in page(out).text


def test_both_baselines_are_compared_with_each_a_family_of_its_own(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.002, (4, 5, 1))
    base = np.linspace(0.3, 0.4, 5)[:, None] + np.array([[0.0, 0.1]])
    means = {"random": 0.0, "stratified-random": 0.04, "coreset": 0.02, "alges-img": 0.04}
    dice = {name: (base + mean + noise[i]).tolist() for i, (name, mean) in enumerate(means.items())}
    out = _scores(tmp_path / "out", dice)
    write_report(out)
    found = find(read_run(out))
    assert [family.baseline for family in found.to_baselines] == ["random", "stratified-random"]
    areas = {name: np.mean(values, axis=1) for name, values in dice.items()}
    for family in found.to_baselines:
        others = [name for name in dice if name != family.baseline]
        assert [c.first for c in family.comparisons] == others
        p = [stats.ttest_rel(areas[name], areas[family.baseline]).pvalue for name in others]
        assert [c.p_holm for c in family.comparisons] == pytest.approx(
            [max(min(1, (3 - sorted(p).index(q)) * q) for q in p if q <= mine) for mine in p]
        )
    text = page(out).text
    assert re.search(
        r"Against stratified-random, .* below: .*coreset \(−0\.0\d\d\).*; not separate: alges-img \(", text
    )
    assert (out / "figures" / "paired_differences_to_stratified-random.png").exists()


@pytest.mark.parametrize("level", [0.38, 0.8])
def test_full_supervision_and_95_percent_of_it_are_lines_in_view(level: float, tmp_path: Path) -> None:
    base = {"random": [[0.30, 0.35], [0.31, 0.36]], "alges-img": [[0.30, 0.36], [0.31, 0.37]]}
    run = read_run(_scores(tmp_path / "out", {**base, "full": [[level - 0.01], [level + 0.01]]}))
    styles, axis = strategy_styles([*base, "full"]), figures.Axis("n_labelled", "labelled images (of 100)")
    for draw in (figures.curves, figures.curves_apart):
        figure = draw(run.curve_rows, run.full_rows, styles, LIGHT, axis=axis)
        for ax in figure.axes:
            low, high = ax.get_ylim()
            flat = [line.get_ydata()[0] for line in ax.lines if len({*line.get_ydata()}) == 1]
            assert all(any(height == pytest.approx(line) for line in flat) for height in (level, 0.95 * level))
            assert low < 0.3 < level < high
            assert len(figure.axes) > 1 or "95 % of full" in {text.get_text() for text in ax.texts}


def test_what_95_percent_of_full_supervision_takes_stands_beside_the_savings(tmp_path: Path) -> None:
    # 95 % of .4 is .38: a has it half way from 20 to 30 frames of the pool's 10 times 10, random not at all.
    curves = {"random": [[0.30, 0.35, 0.36]] * 2, "alges-img": [[0.30, 0.36, 0.40]] * 2}
    out = _scores(tmp_path / "out", {**curves, "full": [[0.4]] * 2})
    text = (
        (out / "results.csv").read_text().replace("full,0,0,10", "full,0,0,100").replace("full,1,0,10", "full,1,0,100")
    )
    (out / "results.csv").write_text(text)
    write_report(out)
    table = (out / "table.md").read_text().partition("## To 95 % of full supervision")[2]
    assert "| alges-img | 25 % (25 to 25) |" in table
    assert "| random | > 30 % |" in table
    assert "Every frame labelled gives 0.400; to 95 % of that, of its frames labelled: " in page(out).text


def test_time_to_choose_is_that_of_the_rounds_that_chose(finished: Path) -> None:
    rows = [dict(row) for row in read_results(finished / "results.csv") if row["strategy"] == "coreset"]
    for row in rows:
        row.update(embed_seconds=3.0 if row["round"] == 0 else 0.0, seeding_seconds=1.0 if row["round"] == 0 else 0.0)
    embedding, seeding = choosing_seconds(rows)
    assert (embedding.mean, seeding.mean) == (3.0, 1.0)


def test_the_papers_table_stands_beside_cholecseg8k_alone_and_warns_of_other_data(tmp_path: Path) -> None:
    out = write_fake_run(tmp_path / "out", strategies=("random", "alges-sem"), dataset="cholecseg8k", **SMALL)
    shutil.rmtree(out / "report_data" / "frames")
    (out / "report_data" / "thumbnails.npz").unlink()
    write_report(out)
    text = page(out).text
    assert "0.458" in text
    assert "its pool had 4640 images and this has 640, so this is other data" in text
    description = json.loads((out / "report_data" / "dataset.json").read_text())
    description["notes"].append(SYNTHETIC_NOTE)  # synthetic video in the same layout
    (out / "report_data" / "dataset.json").write_text(json.dumps(description))
    write_report(out)
    assert "Beside the paper" not in page(out).text
    assert "not CholecSeg8k" in page(out).text


def test_a_folder_of_frames_is_called_by_its_name(tmp_path: Path) -> None:
    out = write_fake_run(tmp_path / "out", strategies=("random",), dataset="folder", artefacts=False, **SMALL)
    config = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump({**config, "data_root": "/data/camvid"}))
    write_report(out)
    assert (out / "table.md").read_text().startswith("# camvid\n")


def test_a_class_absent_from_the_truth_is_a_dash_not_a_zero(finished: Path) -> None:
    rows = read_results(finished / "results.csv")
    assert all(np.isnan(row[f"dice_{name}"]) for row in rows for name in ABSENT)
    assert "does not occur in the test set's truth" in page(finished).text
    assert "not labelled: train 8." in page(finished).text


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (None, "no results at"),
        ("", "lacks the column strategy"),
        ("strategy,seed,round,n_labelled,dice\n", "has no rows yet"),
        ("strategy,seed,round,n_labelled,dice\nrandom,0,0,ten,0.1\n", "line 2: n_labelled is 'ten', not a number"),
    ],
)
def test_a_folder_that_is_no_run_gives_one_line_and_exit_code_2(
    tmp_path: Path, contents: str | None, said: str
) -> None:
    if contents is not None:
        (tmp_path / "results.csv").write_text(contents)
    with pytest.raises(UserError, match=said):
        write_report(tmp_path)
    command = [sys.executable, "-m", "alges_fast.report", str(tmp_path)]
    if contents is None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


def test_every_strategy_has_a_look_of_its_own_whatever_runs_beside_it(finished: Path) -> None:
    names = [row["strategy"] for row in read_results(finished / "results.csv")]
    own = ["mine:A", "mine:B"]
    styles = strategy_styles([*own, "alges-sem", "random", "alges-sem-vector", "entropy", "least-confidence"])
    assert len({(style.colour, style.dash) for style in styles.values()}) == len(styles)
    assert list(styles)[-2:] == own
    assert strategy_styles(names)["random"] == styles["random"]
    assert in_order(["full", "b", "alges-img", "a", "random", "b"]) == ["random", "alges-img", "full", "b", "a"]


def test_labels_are_spaced_in_order_inside_their_room_and_moved_little() -> None:
    wished = [0.5, 0.52, 0.1, 0.51, 0.99]
    placed = spaced(wished, 0.1, 0.0, 1.0)
    assert np.argsort(placed).tolist() == np.argsort(wished).tolist()
    assert np.diff(sorted(placed)).min() >= 0.1 - 1e-12
    assert placed[2] == 0.1
    assert np.mean([placed[i] for i in (0, 1, 3)]) == pytest.approx(0.51)
    assert max(placed) <= 1.0
    assert min(spaced([0.0, 0.0, 0.0], 0.2, 0.0, 1.0)) >= 0.0
    assert spaced([1.0, 1.0], 0.2, 0.0, 1.0) == pytest.approx([0.8, 1.0])


def test_console_table_has_a_line_per_strategy_with_its_scores(finished: Path) -> None:
    rows = read_results(finished / "results.csv")
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(rows))
    text = console.export_text()
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    last = [row["dice"] for row in rows if row["strategy"] == "alges-img" and row["n_labelled"] == 14]
    assert f"{np.mean(last):.3f} ± {np.std(last, ddof=1):.3f}" in lines["alges-img"]
    assert lines["full"].split()[:3] == ["full", "3", "640"]
