"""`pixel_gradients`: the contract, its validation, its registration with torch.library, and who runs it.

The bodies are in reference.py, cpu.py, triton_kernels.py and cuda.py. Each has

    unavailable() -> str | None            why it cannot run on this machine
    unsupported(Problem) -> str | None     why it cannot run these inputs
    run(Problem) -> dict[str, Tensor]      the outputs asked for, in canonical shape
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from alges_fast.backends import check_backend, choose_backend, say_what_was_passed_over
from alges_fast.ops.problem import OUTPUTS, Problem, check_outputs
from alges_fast.windows import cell_boxes

__all__ = [
    "BACKENDS",
    "OUTPUTS",
    "PixelGradients",
    "WindowSums",
    "check_outputs",
    "hidden_pixel_gradients",
    "hidden_windows",
    "one_pass_with_hidden",
    "pixel_gradients",
]

BACKENDS = ("reference", "cpu", "triton", "cuda")
_MODULES = {
    "reference": "alges_fast.ops.reference",
    "cpu": "alges_fast.ops.cpu",
    "triton": "alges_fast.ops.triton_kernels",
    "cuda": "alges_fast.ops.cuda",
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class PixelGradients(NamedTuple):
    """Outputs of `pixel_gradients`; those not asked for are None. B images, K classes, d channels.

    Sums and means run over valid pixels; r is the residual, z̃ the kernel-sized patch of features, ŷ the prediction.
    """

    image: Tensor | None = None
    """(B, K, d[, *kernel]): mean of r ⊗ z̃ (ALGES Eq. 4)."""
    semantic: Tensor | None = None
    """(B, K): sum over pixels with ŷ = k of ‖r ⊗ z̃‖_F (Eq. 6 and its text)."""
    semantic_vector: Tensor | None = None
    """(B, K, d[, *kernel]): sum over pixels with ŷ = k of r_k z̃ (Eq. 6 as printed)."""
    norm_map: Tensor | None = None
    """(B, *spatial): ‖r ⊗ z̃‖_F of each pixel, 0 where not valid (Fig. 2d)."""
    class_pixels: Tensor | None = None
    """(B, K) int64: number of pixels with ŷ = k."""
    entropy: Tensor | None = None
    """(B,): sum of -Σ p ln p, in nats."""
    margin: Tensor | None = None
    """(B,): sum of the largest p less the second largest."""
    confidence: Tensor | None = None
    """(B,): sum of the largest p."""
    class_mass: Tensor | None = None
    """(B, K): sum of p_k."""
    class_entropy: Tensor | None = None
    """(B, K): sum of p_k H, H = -Σ p ln p in nats; over k it adds up to `entropy`."""
    feature_sum: Tensor | None = None
    """(B, d): sum of the features themselves."""


def pixel_gradients(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: Sequence[str] = ("image", "semantic"),
    logits: Tensor | None = None,
    residual: Tensor | None = None,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> PixelGradients:
    """Gradient embeddings and uncertainty scores of a segmentation model's last layer, in one pass over its input.

    With s = weight * features + bias, p = softmax(s), ŷ = argmax s (ties: the lowest class) and r = p - onehot(ŷ), the
    gradient of a pixel's cross-entropy against the model's own prediction is r ⊗ z̃, z̃ the kernel-sized patch of
    features. It is rank one, so its Frobenius norm is ‖r‖ ‖z̃‖, and no (pixels x K x d) tensor is ever stored.

    Args:
        features: (B, d, *spatial), the last convolution's input, with 1, 2 or 3 spatial axes; float16, bfloat16,
            float32 or float64; any strides, channels-last included.
        weight: (K, d) or (K, d, *kernel), odd kernel, stride 1, zero padding kernel // 2; features' type or float32.
        bias: (K,), same types.
        outputs: names of the fields of `PixelGradients` to compute.
        logits: (B, K, *spatial), used instead of weight * features + bias; features' type or float32.
        residual: (B, K, *spatial), dℓ/dlogits of each pixel for another loss; default is r above. Same types. It enters
            `image`, `semantic`, `semantic_vector` and `norm_map`; the other outputs are of p and z all the same.
        valid: (B, *spatial) bool, the pixels that count; default all.
        backend: "reference", "cpu", "triton" or "cuda"; default the fastest that can run these inputs.

    Returns:
        PixelGradients. Sums and norms are float32 (float64 for float64 features), `class_pixels` int64. No gradient
        flows. `image` equals what autograd gives for the mean cross-entropy over valid pixels against the model's own
        prediction.

    Raises:
        ValueError: a wrong shape, device, output or backend name, or a named backend that cannot run here, and why.
        TypeError: a wrong type.

    Reference:
        Aklilu and Yeung, "ALGES: Active Learning with Gradient Embeddings for Semantic Segmentation of Laparoscopic
        Surgical Images", MLHC 2022, Eq. 4 and 6.

    Example:
        >>> features, weight = torch.randn(2, 16, 32, 32), torch.randn(13, 16)
        >>> found = pixel_gradients(features, weight, outputs=("image", "semantic", "entropy"))
        >>> found.image.shape, found.semantic.shape, found.entropy.shape
        (torch.Size([2, 13, 16]), torch.Size([2, 13]), torch.Size([2]))
    """
    check_outputs(outputs)
    _validate(features, weight, bias, logits, residual, valid, backend)
    requested = _mask(outputs)
    return _named(_op(features, weight, bias, logits, residual, valid, requested, backend or "auto"), requested)


def hidden_pixel_gradients(
    inputs: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: Sequence[str] = ("image", "semantic"),
    valid: Tensor | None = None,
    backend: str | None = None,
) -> PixelGradients:
    """`pixel_gradients` of features = relu(hidden_weight * inputs + hidden_bias), which are stored nowhere.

    For a head over features that are kept: what a pixel's features are made of is read once, and they stay in the cache
    from the hidden layer to the last sum. An infinity among the inputs is a NaN among the features.

    Args:
        inputs: (B, c, *spatial), as the features of `pixel_gradients`. A pixel's channels had better lie together.
        hidden_weight, hidden_bias: (d, c) or (d, c, 1, ...), and (d,) or None; inputs' type or float32.
        weight: (K, d) or (K, d, 1, ...).
        bias, outputs, valid: as for `pixel_gradients`.
        backend: "cpu" or "reference"; default the first that can run here.

    Raises:
        ValueError, TypeError: as `pixel_gradients`; a kernel larger than 1.
    """
    check_outputs(outputs)
    _validate_hidden(inputs, hidden_weight, hidden_bias, weight, bias, valid, backend)
    requested = _mask(outputs)
    found = _op(inputs, weight, bias, None, None, valid, requested, backend or "auto", hidden_weight, hidden_bias)
    return _named(found, requested)


class WindowSums(NamedTuple):
    """What `hidden_windows` returns."""

    image: Tensor
    """(B, R C, K, d): mean over each window of r ⊗ z (Eq. 4 restricted to it)."""
    outline: Tensor
    """(B, R C): how many neighbours inside the window, side by side or one above the other, differ in ŷ."""


def hidden_windows(
    inputs: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    regions: tuple[int, int] = (1, 1),
    backend: str | None = None,
) -> WindowSums:
    """The embedding of `hidden_pixel_gradients`, and the predicted outline, of every window of a grid, in one pass.

    On the CPU a window costs no more than its pixels do in a whole image, but for writing down its sums: they are done
    window by window, wherever in the grid they lie.

    Args:
        inputs: (B, c, height, width), otherwise as for `hidden_pixel_gradients`.
        hidden_weight, hidden_bias, weight, bias: as for it.
        regions: rows R and columns C of the grid, as in `windows.cell_boxes`.
        backend: "cpu", for inputs whose channels lie together, or "reference"; default the first that can run here.

    Raises:
        ValueError, TypeError: as `hidden_pixel_gradients`; a grid finer than the inputs.
    """
    _validate_hidden(inputs, hidden_weight, hidden_bias, weight, bias, None, backend)
    cell_boxes(inputs.shape[2:], regions)  # refuses what does not fit
    return WindowSums(*_windows_op(inputs, hidden_weight, hidden_bias, weight, bias, *regions, backend or "auto"))


def one_pass_with_hidden(inputs: Tensor, hidden_weight: Tensor, weight: Tensor, *, windows: bool = False) -> bool:
    """Whether `hidden_pixel_gradients`, or with windows `hidden_windows`, runs these in one pass over the inputs,
    whatever the outputs or the grid: on the CPU, for what fits its cache, with windows where channels lie together."""
    if inputs.device.type != "cpu" or inputs.dtype not in _DTYPES or _unavailable("cpu") is not None:
        return False
    problem = _canonical(inputs, weight, None, None, None, None, frozenset(OUTPUTS), hidden_weight, None)
    if _module("cpu").unsupported(problem) is not None:
        return False
    return not windows or (inputs.ndim == 4 and _module("cpu").unsupported_windows(problem, (1, 1)) is None)


def preferred_backends(device: str, *, kernel: bool, float32: bool, channels: int) -> tuple[str, ...]:
    """Backends to try, the one expected to be fastest first.

    Args:
        device: the inputs' device type.
        kernel: whether the last layer's kernel is larger than 1.
        float32: whether the features are float32.
        channels: of the features.
    """
    if device == "cpu":
        return "cpu", "reference"
    if device != "cuda":
        return ("reference",)
    # By machine code, not measured yet: Triton re-reads every tap of a kernel, and spills registers in float32 beyond
    # 128 channels (bench/NOTES.md).
    if kernel or (float32 and channels > 128):
        return "cuda", "triton", "reference"
    return "triton", "cuda", "reference"


def _mask(outputs: Sequence[str]) -> int:
    requested = 0
    for name in outputs:
        requested |= 1 << OUTPUTS.index(name)
    return requested


def _named(found: Sequence[Tensor], requested: int) -> PixelGradients:
    values = iter(found)
    return PixelGradients(*[next(values) if requested >> bit & 1 else None for bit in range(len(OUTPUTS))])


def _validate(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    residual: Tensor | None,
    valid: Tensor | None,
    backend: str | None,
) -> None:
    check_backend(backend, BACKENDS)
    for name, tensor in (("features", features), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        _check_dense(name, tensor)
    if features.dtype not in _DTYPES:
        raise TypeError(f"features must be float16, bfloat16, float32 or float64, got {_name(features.dtype)}")
    if not 3 <= features.ndim <= 5:
        raise ValueError(f"features must be (B, d, *spatial) with 1 to 3 spatial axes, got shape {_shape(features)}")
    batch, channels, *spatial = features.shape
    if weight.ndim not in (2, features.ndim):
        raise ValueError(
            f"weight must be (K, d) or (K, d, *kernel) with {len(spatial)} kernel axes for features of shape "
            f"{_shape(features)}, got {_shape(weight)}"
        )
    n_classes, weight_channels, *kernel = weight.shape
    if n_classes < 1 or channels < 1:
        raise ValueError(
            f"weight and features must have at least one class and one channel, got shapes {_shape(weight)} and "
            f"{_shape(features)}"
        )
    if weight_channels != channels:
        raise ValueError(
            f"weight has {weight_channels} channels (shape {_shape(weight)}) but features have {channels} (shape "
            f"{_shape(features)})"
        )
    for size in kernel:
        if size % 2 == 0:
            raise ValueError(f"weight must have an odd kernel, got shape {_shape(weight)}")

    expected: tuple[tuple[str, Tensor | None, tuple[int, ...] | None], ...] = (
        ("weight", weight, None),
        ("bias", bias, (n_classes,)),
        ("logits", logits, (batch, n_classes, *spatial)),
        ("residual", residual, (batch, n_classes, *spatial)),
        ("valid", valid, (batch, *spatial)),
    )
    for name, operand, shape in expected:
        if operand is None:
            continue
        if not isinstance(operand, Tensor):
            raise TypeError(f"{name} must be a tensor or None, got {type(operand).__name__}")
        _check_dense(name, operand)
        if shape is not None and tuple(operand.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {_shape(operand)}")
        if operand.device != features.device:
            raise ValueError(f"{name} is on {operand.device}, but features are on {features.device}; move one of them")
        if name == "valid":
            if operand.dtype != torch.bool:
                raise TypeError(f"valid must be bool, got {_name(operand.dtype)}")
        elif operand.dtype != features.dtype and (operand.dtype != torch.float32 or features.dtype == torch.float64):
            also = "" if features.dtype in (torch.float32, torch.float64) else " or float32"
            raise TypeError(f"{name} must be {_name(features.dtype)}{also} like features, got {_name(operand.dtype)}")


def _validate_hidden(
    inputs: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    valid: Tensor | None,
    backend: str | None,
) -> None:
    for name, operand in (("hidden_weight", hidden_weight), ("weight", weight)):
        if isinstance(operand, Tensor) and (operand.ndim < 2 or any(size != 1 for size in operand.shape[2:])):
            raise ValueError(f"{name} must have a kernel of 1, got shape {_shape(operand)}")
    _validate(inputs, hidden_weight, hidden_bias, None, None, valid, backend)
    # What is known of the features: their shape, and that they have the inputs' type or float32.
    features = inputs.new_empty(()).expand(len(inputs), len(hidden_weight), *inputs.shape[2:])
    _validate(features, weight, bias, None, None, valid, backend)


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor, got a {layout} one")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Registration: schema, fake, one kernel per device. `outputs` is a bit mask over OUTPUTS; results come in their order.

_library = torch.library.Library("alges_fast", "DEF")
_library.define(
    "pixel_gradients(Tensor features, Tensor weight, Tensor? bias, Tensor? logits, Tensor? residual, Tensor? valid, "
    "int outputs, str backend, Tensor? hidden_weight=None, Tensor? hidden_bias=None) -> Tensor[]"
)
_op = torch.ops.alges_fast.pixel_gradients.default


@torch.no_grad()  # the fall-through below leaves autograd on for the operations of a body
def _run(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    residual: Tensor | None,
    valid: Tensor | None,
    requested: int,
    backend: str,
    hidden_weight: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> list[Tensor]:
    names = [name for bit, name in enumerate(OUTPUTS) if requested >> bit & 1]
    if features.numel() == 0 or not names:
        empty = _allocate(features, weight, bias, logits, residual, valid, requested, backend)
        return [tensor.zero_() for tensor in empty]
    problem = _canonical(features, weight, bias, logits, residual, valid, frozenset(names), hidden_weight, hidden_bias)
    module = _module(_choose(problem, backend))
    found = module.run(problem)
    shapes = _shapes(features, weight)
    return [found[name].view(shapes[name]) for name in names]


def _allocate(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    residual: Tensor | None,
    valid: Tensor | None,
    requested: int,
    backend: str,
    hidden_weight: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> list[Tensor]:
    dtype = _accumulator(features)
    return [
        features.new_empty(shape, dtype=torch.int64 if name == "class_pixels" else dtype)
        for bit, (name, shape) in enumerate(_shapes(features, weight).items())
        if requested >> bit & 1
    ]


_library.impl("pixel_gradients", _run, "CPU")
_library.impl("pixel_gradients", _run, "CUDA")
# No gradient is defined, and none is wanted: skip autograd rather than record a node that would fail in backward.
_library.impl("pixel_gradients", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_fake("alges_fast::pixel_gradients", _allocate, lib=_library)

_library.define(
    "hidden_windows(Tensor inputs, Tensor hidden_weight, Tensor? hidden_bias, Tensor weight, Tensor? bias, int rows, "
    "int columns, str backend) -> (Tensor, Tensor)"
)
_windows_op = torch.ops.alges_fast.hidden_windows.default


@torch.no_grad()
def _run_windows(
    inputs: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if inputs.numel() == 0:
        image, outline = _allocate_windows(inputs, hidden_weight, hidden_bias, weight, bias, rows, columns, backend)
        return image.zero_(), outline.zero_()
    problem = _canonical(inputs, weight, bias, None, None, None, frozenset({"image"}), hidden_weight, hidden_bias)

    def reason(name: str) -> str | None:
        if name not in ("cpu", "reference"):
            return "windows behind a hidden layer run on 'cpu' and 'reference'"
        why: str | None = _unavailable(name) or _module(name).unsupported(problem)
        return why or (_module(name).unsupported_windows(problem, (rows, columns)) if name == "cpu" else None)

    preferred = ("cpu", "reference") if inputs.device.type == "cpu" else ("reference",)
    chosen, _ = choose_backend(None if backend == "auto" else backend, preferred, reason)
    image, outline = _module(chosen).run_windows(problem, (rows, columns))
    return image, outline


def _allocate_windows(
    inputs: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    rows: int,
    columns: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    image = inputs.new_empty((len(inputs), rows * columns, *weight.shape[:2]), dtype=_accumulator(inputs))
    return image, image.new_empty(image.shape[:2])


_library.impl("hidden_windows", _run_windows, "CPU")
_library.impl("hidden_windows", _run_windows, "CUDA")
_library.impl("hidden_windows", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_fake("alges_fast::hidden_windows", _allocate_windows, lib=_library)


def _accumulator(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _shapes(features: Tensor, weight: Tensor) -> dict[str, tuple[int, ...]]:
    """The public shape of every output, in the order of OUTPUTS."""
    batch, _, *spatial = features.shape
    channels = weight.shape[1]
    per_weight, per_class = (batch, *weight.shape), (batch, weight.shape[0])
    shapes = {"norm_map": (batch, *spatial), "feature_sum": (batch, channels)}
    shapes |= dict.fromkeys(("image", "semantic_vector"), per_weight)
    shapes |= dict.fromkeys(("semantic", "class_pixels", "class_mass", "class_entropy"), per_class)
    return {name: shapes.get(name, (batch,)) for name in OUTPUTS}


def _canonical(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    residual: Tensor | None,
    valid: Tensor | None,
    outputs: frozenset[str],
    hidden_weight: Tensor | None,
    hidden_bias: Tensor | None,
) -> Problem:
    missing = 5 - features.ndim
    dtype = _accumulator(features)

    def three_axes(tensor: Tensor | None, axis: int) -> Tensor | None:
        if tensor is not None:
            for _ in range(missing):
                tensor = tensor.unsqueeze(axis)
        return tensor

    def small(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).contiguous()

    while weight.ndim < 5:
        weight = weight.unsqueeze(2)
    grid = three_axes(features, 2)
    assert grid is not None
    return Problem(
        features=grid,
        weight=small(weight),
        bias=None if bias is None else small(bias),
        logits=three_axes(logits, 2),
        residual=three_axes(residual, 2),
        valid=three_axes(valid, 1),
        outputs=outputs,
        weight_dtype=weight.dtype,
        hidden=None
        if hidden_weight is None
        else (
            small(hidden_weight.flatten(1)),
            None if hidden_bias is None else small(hidden_bias),
        ),
    )


def _module(backend: str) -> ModuleType:
    return importlib.import_module(_MODULES[backend])


def _choose(problem: Problem, requested: str) -> str:
    def reason(backend: str) -> str | None:
        machine = _unavailable(backend)
        return machine if machine is not None else _module(backend).unsupported(problem)

    features = problem.features
    preferred = preferred_backends(
        features.device.type,
        kernel=problem.kernel != (1, 1, 1),
        float32=features.dtype == torch.float32,
        channels=problem.channels,
    )
    chosen, passed_over = choose_backend(None if requested == "auto" else requested, preferred, reason)
    say_what_was_passed_over("pixel_gradients", chosen, passed_over)
    return chosen


@functools.cache
def _unavailable(backend: str) -> str | None:
    try:
        module = _module(backend)
    except ImportError as error:
        return f"its module does not import: {error}"
    why: str | None = module.unavailable()
    return why
