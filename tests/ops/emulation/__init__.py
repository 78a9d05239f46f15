"""The CUDA kernels of csrc/cuda, compiled by the host's compiler and run thread by thread on the CPU.

`cuda/primitives.cuh` here stands in for the one in csrc: barriers and warp collectives in plain C++, and every access
of the kernels watched for races. Everything else is the code that runs on a GPU, planner and bindings included.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
# Calls to hooks.cpp at every load and store, and at every access off its type's alignment.
WATCHED = ("-fsanitize=thread", "-fsanitize=alignment", "-fno-sanitize-recover=alignment")


def build(sources: Sequence[Path], target: Path, includes: Sequence[Path | str] = (), *flags: str) -> Path:
    """Compile and link, kernels watched, in the target's folder; skips where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulation of the CUDA kernels with")

    def compiled(source: Path) -> str:
        made = str(target.with_name(f"{source.name}.o"))
        watched = WATCHED if source.suffix == ".cu" else ()
        options = (*FLAGS, *watched, *(f"-I{path}" for path in (HERE, *includes)))
        subprocess.run([compiler, *options, "-x", "c++", "-c", str(source), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([compiler, *flags, *objects, "-o", str(target)], check=True)
    return target


@functools.cache
def load() -> ModuleType:
    """Build the module where its sources changed, and import it; skips where there is no compiler."""
    pybind11 = pytest.importorskip("pybind11")
    files = sorted(path for path in (ROOT / "csrc" / "cuda").iterdir() if path.stem not in ("device", "primitives"))
    sources = [HERE / "module.cpp", HERE / "hooks.cpp", *(path for path in files if path.suffix in (".cu", ".cpp"))]
    files += [ROOT / "csrc" / name for name in ("call.h", "bindings.h", "seeding_shard.h", "seeding_bindings.h")]
    own = (Path(__file__), HERE / "module.cpp", HERE / "hooks.cpp", HERE / "cuda" / "primitives.cuh")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*files, *own)))
    target = ROOT / "build" / "emulation" / digest.hexdigest()[:16] / "emulated.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent))  # its own, or two test runs would write into one file
        includes = (ROOT / "csrc", sysconfig.get_paths()["include"], pybind11.get_include())
        build(sources, folder / target.name, includes, "-shared").rename(target)
        shutil.rmtree(folder)
    spec = importlib.util.spec_from_file_location("emulated", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
