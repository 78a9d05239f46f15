"""Shells complete the commands' flags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("argcomplete", reason="argcomplete is not installed")
pytest.importorskip("jsonargparse", reason="needs the extra `run`")


@pytest.mark.parametrize(
    ("command", "typed", "flags"), [("run", "--data_r", "--data_root"), ("select", "--reg", "--regions")]
)
def test_a_flag_is_completed(command: str, typed: str, flags: str, tmp_path: Path) -> None:
    source = ROOT / "alges_fast" / f"{command}.py"
    assert "PYTHON_ARGCOMPLETE_OK" in source.read_text()[:1024]  # what the shell's hook looks for
    line = f"python -m alges_fast.{command} {typed}"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE": "3"}
    answer = tmp_path / "answer"
    asked |= {"_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    subprocess.run([sys.executable, "-m", f"alges_fast.{command}"], cwd=ROOT, env={**os.environ, **asked}, check=True)
    assert flags in answer.read_text()
