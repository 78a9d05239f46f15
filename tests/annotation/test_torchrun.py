"""`python -m alges_fast.select` by several processes, as torchrun starts them: files of one, mistakes in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import TINY_MODEL, finish, start, start_group
from data.trees import save

COMMAND = "alges_fast.project.selecting"
FIXED = [*("--images", "pool", "--image_size", "32", "--device", "cpu", "--out", "out", "--n", "4")]
FAILS_IN_ONE = """
import os

def fails_in_one():
    return make() if os.environ["RANK"] == "0" else "no model"
"""
BROKEN = "pool/b/frame_0120.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos of seven pictures, and a model."""
    (tmp_path / "tiny_model.py").write_text(TINY_MODEL + FAILS_IN_ONE)
    generator = np.random.default_rng(0)
    for at in range(14):
        path = tmp_path / "pool" / "ab"[at % 2] / f"frame_{at // 2 * 60:04d}.png"
        save(path, generator.integers(0, 30 + 16 * at, (32, 48, 3)).astype(np.uint8))
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    return {"PWD": str(folder), "ALGES_FAST_CACHE": str(folder / "cache")}


def files(folder: Path) -> dict[str, bytes]:
    """What was chosen; not the scores of each process's share."""
    found = {path.relative_to(folder / "out").as_posix(): path for path in (folder / "out").rglob("*")}
    return {n: path.read_bytes() for n, path in found.items() if path.is_file() and not n.startswith("scores/")}


def alone(folder: Path, argv: list[str]) -> dict[str, bytes]:
    """The files of one process, which are then taken away."""
    assert finish(start(folder / "log", argv, environment(folder), COMMAND)) == 0, (folder / "log").read_text()
    found = files(folder)
    shutil.rmtree(folder / "out")
    return found


MODELS = ["--model", "tiny_model:make"]


@pytest.mark.parametrize(
    "more",
    [
        [*MODELS, "--strategy", "entropy", "--on_bad_image", "skip", "--reject", "refused.txt"],
        [*MODELS, "--regions", "3x4", "--budget", "outline"],
        [*MODELS, "--regions", "3x4", "--strategy", "margin"],
        ["--strategy", "strided", "--on_bad_image", "skip"],  # reads nothing but what it picks
    ],
    ids=["scores", "windows", "scores of windows", "without a model"],
)
def test_two_processes_leave_the_files_of_one(folder: Path, more: list[str]) -> None:
    (folder / "refused.txt").write_text("b/frame_0360.png\na/frame_0360.png\n")
    if "skip" in more:
        (folder / BROKEN).write_bytes((folder / BROKEN).read_bytes()[:50])
    expected = alone(folder, [*FIXED, *more])
    processes = start_group(folder / "logs", [*FIXED, *more], environment(folder), 2, COMMAND)
    assert [finish(process) for process in processes] == [0, 0], logs(folder)
    assert "rounds/000/picks.csv" in expected
    assert files(folder) == expected
    printed = logs(folder)
    assert "picks.csv" in printed[0]
    assert printed[1] == ""


def test_torchrun_starts_it(folder: Path) -> None:
    """With -- before the module: torchrun reads flags of a command that begin like its own."""
    (folder / "labelled.txt").write_text("a/frame_0000.png\nb/frame_0060.png\n")
    seeding = [*FIXED, *MODELS, "--labelled", "labelled.txt"]
    expected = alone(folder, seeding)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"]
    variables = {**os.environ, **environment(folder)}
    argv = [*torchrun, "alges_fast.select", *seeding]
    subprocess.run(argv, cwd=folder, env=variables, check=True, capture_output=True, timeout=120)
    assert files(folder) == expected


@pytest.mark.parametrize(
    ("model", "said", "codes"), [("fails_in_one", "returned a str", [1, 2]), ("missing", "has no attribute", [2, 2])]
)
def test_a_mistake_ends_all_and_is_said_once(folder: Path, model: str, said: str, codes: list[int]) -> None:
    argv = [*FIXED, "--model", f"tiny_model:{model}"]
    processes = start_group(folder / "logs", argv, environment(folder), 2, COMMAND)
    assert [finish(process, 60) for process in processes] == codes, logs(folder)
    (line,) = [line for line in "".join(logs(folder)).splitlines() if line]
    assert line.startswith("error: ")
    assert said in line
    assert not (folder / "out" / "rounds").exists()


def logs(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted((folder / "logs").iterdir())]
