"""`python -m alges_fast.select` without `--model`: the first frames of a new pool, as `project next` chooses them."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alges_fast import project
from alges_fast.annotation import cli
from alges_fast.annotation.cli import main, parse
from alges_fast.strategies import get_strategy, strategy_names

N_FRAMES = 12
MODEL_FREE = [n for n in strategy_names() if not get_strategy(n).needs_model and not get_strategy(n).takes_whole_pool]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two videos of six pictures, 48 x 32, far apart in time; the working directory is the test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for number in range(N_FRAMES):
        path = tmp_path / "pool" / f"video{number % 2}" / f"frame_{number * 100:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 60 + 16 * number, (4, 6, 3)).astype(np.uint8)
        Image.fromarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))).save(path)
    return tmp_path


def command(*more: str, out: str = "out", n: int = 4) -> list[str]:
    return ["--images", "pool", "--n", str(n), "--out", out, "--image_size", "32", "--device", "cpu", *more]


def picks(path: Path) -> list[dict[str, str]]:
    with (path / "picks.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("regions", [None, "2x2"])
def test_it_picks_what_the_first_round_of_a_project_does(pool: Path, regions: str | None) -> None:
    assert main(command(*(["--regions", regions] if regions else []))) == 0
    project.new(pool / "study", project.ProjectConfig(str(pool / "pool"), ("wall", "tool"), image_size=32))
    round = project.next_round(pool / "study", project.NextSettings(4, regions))
    assert [row["id"] for row in picks(pool / "out")] == [str(pick) for pick in round.picks or ()]
    asked = ("id", "nearest", "distance", "score", "class", "video")
    assert [[row[name] for name in asked] for row in picks(pool / "out")] == [
        [row[name] for name in asked] for row in picks(round.folder)
    ]


@pytest.mark.parametrize("regions", [[], ["--regions", "2x2"]], ids=["frames", "windows"])
@pytest.mark.parametrize("strategy", MODEL_FREE)
def test_every_strategy_that_needs_no_model_works(
    pool: Path, strategy: str, regions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = get_strategy(strategy).reads_images
    if not looks:
        monkeypatch.setattr(cli, "build_trunk", lambda *_: pytest.fail("an encoder is built and nothing looks at it"))
    given = command("--strategy", strategy, "--classes", "wall,tool", *regions)
    assert main(given) == 0
    rows = picks(pool / "out")
    assert len({row["id"] for row in rows}) == (16 if regions else 4)
    assert [bool(row["nearest"]) for row in rows] == [looks and bool(at) for at in range(len(rows))]
    assert {row["class"] for row in rows} == {""}
    assert not (pool / "out" / "masks").exists()
    with zipfile.ZipFile(pool / "out" / "cvat.zip") as archive:
        xml = archive.read("annotations.xml").decode()
    assert "<mask" not in xml
    assert "tool" in xml
    before = (pool / "out" / "picks.csv").read_bytes()
    assert main(given) == 0
    assert (pool / "out" / "picks.csv").read_bytes() == before


def test_without_class_names_there_is_no_labelling_interface_but_all_else(pool: Path) -> None:
    assert main(command()) == 0
    assert (pool / "out" / "cvat.zip").exists()
    assert not (pool / "out" / "label_studio" / "config.xml").exists()


def test_a_strategy_of_ones_own_sees_pictures(pool: Path) -> None:
    (pool / "mine.py").write_text(
        "from alges_fast.strategies import Strategy, by_score, candidate_images\n"
        "class Dark(Strategy):\n"
        "    name, reference, needs_model = 'dark', '-', False\n"
        "    def rate(self, query):\n"
        "        return by_score(query, {c: -float(x.float().mean()) for c, x in candidate_images(query)})\n"
    )
    assert main(command("--strategy", "mine.py:Dark", "--min_gap", "0")) == 0
    paths = sorted((pool / "pool").rglob("*.png"), key=lambda path: float(np.asarray(Image.open(path)).mean()))
    assert [row["id"] for row in picks(pool / "out")] == [
        path.relative_to(pool / "pool").as_posix() for path in paths[:4]
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--strategy", "entropy"], "--strategy entropy needs a trained model: give it with --model, or choose by one"),
        (["--strategy", "deal"], "--strategy deal needs a trained model: give it with --model"),
        (["--encoder", "resnet18"], "a frozen encoder is not trained: give --encoder_weights for resnet18"),
        (["--encoder_weights", "nowhere.pth"], "nowhere.pth: no such file"),
        (["--classes", "a,a"], "--classes a,a: 1 different names, but there are 2 classes"),
        (["--class_weights", "1,2"], "class_weights: typical has no rows per class to weigh"),
        (["--budget", "outline"], "--budget outline is predicted by a trained model: give --model, or leave it out"),
        (["--n", "13"], "the pool has 12 frames"),
    ],
)
def test_a_mistake_is_one_line(pool: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_default_strategy_suits_what_there_is() -> None:
    given = ["--images", "x"]
    assert parse(given).strategy == "typical"
    assert parse([*given, "--regions", "8x8"]).strategy == "typical"
    assert parse([*given, "--model", "m:f"]).strategy == "alges-img"
    assert parse([*given, "--model", "m:f", "--regions", "8x8"]).strategy == "alges-effort"
