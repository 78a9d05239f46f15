"""A rehearsal of bench/on_gpu.sh: its programs are stand-ins that sleep, and one stage fails, one hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "on_gpu.sh"
RESULT = '{"name": "a case", "group": "g", "median": 0.001, "extra_info": {"ms": 1.0}}'
# Says yes to every question; a benchmark leaves a result and sleeps; rivals fail, and the profiler hangs.
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  -c*torch.cuda.is_available*yes*) echo yes ;;
  -c*xdist* | -c*sys.version*) exit 0 ;;
  -c*) exit 1 ;;
  -\\ segmentation*) exit 1 ;;
  -\\ *) {shutil.which("python3")} "$@" ;;
  *rival*) echo '{RESULT}' >> "$RESULTS"; echo "CUDA error: an illegal memory access"; exit 1 ;;
  *benchmark-only*) echo '{RESULT}' >> "$RESULTS"; sleep 0.05; echo "1 passed" ;;
  *) sleep 0.05; echo "1 passed" ;;
esac
"""
HANGS = """#!/usr/bin/env bash
trap '' TERM
echo begun
while true; do sleep 0.2; done
"""
PASSES = "#!/usr/bin/env bash\nsleep 0.05\n"


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"python3": PYTHON, "ncu": HANGS, **dict.fromkeys(("nvcc", "cmake", "compute-sanitizer"), PASSES)}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("timeout") is None, reason="no bash or no timeout")
def test_a_failed_and_a_hanging_stage_stop_no_other_and_cost_no_result(
    stand_ins: dict[str, str], tmp_path: Path
) -> None:
    out, seconds = tmp_path / "out", 60
    begun = time.monotonic()
    done = subprocess.run(
        ["bash", str(SCRIPT), str(out), str(seconds)], env=stand_ins, capture_output=True, text=True, timeout=300
    )
    taken = time.monotonic() - begun
    assert done.returncode == 1, done.stdout + done.stderr
    summary = (out / "summary.txt").read_text()
    state = {line.split()[0]: line.split()[1] for line in summary.splitlines() if " us " not in line}
    assert state.pop("profile") == "FAILED"
    assert "stopped at its limit" in summary
    assert state.pop("rivals") == "FAILED"
    assert "illegal memory access" in done.stdout
    assert set(state.values()) == {"passed"}, summary
    assert {"build", "smoke", "conformance", "ours", "seeding", "memcheck", "racecheck", "frozen", "paper"} <= set(
        state
    )
    assert "failed: profile rivals" in done.stdout
    assert taken < seconds
    assert not _still_running(tmp_path)
    with tarfile.open(out / "archive.tar.gz") as archive:
        kept = {Path(name).name for name in archive.getnames()}
        rivals = archive.extractfile("./rivals.results.jsonl")
        assert rivals.read().decode().strip() == RESULT
    assert {"profile.log", "ours.results.jsonl", "racecheck.log"} <= kept
    assert summary.count("a case") == 6  # ours, host cost, seeding, triton, rivals, frozen


def _still_running(folder: Path) -> list[str]:
    """Commands of processes that a stage has left behind."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if str(folder / "bin") in line]


def test_its_stages_fit_one_call() -> None:
    words = [line.split() for line in SCRIPT.read_text().splitlines()]
    calls = [line for line in words if line[:1] in (["stage"], ["tests"], ["bench"]) and line[2].isdigit()]
    limits = {line[1]: int(line[2]) for line in calls}
    assert list(limits)[:4] == ["machine", "build", "smoke", "conformance"]
    before_the_profiler = list(limits)[: list(limits).index("profile")]
    assert sum(limits[name] for name in before_the_profiler) < 270  # what matters most cannot be starved by what hangs
    assert sum(limits.values()) <= 540


def test_without_time_a_stage_is_skipped_and_said(stand_ins: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out"), "1"], env=stand_ins, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 1)
    assert "no time is left" in (tmp_path / "out" / "summary.txt").read_text()
