"""What the tests of whole runs share; a file of them says which `command` is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import finish, start
from data.trees import folder_tree

from alges_fast.experiment import loop


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"ALGES_FAST_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of six frames to choose from."""
    return folder_tree(tmp_path_factory.mktemp("data") / "frames", 6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, command: list[str], environment: dict[str, str]) -> Path:
    """The folder of a run of one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start(out.parent / "log", [*command, "--out", str(out)], environment)
    assert finish(process, 300) == 0, (out.parent / "log").read_text()
    return out


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda out: None)


@pytest.fixture
def alone(
    environment: dict[str, str], no_report: None, threads_of_its_own: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process as the others are: one thread, their cache, no report."""
    monkeypatch.setenv("ALGES_FAST_CACHE", environment["ALGES_FAST_CACHE"])
    torch.set_num_threads(1)
