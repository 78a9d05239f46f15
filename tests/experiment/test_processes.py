"""One job of several processes: uneven shares, more processes than frames, and one that dies."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from commands import SMALL, contents, finish, rows, start_group
from data.trees import folder_tree

STRATEGIES = [
    *("--strategies", "random,entropy,coreset,alges-img", "--image_size", "64", "--rounds", "2"),
    *("--epochs", "4", "--lr", "0.01"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames to choose from and one to test on: with three processes some have none."""
    root = folder_tree(tmp_path_factory.mktemp("data") / "frames", 4)
    for path in root.glob("test/*/*.png"):
        if not path.name.endswith("_0.png"):
            path.unlink()
    return root


@pytest.fixture(scope="module")
def command(root: Path) -> list[str]:
    return [*SMALL, "--data_root", str(root), *STRATEGIES]


def same_choices(out: Path, whole: Path) -> None:
    assert rows(out) == rows(whole)
    found, expected = contents(out), contents(whole)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("picks.json"):
            assert found[name]["ids"] == value["ids"], name
            assert found[name]["scores"] == pytest.approx(value["scores"], rel=1e-5), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("size", [2, 3])
def test_shares_that_are_uneven_or_empty(
    size: int, whole: Path, command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Two frames left to choose from, one to test on."""
    processes = start_group(tmp_path / "logs", [*command, "--out", str(tmp_path / "out")], environment, size)
    assert [finish(process) for process in processes] == [0] * size, _logs(tmp_path)
    same_choices(tmp_path / "out", whole)
    assert _logs(tmp_path)[1:] == [""] * (size - 1)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_job_and_the_run_resumes(
    victim: int, whole: Path, command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    processes = start_group(tmp_path / "logs", [*command, "--out", str(out)], environment, 2)
    while not (out / "entropy" / "seed0" / "round00" / "state.json").exists():
        assert processes[0].is_alive(), _logs(tmp_path)
        time.sleep(0.002)
    processes[victim].kill()
    survivor = processes[1 - victim]
    assert finish(survivor, 30) == 1, _logs(tmp_path)
    assert _logs(tmp_path)[1 - victim].splitlines()[-1] == (
        "error: another process of this job has stopped; the same command continues the run"
    )
    assert "Traceback" not in _logs(tmp_path)[1 - victim]
    shutil.rmtree(tmp_path / "logs")
    processes = start_group(tmp_path / "logs", [*command, "--out", str(out)], environment, 2)
    assert [finish(process) for process in processes] == [0, 0], _logs(tmp_path)
    same_choices(out, whole)


def test_a_mistake_ends_all_processes(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    argv = [*command, "--out", str(tmp_path / "file" / "out")]  # only the first process finds out
    processes = start_group(tmp_path / "logs", argv, environment, 2)
    assert [finish(process, 60) for process in processes] == [2, 1]
    assert f"error: {tmp_path / 'file'}" in _logs(tmp_path)[0]


def _logs(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted((folder / "logs").iterdir())]
