#!/usr/bin/env bash
# Downloads into .whl/ what a GPU machine without a network lacks (Python 3.12, Linux x86-64); bench/on_gpu.sh installs them.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(segmentation-models-pytorch lightning-fabric)
rm -rf .whl && mkdir .whl
platforms=()
for glibc in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .whl "${packages[@]}"
du -sh .whl
