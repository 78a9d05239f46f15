"""What the tests of whole runs share; a file of them says which `command` is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import finish, start

from alges_fast.experiment import loop


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"ALGES_FAST_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, command: list[str], environment: dict[str, str]) -> Path:
    """The folder of a run of one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start(out.parent / "log", [*command, "--out", str(out)], environment)
    assert finish(process, 300) == 0, (out.parent / "log").read_text()
    return out


@pytest.fixture
def alone(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the others are: one thread, their cache, no report."""
    monkeypatch.setenv("ALGES_FAST_CACHE", environment["ALGES_FAST_CACHE"])
    monkeypatch.setattr(loop, "write_report", lambda out: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
