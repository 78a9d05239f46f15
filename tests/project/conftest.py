"""A working directory with a pool, and the steps of a project as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project.annotators import Annotator, small_pool


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the projects, whose pools are the same pictures."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(cache))
    return tmp_path


@pytest.fixture
def annotator(here: Path) -> Annotator:
    """Who knows the truth about the pool in the working directory."""
    return small_pool(here / "pool")
