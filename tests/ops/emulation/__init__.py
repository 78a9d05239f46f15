"""The CUDA kernels of csrc/cuda, compiled by the host's compiler and run thread by thread on the CPU.

`cuda/primitives.cuh` here stands in for the one in csrc: barriers and warp collectives in plain C++.
Everything else is the code that runs on a GPU, the planner and the bindings included.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent


def load() -> ModuleType:
    """Build the module where its sources changed, and import it; skips where there is no compiler."""
    pybind11 = pytest.importorskip("pybind11")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulation of the CUDA kernels with")
    kernels = sorted((ROOT / "csrc" / "cuda").glob("pixel_gradients*"))
    headers = [path for path in kernels if path.suffix in (".h", ".cuh")]
    sources = [HERE / "module.cpp", *(path for path in kernels if path not in headers)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*headers, *sources, HERE / "cuda/primitives.cuh")))
    target = ROOT / "build" / "emulation" / digest.hexdigest()[:16] / "emulated.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [HERE, ROOT / "csrc", sysconfig.get_paths()["include"], pybind11.get_include()]
        command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", *(f"-I{path}" for path in includes)]
        partial = target.with_suffix(".partial")
        subprocess.run([*command, "-x", "c++", *map(str, sources), "-o", str(partial)], check=True)
        partial.rename(target)
    spec = importlib.util.spec_from_file_location("emulated", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
