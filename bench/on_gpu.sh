#!/usr/bin/env bash
# bench/on_gpu.sh OUTDIR: everything that needs a GPU, in one command of less than ten minutes. Builds the CUDA kernels,
# runs the tests on them, looks for bad accesses and races, and measures. Each stage has a time limit and a log in OUTDIR;
# a failed stage does not stop the next. Exits with 1 if one failed, naming it in the table at the end.
set -uo pipefail
out=$(mkdir -p "${1:?usage: bench/on_gpu.sh OUTDIR}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH="/tmp/alges_fast_site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
: > "$out/summary.txt"
failed=()

row() { printf '%-10s %-8s %5ss  %s\n' "$@" | tee -a "$out/summary.txt"; }

stage() {  # NAME SECONDS cpu|gpu COMMAND...
  local name=$1 limit=$2 needs=$3 start=$SECONDS status
  shift 3
  if [ "$needs" = gpu ] && [ "$gpu" = no ]; then row "$name" skipped 0 "needs a GPU"; return; fi
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  if [ $status = 0 ]; then
    row "$name" passed $((SECONDS - start)) "$(grep -E ' (passed|failed)|ERROR SUMMARY|RACECHECK SUMMARY' "$out/$name.log" | tail -1)"
  else
    failed+=("$name")
    row "$name" FAILED $((SECONDS - start)) "exit $status; the end of $name.log:"
    tail -15 "$out/$name.log"
  fi
}

machine() {
  if compgen -G '.whl/*.whl' > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/alges_fast_site .whl/*.whl
  fi
  nvidia-smi || true
  nvcc --version
  python3 -c 'import sys, torch; print(sys.version, torch.__version__, torch.cuda.is_available())'
}

build() {
  local capability
  capability=$(python3 -c 'import torch; print(*torch.cuda.get_device_capability(), sep="")' 2> /dev/null) || capability=90
  ALGES_FAST_CUDA=1 ALGES_FAST_CUDA_ARCHITECTURES="$capability-real" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
    python3 setup.py build_ext --inplace
}

sanitize() {  # TOOL; small calls of every kernel
  compute-sanitizer --tool "$1" --error-exitcode 1 --kernel-regex kns=alges python3 - << 'CALLS'
import torch
from alges_fast import kmeans_plusplus, pixel_gradients
from alges_fast.ops.problem import OUTPUTS

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
bench() {  # NAME SECONDS -k EXPRESSION FILE; a file of results each, written when its stage ends
  stage "$1" "$2" gpu python3 -m pytest -q --benchmark-only "${@:3}" --benchmark-json "$out/$1.json" -p no:cacheprovider
}

gpu=$(python3 -c 'import torch; print("yes" if torch.cuda.is_available() else "no")')
stage machine 30 cpu bash -c machine
stage build 120 cpu bash -c build
stage tests 120 gpu python3 -m pytest -q $beside -m "gpu or not slow" tests/ops/test_pixel_gradients.py tests/ops/test_cuda.py tests/seeding \
  -p no:cacheprovider
bench ours 50 -k "alges_fast and cuda" bench/test_bench_pixel_gradients.py
bench seeding 30 -k gpu bench/test_bench_seeding.py
bench rivals 90 -k "rival and cuda" bench/test_bench_pixel_gradients.py
stage memcheck 45 gpu bash -c 'sanitize memcheck'
stage racecheck 45 gpu bash -c 'sanitize racecheck'

for results in ours seeding rivals; do
  [ -s "$out/$results.json" ] || continue
  python3 - "$out/$results.json" << 'TABLE' | tee -a "$out/summary.txt"
import json
import sys

for row in json.load(open(sys.argv[1]))["benchmarks"]:
    extra = "  ".join(f"{name} {value}" for name, value in row["extra_info"].items())
    print(f"{row['stats']['median'] * 1e6:12.1f} us  {row['name']}  {extra}")
TABLE
done
echo
cat "$out/summary.txt"
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}"; exit 1; fi
