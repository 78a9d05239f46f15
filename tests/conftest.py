"""Shared fixtures: real frames, GPU and slow markers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any test imports triton: its kernels then run on the CPU

CAMVID = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that need much time or memory")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def threads_of_its_own() -> Iterator[None]:
    """The number of torch's threads is put back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid folder: {train,val,test}/{images,masks}."""
    root = Path(os.environ.get("ALGES_FAST_CAMVID", CAMVID))
    if not (root / "train" / "images").is_dir():
        pytest.skip(f"no CamVid frames at {root}; set ALGES_FAST_CAMVID to a folder with train/images")
    return root
