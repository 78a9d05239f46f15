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
    """What a source distribution of this checkout unpacks to."""
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path), "sdist"]
    subprocess.run([*command, "--dist-dir", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (packed,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(packed, tmp_path)
    return tmp_path / packed.name.removesuffix(".tar.gz")


def build(source: Path, **environment: str) -> dict[str, object]:
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
    off = dict.fromkeys(("native", "openmp", "cuda"), False)
    assert build(source, ALGES_FAST_NATIVE="0") == off | {"reason": "ALGES_FAST_NATIVE=0 was set at build time"}


def test_a_source_distribution_holds_what_a_build_needs_and_nothing_built(source: Path) -> None:
    held = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {"CMakeLists.txt", "csrc/bindings.cpp", "csrc/call.h", "alges_fast/py.typed", "LICENSE"} <= held
    assert {"tests/conftest.py", "examples/op.py", "docs/architecture.md"} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc", "_build.json"))]


def test_the_version_stands_in_one_place_and_is_cited(source: Path) -> None:
    from alges_fast import __version__

    assert source.name == f"alges_fast-{__version__}"
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_public_names_need_torch_and_numpy_alone() -> None:
    driver = ["segmentation_models_pytorch", "faiss", "lightning_fabric", "rich", "matplotlib", "jinja2", "yaml"]
    driver += ["safetensors", "PIL", "scipy", "sklearn", "torchvision", "torchmetrics"]
    block = "".join(f"sys.modules[{name!r}] = None; " for name in driver)
    code = f"import sys; {block}import alges_fast, torch; print(*alges_fast.__all__); "
    code += "print(len(alges_fast.select(torch.nn.Conv2d(3, 2, 1), torch.rand(9, 3, 4, 4), 3).ids))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    names, n_picks = said.stdout.splitlines()
    assert {"pixel_gradients", "kmeans_plusplus", "k_center_greedy", "LastLayer", "embed_pool"} <= set(names.split())
    assert n_picks == "3"


def test_an_editable_install_works_beside_the_clone(tmp_path: Path) -> None:
    """From a folder that holds the clone, whose name is the package's, Python must find the package in it."""
    (tmp_path / "alges_fast" / "alges_fast").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "alges_fast")
    (tmp_path / "alges_fast" / "alges_fast" / "__init__.py").write_text('__version__ = "1"\n')
    code = """
import sys
from setuptools import build_meta
print(build_meta.build_editable(sys.argv[1]))
"""
    pytest.importorskip("setuptools", minversion="77")
    installed = tmp_path / "installed"
    installed.mkdir()
    command = [sys.executable, "-c", code, str(installed)]
    subprocess.run(command, cwd=tmp_path / "alges_fast", check=True, capture_output=True)
    (wheel,) = installed.glob("*.whl")
    shutil.unpack_archive(wheel, installed, "zip")
    program = f"import site; site.addsitedir({str(installed)!r}); import alges_fast; print(alges_fast.__version__)"
    clean = {**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": ""}
    # -S: this checkout may be installed in the same way, and would be found first.
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
