"""Who runs a call: the backend that is named, or the first of those preferred that can. Decided once for all calls that
differ in addresses and values alone.

The bodies are in reference.py, cpu.py, triton_kernels.py and cuda.py. Each has

    unavailable() -> str | None            why it cannot run on this machine
    unsupported(Problem) -> str | None     why it cannot run these inputs
    bind(Operands) -> Runner               what runs this call, and every other of the same layout
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor

from alges_fast.backends import choose_backend, say_what_was_passed_over
from alges_fast.ops.hidden import by_products
from alges_fast.ops.operands import DTYPES, Operands, mask_of
from alges_fast.ops.outputs import OUTPUTS
from alges_fast.ops.problem import Problem

Runner: TypeAlias = Callable[[Operands], "list[Tensor]"]

_MODULES = {
    "reference": "alges_fast.ops.reference",
    "cpu": "alges_fast.ops.cpu",
    "triton": "alges_fast.ops.triton_kernels",
    "cuda": "alges_fast.ops.cuda",
}
_MOST_RUNNERS = 4096
_runners: dict[Hashable, Runner] = {}
_one_pass: dict[Hashable, bool] = {}


def run(operands: Operands) -> list[Tensor]:
    """The results, in order; of an empty batch or map, zeros."""
    if operands.features.numel() == 0 or not operands.outputs:
        return [tensor.zero_() for tensor in operands.empty()]
    key = operands.key()
    runner = _runners.get(key)
    if runner is None:
        runner = _runner(operands)
        if len(_runners) >= _MOST_RUNNERS:
            _runners.clear()
        _runners[key] = runner
    return runner(operands)


def _runner(operands: Operands) -> Runner:
    if _by_products(operands):
        return lambda operands: by_products(operands, run)
    runner: Runner = _module(_choose(operands.problem(), operands.backend)).bind(operands)
    return runner


def _by_products(operands: Operands) -> bool:
    """Whether a hidden layer is one for the GPU backends, which read its maps."""
    if operands.hidden_weight is None or operands.regions or operands.backend == "reference":
        return False
    return operands.features.is_cuda and operands.features.dtype != torch.float64


def one_pass_with_hidden(inputs: Tensor, hidden_weight: Tensor, weight: Tensor, *, windows: bool = False) -> bool:
    """Whether `hidden_pixel_gradients`, or with windows `hidden_windows`, runs these in one pass over the inputs,
    whatever the outputs or the grid: on the CPU, for what fits its cache, with windows where channels lie together; on
    a GPU without windows, over some images' maps at a time."""
    operands = Operands(inputs, weight, outputs=mask_of(OUTPUTS), hidden_weight=hidden_weight)
    key = operands.key(), windows
    if key not in _one_pass:
        if len(_one_pass) >= _MOST_RUNNERS:
            _one_pass.clear()
        _one_pass[key] = _reads_once(operands, windows=windows)
    return _one_pass[key]


def _reads_once(operands: Operands, *, windows: bool) -> bool:
    inputs = operands.features
    if inputs.is_cuda and not windows:
        return _by_products(operands)
    if inputs.device.type != "cpu" or inputs.dtype not in DTYPES or unavailable("cpu") is not None:
        return False
    if _module("cpu").unsupported(operands.problem()) is not None:
        return False
    if not windows:
        return True
    return inputs.ndim == 4 and _module("cpu").unsupported(operands._replace(regions=(1, 1)).problem()) is None


def preferred_backends(device: str, *, kernel: bool, streams: bool, float32: bool, channels: int) -> tuple[str, ...]:
    """Backends to try, the one expected to be fastest first.

    Args:
        device: the inputs' device type.
        kernel: whether the last layer's kernel is larger than 1.
        streams: whether the CUDA stream kernel takes the call.
        float32: whether the features are float32.
        channels: of the features.
    """
    if device == "cpu":
        return "cpu", "reference"
    if device != "cuda":
        return ("reference",)
    # By machine code, not measured yet: the stream kernel issues a quarter of the instructions it did when Triton was
    # preferred to it; Triton re-reads every tap of a kernel, and spills registers in float32 beyond 128 channels
    # (bench/NOTES.md).
    if kernel or streams or (float32 and channels > 128):
        return "cuda", "triton", "reference"
    return "triton", "cuda", "reference"


@functools.cache
def unavailable(backend: str) -> str | None:
    """Why a backend cannot run on this machine."""
    try:
        module = _module(backend)
    except ImportError as error:
        return f"its module does not import: {error}"
    why: str | None = module.unavailable()
    return why


def _choose(problem: Problem, requested: str) -> str:
    def reason(backend: str) -> str | None:
        return unavailable(backend) or _module(backend).unsupported(problem)

    preferred = preferred_backends(
        problem.features.device.type,
        kernel=problem.kernel != (1, 1, 1),
        streams=problem.features.is_cuda and unavailable("cuda") is None and _module("cuda").streams(problem),
        float32=problem.features.dtype == torch.float32,
        channels=problem.channels,
    )
    chosen, passed_over = choose_backend(None if requested == "auto" else requested, preferred, reason)
    if problem.regions is None:
        say_what_was_passed_over("pixel_gradients", chosen, passed_over)
    return chosen


def _module(backend: str) -> ModuleType:
    return importlib.import_module(_MODULES[backend])
