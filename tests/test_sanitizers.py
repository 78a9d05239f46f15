"""The CPU core built to stop at a bad access or undefined behaviour, under the tests that drive it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUITES = (
    "ops/test_pixel_gradients.py",
    "ops/test_pixel_gradients_calls.py",
    "ops/test_cpu.py",
    "ops/test_border.py",
    "ops/test_hidden.py",
    "ops/test_hidden_windows.py",
    "seeding/test_seeding.py",
)
# The reference and Triton run elsewhere; what measures memory would measure the sanitizer's.
LEFT_OUT = " and ".join(
    f"not {name}" for name in ("reference", "triton", "on_gpu", "inductor", "compile", "are_not_copied", "opcheck")
)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, its native module built with both sanitizers."""
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on PATH")
    folder = tmp_path_factory.mktemp("sanitized")
    package = folder / "alges_fast"
    shutil.copytree(ROOT / "alges_fast", package, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    options = {"CMAKE_BUILD_TYPE": "RelWithDebInfo", "CMAKE_LIBRARY_OUTPUT_DIRECTORY": package}
    options |= {"Python_EXECUTABLE": sys.executable, "ALGES_FAST_CUDA": 0, "ALGES_FAST_SANITIZE": "ON"}
    configure = ["cmake", "-S", ROOT, "-B", folder / "build", "-G", "Ninja"]
    configure += [f"-D{key}={value}" for key, value in options.items()]
    subprocess.run([str(word) for word in configure], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(folder / "build")], check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the build is most of it
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_nothing_is_read_or_written_out_of_place(sanitized: Path, isa: str) -> None:
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # Python keeps what it holds until the end
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(sanitized),
        "ALGES_FAST_ISA": isa,
        "PYTHONMALLOC": "malloc",
    }
    program = "from alges_fast._native import cpu_kernels as k; print(k().isa(), k().__file__)"
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT / "tests", capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-3000:]
    found, place = told.stdout.split()
    assert place.startswith(str(sanitized))
    if found != isa:
        pytest.skip(f"this processor has no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", LEFT_OUT, *SUITES]
    # In a folder without the package, which `python -m` would find before the copy.
    done = subprocess.run(command, env=environment, cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
