"""Every example runs from the top, on data that it makes itself."""

from __future__ import annotations

import json
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


def test_op(capsys: pytest.CaptureFixture[str]) -> None:
    run("op")
    assert "autograd agrees" in capsys.readouterr().out


def test_pool(capsys: pytest.CaptureFixture[str]) -> None:
    run("pool")
    assert "annotate next:" in capsys.readouterr().out


def test_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    run("strategy")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("window:") for line in lines) == 4


def test_select_frames(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL", reason="needs the extra `run`")
    run("select_frames")
    assert "16 x 28" not in (text := capsys.readouterr().out)  # width first
    assert "28 x 16 pixels at" in text


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
