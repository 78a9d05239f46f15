"""A run that survives: killed at any instant, shared by several processes, on a full disk, beside damaged files."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import SMALL, contents, finish, one_line, rows, start
from data.trees import folder_tree

from alges_fast.experiment.state import RoundFolder
from alges_fast.run import main

STRATEGIES = ("--strategies", "random,alges-img", "--keep_models", "true")


@pytest.fixture(scope="module")
def command(root: Path) -> list[str]:
    return [*SMALL, "--data_root", str(root), *STRATEGIES]


def same(out: Path, whole: Path) -> None:
    assert rows(out) == rows(whole)
    assert contents(out) == contents(whole)
    files, expected = ({str(path.relative_to(top)) for path in top.rglob("*")} for top in (out, whole))
    assert files == expected


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_instants(
    kills: int, whole: Path, command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Runs are killed and continued until so many kills have struck; each ends like the undisturbed run."""
    draw = random.Random(kills)
    importing = [sys.executable, "-m", "alges_fast.run", *command, "--out", str(tmp_path / "out 0")]
    with pytest.raises(subprocess.TimeoutExpired):  # the first while still importing; run() kills
        subprocess.run(importing, timeout=draw.uniform(0.2, 1.5), env={**os.environ, **environment}, check=False)
    struck: Counter[str] = Counter({"importing": 1})
    finished = 0
    while struck.total() < kills or not finished:
        out = tmp_path / f"out {finished}"
        log = tmp_path / "log"
        process = start(log, [*command, "--out", str(out)], environment)
        if struck.total() < kills:
            # An instant of a stage drawn first, since writing takes so much less time than training.
            stage = draw.choice(["loading", "training", "writing", "results", "report"])
            _wait_for(stage, out, process)
            time.sleep(draw.expovariate(1 / {"loading": 0.3, "training": 0.5, "report": 1.0}.get(stage, 0.005)))
            if process.is_alive():
                process.kill()
        code = finish(process)
        if code == 0:
            same(out, whole)
            finished += 1
        else:
            assert code == -9, log.read_text()
            struck[stage] += 1
    print(f"\n{struck.total()} kills ({dict(struck)}); runs that finished like one that was never killed: {finished}")


def _wait_for(stage: str, out: Path, process: object) -> None:
    """Until the stage begins, for the first time in this process, or the process ends."""
    before = _written(out)
    signs: dict[str, Callable[[set[tuple[str, int]]], bool]] = {
        "loading": lambda new: True,
        "training": lambda new: any("config.yaml" in name for name, _ in new),
        "writing": lambda new: any(".draft" in name for name, _ in new),
        "results": lambda new: any("results.csv" in name for name, _ in new),
        "report": lambda new: any("thumbnails.npz" in name for name, _ in new),
    }
    while process.is_alive() and not signs[stage](_written(out) - before):  # type: ignore[attr-defined]
        time.sleep(0.002)


def _written(out: Path) -> set[tuple[str, int]]:
    found = set()
    for path in out.rglob("*"):
        try:
            found.add((path.name if path.suffix != ".draft" else str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_weights_are_left_behind(
    when: str, command: list[str], alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped just before or after a round's last step is recorded."""
    finish = RoundFolder.finish

    def stopped(folder: RoundFolder, step: str, **facts: float) -> None:
        if when == "after" or step != "query":
            finish(folder, step, **facts)
        if step == "query":
            raise KeyboardInterrupt

    argv = [*command, "--keep_models", "false", "--out", str(tmp_path)]
    monkeypatch.setattr(RoundFolder, "finish", stopped)
    assert main(argv) == 130
    monkeypatch.setattr(RoundFolder, "finish", finish)
    assert main(argv) == 0
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_the_same_command_twice_at_once_shares_the_work(
    whole: Path, command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Three processes in one folder, one of which is killed: the others do its part too, and nobody's twice."""
    out = tmp_path / "out"
    processes = [start(tmp_path / f"{n}.log", [*command, "--out", str(out)], environment) for n in range(3)]
    while not list(out.glob("*/seed0/round00/model.safetensors")):
        time.sleep(0.002)
    processes[0].kill()
    assert [finish(process) for process in processes] == [-9, 0, 0], [p.read_text() for p in tmp_path.glob("*.log")]
    same(out, whole)
    told = [(tmp_path / f"{n}.log").read_text() for n in (1, 2)]
    assert sum(log.count(" labelled, Dice ") for log in told) <= 6


def test_weights_that_another_job_removes_meanwhile_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RoundFolder(tmp_path)
    folder.finish("train")

    def removed(*_: object) -> None:
        raise RuntimeError("unable to open file: No such file or directory (2)")  # as torch says it in safetensors

    monkeypatch.setattr("safetensors.safe_open", removed)
    assert folder.n_finished() == 0


@pytest.mark.parametrize("flags", [("--epochs", "2"), ("--seeds", "1,0"), ("--strategies", "random"), ("--lr", "0.1")])
def test_another_configuration_is_an_error_that_shows_the_difference(
    flags: tuple[str, str], whole: Path, command: list[str], alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert main([*command, "--out", str(whole), *flags]) == 2
    assert f"{flags[0][2:]} was " in one_line(capsys)
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_a_folder_of_before_a_flag_continues_with_its_default(
    whole: Path, command: list[str], alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its config.yaml lacks is as nobody gave it, beside what was given: with --epochs, no --augment."""
    out = shutil.copytree(whole, tmp_path / "out")
    begun = yaml.safe_load((out / "config.yaml").read_text())
    for name in ("self_training", "feature_bits", "teacher", "augment", "steps", "consider"):
        del begun[name]
    (out / "config.yaml").write_text(yaml.safe_dump(begun))
    shutil.rmtree(out / "alges-img/seed0/round02")
    assert main([*command, "--out", str(out), "--feature_bits", "8", "--augment", "flip"]) == 2
    assert "(augment was none and is now flip; feature_bits was 16 and is now 8)" in capsys.readouterr().err
    assert main([*command, "--out", str(out)]) == 0
    same(out, whole)


def test_other_data_under_the_same_name_is_an_error_every_time(
    whole: Path, root: Path, command: list[str], alone: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, moved = shutil.copytree(whole, tmp_path / "out"), root.with_name("moved")
    root.rename(moved)
    try:
        folder_tree(root, 7)
        for _ in range(2):
            assert main([*command, "--out", str(out)]) == 2
            assert f"the data has changed since {out} was begun" in capsys.readouterr().err
    finally:
        shutil.rmtree(root)
        moved.rename(root)


def test_a_full_disk(whole: Path, command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    """One line that names the file; with room again the run goes on from there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        argv, log = [*command, "--out", str(disk / "out")], tmp_path / "log"
        assert finish(start(log, argv, environment)) == 2
        line = log.read_text().splitlines()[-1]
        assert line.startswith(f"error: {disk}/out/")
        assert "cannot be written (No space left on device): make room" in line
        earlier = contents(disk / "out")
        assert earlier
        assert all(contents(whole)[name] == value for name, value in earlier.items() if "state" not in name)
        subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        assert finish(start(log, argv, environment)) == 0
        same(disk / "out", whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(
    command: list[str], alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in ("/proc/out", "/sys/out", str(tmp_path / "file"), str(tmp_path / "file" / "out")):
        assert main([*command, "--out", out]) == 2
        assert one_line(capsys).startswith(f"error: {out}")


ROUND = "alges-img/seed0/round01"
GARBAGE = {"empty": b"", "cut": None, "garbage": b"\x00\xff{[", "another": b"[1, 2]", "another mapping": b'{"a": 1}'}
STOPS = [f"{ROUND}/{name}.json" for name in ("state", "picks", "metrics")]


@pytest.mark.parametrize("name", [*STOPS, "config.yaml", "report_data/dataset.json"])
def test_a_damaged_file_is_named(
    name: str, whole: Path, command: list[str], alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only a disk's fault can do to a finished step stops the run; what the line advises mends it."""
    out = shutil.copytree(whole, tmp_path / "out")
    for garbage in GARBAGE.values():
        shutil.copy(whole / name, out / name)
        _spoil(out / name, garbage)
        assert main([*command, "--out", str(out)]) == 2
        error = one_line(capsys)
        # A mapping, or what the first half of one still says, is another configuration.
        if name != "config.yaml" or "holds a run of another configuration" not in error:
            assert f"{out / name} is damaged" in error
    for file in (file for file in contents(whole) if ROUND not in file):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    if name in STOPS:  # `delete DIR`, it says
        for folder in out.glob("alges-img/seed0/round*"):
            shutil.rmtree(folder)
        assert main([*command, "--out", str(out)]) == 0


@pytest.mark.parametrize("garbage", ["cut", "another"])
@pytest.mark.parametrize("name", [f"{ROUND}/model.safetensors", "results.csv", "environment.json"])
def test_a_damaged_file_is_made_again(
    name: str, garbage: str, whole: Path, command: list[str], alone: None, tmp_path: Path
) -> None:
    """Weights that the round's other steps still need are trained again, to the same bits; the rest is derived."""
    out = shutil.copytree(whole, tmp_path / "out")
    for later in ("round02", "round01/picks.json", "round01/metrics.json"):
        target = out / "alges-img/seed0" / later
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    (out / ROUND / "state.json").write_text((whole / ROUND / "state.json").read_text().replace("query", "train"))
    _spoil(out / name, GARBAGE[garbage])
    assert main([*command, "--out", str(out)]) == 0
    assert rows(out) == rows(whole)
    assert contents(out) == contents(whole)


def test_a_damaged_picture_file_is_named(
    whole: Path,
    environment: dict[str, str],
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALGES_FAST_CACHE", environment["ALGES_FAST_CACHE"])
    out = shutil.copytree(whole, tmp_path / "out")
    frames = next((out / "report_data" / "frames").iterdir())
    before = frames.read_bytes()
    for garbage in ("empty", "cut", "garbage"):
        frames.write_bytes(before)
        _spoil(frames, GARBAGE[garbage])
        assert main([*command, "--out", str(out)]) == 2
        assert f"{frames} is damaged: delete it" in capsys.readouterr().err


def test_picks_that_are_not_the_pools_are_refused(
    whole: Path, command: list[str], alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ids in ('["train/never_1"]', '["train/trainA_0", "train/trainA_0"]', '"train/trainA_0"', "[[1]]"):
        out = shutil.copytree(whole, tmp_path / "out", dirs_exist_ok=True)
        picks = out / ROUND / "picks.json"
        picks.write_text(f'{{"ids": {ids}, "embed_seconds": 0, "seeding_seconds": 0}}')
        assert main([*command, "--out", str(out)]) == 2
        assert f"{picks} is damaged" in capsys.readouterr().err


def test_a_round_is_the_same_whatever_ran_before(whole: Path, command: list[str], alone: None, tmp_path: Path) -> None:
    """In the other order, with another strategy between and another seed: the same weights, metrics and picks."""
    other = [*command, "--strategies", "alges-img,entropy,random", "--seeds", "1,0", "--out", str(tmp_path)]
    assert main(other) == 0
    found = contents(tmp_path)
    assert all(found[name] == value for name, value in contents(whole).items())
    assert found["random/seed1/round00/model.safetensors"] != found["random/seed0/round00/model.safetensors"]


def test_seeds_and_strategies_may_be_added(whole: Path, command: list[str], alone: None, tmp_path: Path) -> None:
    """What there was stays, byte for byte; the rest is what one run of all of them has."""
    grown, at_once = shutil.copytree(whole, tmp_path / "grown"), tmp_path / "at_once"
    more = [*command, "--strategies", "random,alges-img,entropy", "--seeds", "0,1"]
    before = {path: path.stat().st_mtime_ns for path in grown.rglob("picks.json")}
    assert main([*more, "--out", str(grown)]) == 0
    assert main([*more, "--out", str(at_once)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert rows(grown) == rows(at_once)
    assert contents(grown) == contents(at_once)
    assert main([*command, "--out", str(grown)]) == 2


def _spoil(path: Path, garbage: bytes | None) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if garbage is None else garbage)
