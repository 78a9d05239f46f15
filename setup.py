"""Builds the native core (csrc/) through CMake.

Environment:
    ALGES_FAST_NATIVE=0             build no native code at all
    ALGES_FAST_CUDA=auto|0|1        CUDA kernels: when nvcc is found (default), never, or fail without nvcc
    ALGES_FAST_CUDA_ARCHITECTURES   CMake's list, e.g. "90-real"; default: every generation from sm_80 on
    CMAKE_ARGS, CMAKE_BUILD_PARALLEL_LEVEL   as CMake's own

With no C++ compiler the package installs without native code. `alges_fast/_build.json` records what was built and why
something was not, and `alges_fast.native_status()` says it.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def missing_compiler() -> str | None:
    """Why no C++ compiler can be used, or None when one can."""
    named = os.environ.get("CXX")
    candidates = [shlex.split(named)[0]] if named else ["c++", "g++", "clang++", "cl"]
    if any(shutil.which(name) for name in candidates):
        return None
    return f"no C++ compiler on PATH (looked for {', '.join(candidates)})"


class CMakeBuild(build_ext):
    """One CMake project builds the one extension module, `alges_fast._C`."""

    def run(self) -> None:
        # Before setuptools' own run(), which would look for a compiler and copy a module that was not built.
        reason = (
            "ALGES_FAST_NATIVE=0 was set at build time"
            if os.environ.get("ALGES_FAST_NATIVE", "1") == "0"
            else missing_compiler()
        )
        if reason is None:
            super().run()
            record = json.loads(self.record.read_text())
        else:
            print(f"alges_fast: installing without native kernels: {reason}", file=sys.stderr)
            self.extensions = []
            record = {"native": False, "openmp": False, "cuda": False, "reason": reason}
        package = ROOT / "alges_fast" if self.inplace or self.editable_mode else Path(self.build_lib) / "alges_fast"
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(record, indent=1) + "\n")

    @property
    def record(self) -> Path:
        return Path(self.build_temp).resolve() / "_build.json"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S", str(ROOT),
            "-B", str(build),
            "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DALGES_FAST_CUDA={os.environ.get('ALGES_FAST_CUDA', 'auto')}",
            f"-DALGES_FAST_CUDA_ARCHITECTURES={os.environ.get('ALGES_FAST_CUDA_ARCHITECTURES', '')}",
            f"-DALGES_FAST_RECORD={self.record}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            raise SystemExit(
                f"alges_fast: the native build failed ({error}). The compiler's own message is above. "
                "ALGES_FAST_CUDA=0 builds the CPU kernels alone; ALGES_FAST_NATIVE=0 installs without native code."
            ) from error


setup(ext_modules=[Extension("alges_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
