"""What the README tells a newcomer to type is what CI types, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    install = next(line for line in commands if line.startswith("pip install"))
    test = next(line for line in commands if line.startswith("pytest"))
    assert install.removeprefix("pip install ") in ci
    assert test in ci.splitlines()


@pytest.mark.parametrize("code", blocks("python"), ids=range(len(blocks("python"))))
def test_python_in_the_readme_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_flags_in_the_readme_exist() -> None:
    run = pytest.importorskip("alges_fast.run", reason="needs the extra `run`")
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("python -m alges_fast.run")]
    assert len(commands) >= 3
    for command in commands:
        run.parse(shlex.split(command)[3:])
