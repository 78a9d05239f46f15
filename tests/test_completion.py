"""Shells complete the commands' steps and flags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("argcomplete", reason="argcomplete is not installed")
pytest.importorskip("yaml", reason="needs the extra `run`")


@pytest.mark.parametrize(
    ("command", "typed", "offered"),
    [
        ("run", "--data_r", "--data_root"),
        ("select", "--reg", "--regions"),
        ("project", "next study --min", "--min_gap"),
        ("data", "write", "write-synthetic"),
    ],
)
def test_what_is_begun_is_completed(command: str, typed: str, offered: str, tmp_path: Path) -> None:
    package = ROOT / "alges_fast" / command
    source = package / "__main__.py" if package.is_dir() else package.with_suffix(".py")
    assert "PYTHON_ARGCOMPLETE_OK" in source.read_text()[:1024]  # what the shell's hook looks for
    line = f"python -m alges_fast.{command} {typed}"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE": "3"}
    answer = tmp_path / "answer"
    asked |= {"_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    subprocess.run([sys.executable, "-m", f"alges_fast.{command}"], cwd=ROOT, env={**os.environ, **asked}, check=True)
    assert offered in answer.read_text()
