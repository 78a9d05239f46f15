"""The package installs and runs where native code cannot be built, and says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a source distribution holds."""
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
    for name in ("alges_fast", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    return tmp_path


def build(source: Path, **environment: str) -> dict[str, object]:
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=source, env={**os.environ, **environment}, check=True, capture_output=True)
    record: dict[str, object] = json.loads((source / "alges_fast" / "_build.json").read_text())
    return record


def run_in(source: Path, code: str) -> str:
    # An editable installation's finder would hand out its own alges_fast._C for the one that was not built here.
    alone = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]; "
    command = [sys.executable, "-c", alone + code]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    return subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True, text=True).stdout


def test_without_a_compiler_the_ops_run_in_plain_pytorch_and_the_status_says_so(source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    record = build(source, PATH=str(empty), CXX="")
    assert record["native"] is False
    code = (
        "import torch, alges_fast; print(alges_fast.native_status()); "
        "print(alges_fast.pixel_gradients(torch.ones(1, 2, 3, 3), torch.ones(2, 2)).semantic.shape)"
    )
    said = run_in(source, code)
    assert "no C++ compiler on PATH" in said
    assert "torch.Size([1, 2])" in said


def test_native_code_can_be_declined(source: Path) -> None:
    record = build(source, ALGES_FAST_NATIVE="0")
    assert record == {
        "native": False,
        "openmp": False,
        "cuda": False,
        "reason": "ALGES_FAST_NATIVE=0 was set at build time",
    }


def test_importing_the_package_needs_torch_and_numpy_alone() -> None:
    driver = [
        "segmentation_models_pytorch",
        "faiss",
        "lightning_fabric",
        "jsonargparse",
        "rich",
        "matplotlib",
        "jinja2",
    ]
    driver += ["safetensors", "PIL", "scipy", "sklearn", "torchvision", "torchmetrics"]
    block = "".join(f"sys.modules[{name!r}] = None; " for name in driver)
    code = f"import sys; {block}import alges_fast; print(sorted(alges_fast.__all__))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "pixel_gradients" in said.stdout
