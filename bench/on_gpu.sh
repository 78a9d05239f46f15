#!/usr/bin/env bash
# bench/on_gpu.sh OUTDIR checks|bench: what needs a GPU, in two commands of less than ten minutes each. `checks` builds the
# CUDA kernels, looks for bad accesses and races, and runs the tests on them; `bench` measures. Each stage has a time limit;
# a failed stage does not stop the next. OUTDIR gets two files, whole after every stage: summary.txt, and archive.tar.gz with
# a log a stage, a JSON of results a benchmark and a file of JSON lines a file of tests. Exits with 1 if a stage failed.
set -uo pipefail
out=$(mkdir -p "${1:?usage: bench/on_gpu.sh OUTDIR checks|bench}" && cd "$1" && pwd)
part=${2:?usage: bench/on_gpu.sh OUTDIR checks|bench}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
export PYTHONUNBUFFERED=1 PYTHONPATH="/tmp/alges_fast_site:$PWD:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}"
: > "$out/summary.txt"
failed=()

keep() { tar -czf "$out/.archive" -C "$work" . && mv "$out/.archive" "$out/archive.tar.gz"; }
row() { printf '%-10s %-8s %5ss  %s\n' "$@" | tee -a "$out/summary.txt"; }

stage() {  # NAME SECONDS cpu|gpu COMMAND...
  local name=$1 limit=$2 needs=$3 start=$SECONDS status
  shift 3
  if [ "$needs" = gpu ] && [ "$gpu" = no ]; then row "$name" skipped 0 "needs a GPU"; return; fi
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" > "$work/$name.log" 2>&1
  status=$?
  if [ $status = 0 ]; then
    row "$name" passed $((SECONDS - start)) "$(grep -E ' (passed|failed)|ERROR SUMMARY|RACECHECK SUMMARY' "$work/$name.log" | tail -1)"
  else
    failed+=("$name")
    row "$name" FAILED $((SECONDS - start)) "exit $status; the end of $name.log:"
    tail -15 "$work/$name.log"
  fi
  keep
}

machine() {
  if compgen -G '.whl/*.whl' > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/alges_fast_site .whl/*.whl
  fi
  nvidia-smi || true
  nvcc --version
  python3 -c 'import sys, torch; print(sys.version, torch.__version__, torch.cuda.is_available())'
}

build() {  # by CMake alone: the machine's setuptools may be older than pyproject.toml wants
  local capability
  python3 -c 'from alges_fast._native import cuda_kernels as built; import sys; sys.exit(built() is None)' && return
  capability=$(python3 -c 'import torch; print(*torch.cuda.get_device_capability(), sep="")' 2> /dev/null) || capability=90
  cmake -S . -B build/on_gpu -G Ninja -DCMAKE_BUILD_TYPE=Release "-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$PWD/alges_fast" \
    "-DPython_EXECUTABLE=$(command -v python3)" "-DALGES_FAST_RECORD=$PWD/alges_fast/_build.json" \
    -DALGES_FAST_CUDA=1 "-DALGES_FAST_CUDA_ARCHITECTURES=$capability-real" && cmake --build build/on_gpu -j "$(nproc)"
}

lacks() {  # MODULE...: names those that are not installed; fails where all are
  python3 - "$@" << 'MODULES'
import importlib.util
import sys

missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print(*missing, sep=", ")
sys.exit(not missing)
MODULES
}

sanitize() {  # TOOL; small calls of every kernel
  compute-sanitizer --tool "$1" --error-exitcode 1 --kernel-regex kns=alges python3 - << 'CALLS'
import torch
from alges_fast import kmeans_plusplus, pixel_gradients
from alges_fast.ops import OUTPUTS

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for channels, n_classes, kernel in ((16, 13, ()), (256, 21, ()), (20, 40, ()), (16, 13, (3, 3))):
        features = torch.randn(2, channels, 16, 24, device="cuda", dtype=dtype)
        for layout in (features, features.to(memory_format=torch.channels_last)):
            weight = torch.randn(n_classes, channels, *kernel, device="cuda", dtype=dtype)
            valid = torch.rand(2, 16, 24, device="cuda") > 0.3
            pixel_gradients(layout, weight, outputs=OUTPUTS, valid=valid, backend="cuda")
for trials in (1, 3):
    kmeans_plusplus(torch.randn(2000, 64, device="cuda"), 5, trials=trials, backend="cuda")
torch.cuda.synchronize()
CALLS
}
export -f machine build sanitize

# Triton compiles on the processor: tests side by side where pytest-xdist is at hand.
beside=$(python3 -c 'import xdist' 2> /dev/null && echo "-n 8")
tests() {  # NAME SECONDS FILE...
  stage "$1" "$2" gpu env OMP_NUM_THREADS=2 "REPORT=$work/$1.jsonl" python3 -m pytest -q $beside -m "gpu or not slow" \
    -p report_at_once -p no:cacheprovider "${@:3}"
}
bench() {  # NAME SECONDS -k EXPRESSION FILE; a file of results each, written when its stage ends, and lines as they come
  stage "$1" "$2" gpu env "REPORT=$work/$1.jsonl" python3 -m pytest -q --benchmark-only "${@:3}" \
    --benchmark-json "$work/$1.json" -p report_at_once -p no:cacheprovider
  [ -s "$work/$1.json" ] || return
  python3 - "$work/$1.json" << 'TABLE' | tee -a "$out/summary.txt"
import json
import sys

found = json.load(open(sys.argv[1]))
print("on", found["machine_info"]["gpu"])
for row in found["benchmarks"]:
    extra = "  ".join(f"{name} {value}" for name, value in row["extra_info"].items())
    print(f"{row['stats']['median'] * 1e6:12.1f} us  {row['name']}  {extra}")
TABLE
}

gpu=$(python3 -c 'import torch; print("yes" if torch.cuda.is_available() else "no")')
stage machine 20 cpu bash -c machine
stage build 110 gpu bash -c build
case $part in
  checks)
    stage memcheck 120 gpu bash -c 'sanitize memcheck'
    stage racecheck 120 gpu bash -c 'sanitize racecheck'
    tests op 140 tests/ops/test_pixel_gradients.py
    tests cuda 30 tests/ops/test_cuda.py
    tests seeding 40 tests/seeding
    ;;
  bench)
    # In the order of their worth: the device's time may end before the last.
    bench ours 130 -k "(alges_fast and cuda) or host_cost or replayed" bench/test_bench_pixel_gradients.py
    bench seeding 40 -k alges_fast_gpu bench/test_bench_seeding.py
    bench rivals 120 -k "rival and cuda" bench/test_bench_pixel_gradients.py
    if missing=$(lacks segmentation_models_pytorch jsonargparse lightning_fabric jinja2 matplotlib timm rich); then
      row paper skipped 0 "no $missing (bench/gpu_wheels.sh brings them)"
    else
      stage paper 60 gpu python3 bench/paper_run.py
      grep -h seconds_of_30_rounds "$work/paper.log" 2> /dev/null | tee -a "$out/summary.txt"
    fi
    bench frozen 40 -k on_a_gpu bench/test_bench_frozen.py
    bench pool 60 -k overhead bench/test_bench_pool.py
    row cuvs skipped 0 "libcuvs-cu13's wheel is 241 MB (cu12: 393); a call carries 64 MiB"
    ;;
  *) echo "checks or bench, not $part"; exit 2 ;;
esac
keep
echo
cat "$out/summary.txt"
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}"; exit 1; fi
