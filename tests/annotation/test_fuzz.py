"""Damaged exports of every kind: none is a traceback, a flood or a trace left behind. See fuzz.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.annotation import fuzz


@pytest.mark.parametrize("seconds", [20, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_damaged_exports_are_read_or_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.chdir(tmp_path)  # where an input that breaks a rule is kept
    came = fuzz.run(None, seconds, seed=int(seconds))
    assert came["inputs"] > 0
    assert came["refused"] > 0
    assert came["read"] > 0
