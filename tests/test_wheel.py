"""What other machines are given: a wheel that runs natively beside a stock torch, with no compiler and no source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # a busy machine builds for long
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="manylinux wheels: needs g++"),
]

SYSTEM = {"libgomp", "libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "librt", "ld-linux-x86-64"}
"""Libraries that every manylinux system has, and libgomp, which torch's wheel carries."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    environment = {**os.environ, "ALGES_FAST_CUDA": "0"}
    command = [str(ROOT / "tools" / "build_wheels.sh"), str(out), sys.executable]
    built = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel; torch and the others are those of the tests, to spare a download."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)  # what installing a wheel without scripts comes to
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    """Run it where nothing but this Python is to be found."""
    nothing = folder / "nothing"
    nothing.mkdir(exist_ok=True)
    environment = {"PATH": str(nothing), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_tagged_manylinux_and_brings_no_library(wheel: Path) -> None:
    assert re.fullmatch(r"alges_fast-.*-manylinux_\d+_\d+_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        (module,) = [name for name in archive.namelist() if ".so" in name]
        assert module.startswith("alges_fast/_C.")


def test_the_module_needs_what_every_system_and_torch_have(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        module = archive.extract(next(name for name in archive.namelist() if ".so" in name), tmp_path)
    listed = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\.so", listed))
    assert needed <= SYSTEM
    assert not re.search(r"\((RPATH|RUNPATH)\)", listed)


def test_the_op_runs_natively_on_torchs_own_threads(bare: Path, tmp_path: Path) -> None:
    code = """
import torch, alges_fast
from pathlib import Path
print(alges_fast.__file__)
print(alges_fast.native_status())
x, w = torch.randn(2, 8, 16, 16), torch.randn(5, 8)
found = alges_fast.pixel_gradients(x, w, backend="cpu")
torch.testing.assert_close(found.image, alges_fast.pixel_gradients(x, w, backend="reference").image)
maps = Path("/proc/self/maps").read_text().split()
print("gomp", len({path for path in maps if "libgomp" in path}))
"""
    said = run(bare, tmp_path, "-c", code)
    assert str(bare.parents[1]) in said
    assert "native kernels: CPU" in said
    assert "gomp 1" in said


def test_the_demo_runs(bare: Path, tmp_path: Path) -> None:
    small = ["--rounds", "2", "--seeds", "0,1", "--image_size", "64"]
    run(bare, tmp_path, "-m", "alges_fast.run", *small, "--out", "demo")
    assert (tmp_path / "demo" / "report.html").is_file()
