"""The native module `alges_fast._C`, imported once and after torch, and the reason where there is none."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # first: the native module then shares torch's OpenMP runtime instead of bringing a second one

INTERFACE = 3
"""Of the native module, as csrc/bindings.cpp has it: raised with every change to what Python calls."""

_C: ModuleType | None = None
_import_error: str | None = None
try:
    _C = importlib.import_module("alges_fast._C")
    if getattr(_C, "INTERFACE", 1) != INTERFACE:
        _C, _import_error = None, "it was built from other sources; run `python setup.py build_ext --inplace`"
except ImportError as error:
    _import_error = str(error)


def _record() -> dict[str, Any]:
    path = Path(__file__).with_name("_build.json")
    if not path.exists():
        reason = "the package was not installed (no alges_fast/_build.json); run `pip install -e .`"
        return {"native": False, "cuda": False, "reason": reason}
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def cpu_kernels() -> ModuleType | None:
    """The native module, or None where it was not built or does not load."""
    return _C


def cuda_kernels() -> ModuleType | None:
    """The native module where it holds CUDA kernels, else None. Says nothing of whether a GPU is present."""
    return _C if _C is not None and hasattr(_C, "CudaSeeding") else None


@functools.cache
def cuda_unavailable(device: int) -> str | None:
    """Why the CUDA kernels cannot run on this device: not built, an old driver, an old or unknown GPU."""
    if cuda_kernels() is None:
        return f"built without CUDA kernels ({native_status()})"
    assert _C is not None
    with torch.cuda.device(device):
        return _C.cuda_unavailable(device) or None


def native_status() -> str:
    """One line on what native code this installation has, and why some is missing."""
    record = _record()
    if _C is None:
        reason = record["reason"] if not record["native"] else f"alges_fast._C does not load: {_import_error}"
        return f"native kernels: none ({reason}); plain PyTorch runs instead, slower"
    cuda = "CUDA kernels built" if cuda_kernels() else f"no CUDA kernels ({record['reason']})"
    openmp = "" if record.get("openmp", True) else ", one thread (the compiler has no OpenMP)"
    return f"native kernels: CPU ({_C.isa()}{openmp}), {cuda}"
