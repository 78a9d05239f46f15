#!/usr/bin/env bash
# bench/on_gpu.sh OUTDIR [SECONDS]: all that needs a GPU, in one command of at most 540 seconds (or so many): builds the CUDA
# kernels, checks them, measures them, then looks at them through the profiler and the sanitizers. Stages come in the order
# of their worth, each with a limit of its own within what is left; one that fails or hangs stops no other. OUTDIR gets two
# files, whole after every stage: summary.txt, and archive.tar.gz with a log a stage and, a line of JSON each, every test and
# every result as soon as it was there. Exits with 1 if a stage failed.
set -uo pipefail
out=$(mkdir -p "${1:?usage: bench/on_gpu.sh OUTDIR [SECONDS]}" && cd "$1" && pwd)
total=${2:-540}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
export PYTHONUNBUFFERED=1 PYTHONPATH="/tmp/alges_fast_site:$PWD:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}"
: > "$out/summary.txt"
failed=()
begun=$(date +%s%N)

ms() { echo $((($(date +%s%N) - begun) / 1000000)); }
keep() { tar -czf "$out/.archive" -C "$work" . && mv "$out/.archive" "$out/archive.tar.gz"; }
row() { printf '%-12s %-8s %5ss  %s\n' "$@" | tee -a "$out/summary.txt"; }

stage() {  # NAME SECONDS cpu|gpu COMMAND...; the seconds are of 540, and what is kept back at the end is for the archive
  local name=$1 limit=$(($2 * total * 1000 / 540)) needs=$3 start left status
  shift 3
  if [ "$needs" = gpu ] && [ "$gpu" = no ]; then row "$name" skipped 0 "needs a GPU"; return; fi
  start=$(ms) left=$((total * 985 - $(ms)))
  if [ $left -lt $((total * 5)) ]; then row "$name" skipped 0 "no time is left"; return; fi
  [ $limit -le $left ] || limit=$left
  RESULTS="$work/$name.results.jsonl" REPORT="$work/$name.tests.jsonl" \
    setsid timeout --kill-after=1 "$(printf '%d.%03d' $((limit / 1000)) $((limit % 1000)))" "$@" > "$work/$name.log" 2>&1 &
  local group=$!
  wait $group
  status=$?
  kill -KILL -- -$group 2> /dev/null  # what a stage that hangs has started would keep the GPU from the next
  if [ $status = 0 ]; then
    row "$name" passed $((($(ms) - start) / 1000)) "$(grep -E ' (passed|failed)|ERROR SUMMARY|RACECHECK SUMMARY' "$work/$name.log" | tail -1)"
  else
    failed+=("$name")
    [ $status = 124 ] || [ $status = 137 ] && status="stopped at its limit"
    row "$name" FAILED $((($(ms) - start) / 1000)) "$status; the end of $name.log:"
    tail -15 "$work/$name.log"
  fi
  [ -s "$work/$name.results.jsonl" ] && table "$work/$name.results.jsonl" | tee -a "$out/summary.txt"
  keep
}

table() {  # FILE: a line a result
  python3 - "$1" << 'TABLE'
import json
import sys

for line in open(sys.argv[1]):
    result = json.loads(line)
    extra = "  ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in result["extra_info"].items())
    print(f"{result['median'] * 1e6:12.1f} us  {result['name']}  {extra}")
TABLE
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
    -DALGES_FAST_CUDA=1 -DCMAKE_CUDA_FLAGS=-lineinfo "-DALGES_FAST_CUDA_ARCHITECTURES=$capability-real" \
    && cmake --build build/on_gpu -j "$(nproc)"
}

profile() {  # what bounds each kernel: share of the machine's peak, reasons for stalls, occupancy
  ncu --clock-control none --section SpeedOfLight --section WarpStateStats --section Occupancy --launch-count 40 \
    --kernel-name regex:"stream|tile|finish|seed|chain" python3 bench/gpu_calls.py large
}

memcheck() {  # with an allocation of its own for every tensor: a pool's neighbours would hide an overrun
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 --kernel-regex kns=alges \
    python3 bench/gpu_calls.py small
}
racecheck() {
  compute-sanitizer --tool racecheck --error-exitcode 1 --kernel-regex kns=alges python3 bench/gpu_calls.py small
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
export -f machine build profile memcheck racecheck

# Triton compiles on the processor: tests side by side where pytest-xdist is at hand.
beside=$(python3 -c 'import xdist' 2> /dev/null && echo "-n 8")
tests() {  # NAME SECONDS ARGUMENT...
  stage "$1" "$2" gpu env OMP_NUM_THREADS=2 python3 -m pytest -q $beside -m gpu -p report_at_once -p no:cacheprovider "${@:3}"
}
bench() {  # NAME SECONDS ARGUMENT...
  stage "$1" "$2" gpu python3 -m pytest -q --benchmark-only -p report_at_once -p no:cacheprovider "${@:3}"
}

gpu=$(python3 -c 'import torch; print("yes" if torch.cuda.is_available() else "no")')
op=bench/test_bench_pixel_gradients.py
stage machine 12 cpu bash -c machine
stage build 80 gpu bash -c build
stage smoke 15 gpu python3 bench/gpu_calls.py against-float64
tests conformance 55 tests/ops/test_pixel_gradients*.py -k "cuda-cuda"
bench ours 60 "$op" -k "test_alges_fast and cuda and cuda]"
bench host_cost 10 "$op" -k host_cost
stage profile 45 gpu bash -c profile
bench seeding 20 bench/test_bench_seeding.py -k alges_fast_gpu
bench triton 35 "$op" -k "test_alges_fast and cuda and triton]"
bench rivals 35 "$op" -k "rival and cuda and (compiled or eager)"
tests triton_cases 25 tests/ops/test_pixel_gradients.py -k "triton-cuda and test_types_and_given_operands and plain and (bfloat16 or float32)"
tests seeding_gpu 15 tests/seeding
stage memcheck 35 gpu bash -c memcheck
stage racecheck 35 gpu bash -c racecheck
bench frozen 20 bench/test_bench_frozen.py -k on_a_gpu
if missing=$(lacks segmentation_models_pytorch lightning_fabric jinja2 matplotlib timm rich); then
  row paper skipped 0 "no $missing (bench/gpu_wheels.sh brings them)"
else
  stage paper 40 gpu python3 bench/paper_run.py
  grep -h seconds_of_30_rounds "$work/paper.log" 2> /dev/null | tee -a "$out/summary.txt"
fi
keep
echo
cat "$out/summary.txt"
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}"; exit 1; fi
