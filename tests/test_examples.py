"""Every example runs from the top, on data that it makes itself."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_no_example_is_long_or_takes_a_name_of_pythons() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path
        assert path.stem not in sys.stdlib_module_names, f"{path}: the interpreter would import it for its own"


def run(name: str) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("op", "autograd agrees"),
        ("pool", "annotate next:"),
        ("strategy", r"(window:.*\n){4}"),
        ("select_frames", "28 x 16 pixels at"),  # width first
    ],
)
def test_it_says_what_it_shows(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL", reason="needs the extra `run`")
    run(name)
    assert re.search(says, capsys.readouterr().out)


@pytest.mark.slow
def test_project_and_the_notebook_that_looks_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="needs the extra `run`")
    matplotlib = pytest.importorskip("matplotlib", reason="needs the extra `run`")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["project.py"])
    run("project")
    assert (tmp_path / "runs/example/study/status.html").is_file()

    matplotlib.use("agg")
    notebook = json.loads((EXAMPLES / "round.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "commit notebooks without outputs"
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    picks = names["picks"]
    assert isinstance(picks, list)
    assert len(picks) == 32
