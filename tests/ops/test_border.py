"""The border between Python and the native core: views of any shape and overlap, and calls that must be refused.

Under tests/test_sanitizers.py the same tests show that no byte outside the operands is read or written.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from oracle import OUTPUTS, Inputs, draw
from torch import Tensor

from alges_fast import pixel_gradients
from alges_fast._native import cpu_kernels

pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="no native kernels")
SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def views(draws: st.DrawFn, shape: tuple[int, ...], values: Tensor) -> Tensor:
    """A view of `shape` with strides of any order, overlaps too, into a buffer that ends with its last element."""
    strides = []
    for size in draws(st.permutations(range(len(shape)))):
        strides.append((size, draws(st.sampled_from([0, 1, 2, 3, 5, 16, 17]))))
    by_axis = [stride for _, stride in sorted(strides)]
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, by_axis, strict=True))
    first = draws(st.integers(0, 3))
    return values[: first + extent].clone()[first:].as_strided(shape, by_axis)


@st.composite
def strided_calls(draws: st.DrawFn) -> tuple[Inputs, tuple[str, ...]]:
    axes = draws(st.integers(1, 3))
    spatial = draws(st.lists(st.integers(1, 9), min_size=axes, max_size=axes))
    kernel = draws(st.one_of(st.just([]), st.lists(st.sampled_from([1, 3, 5]), min_size=axes, max_size=axes)))
    batch, n_classes, channels = draws(st.integers(1, 3)), draws(st.integers(1, 20)), draws(st.integers(1, 40))
    values = torch.randn(8192, generator=torch.Generator().manual_seed(draws(st.integers(0, 9))))
    dtype = draws(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    inputs = draw(batch, n_classes, channels, spatial, kernel)
    inputs = replace(inputs, features=draws(views((batch, channels, *spatial), values.to(dtype))))
    for name in draws(st.lists(st.sampled_from(["logits", "residual"]), unique=True)):
        inputs = replace(inputs, **{name: draws(views((batch, n_classes, *spatial), values))})
    if draws(st.booleans()):
        inputs = replace(inputs, valid=draws(views((batch, *spatial), values > 0)))
    return inputs, tuple(draws(st.lists(st.sampled_from(OUTPUTS), min_size=1, unique=True)))


@SETTINGS
@given(call=strided_calls())
def test_overlapping_views_are_read_as_what_they_show(call: tuple[Inputs, tuple[str, ...]]) -> None:
    inputs, outputs = call
    dense = {name: None if tensor is None else tensor.contiguous() for name, tensor in inputs.keywords().items()}
    found = pixel_gradients(**inputs.keywords(), outputs=outputs, backend="cpu")
    expected = pixel_gradients(**dense, outputs=outputs, backend="cpu")
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            scale = max(1.0, other.abs().max().item())
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale)  # sums may be cut in other places


@SETTINGS
@given(
    operand=st.sampled_from(["features", "weight", "bias", "logits", "residual", "valid"]),
    shape=st.lists(st.integers(0, 7), max_size=6),
)
def test_operands_of_another_shape_are_refused_by_name(operand: str, shape: list[int]) -> None:
    inputs = draw(2, 3, 4, (5, 6), given=("logits", "residual", "valid"))
    given_shape = tuple(getattr(inputs, operand).shape)
    other = torch.zeros(shape, dtype=getattr(inputs, operand).dtype)
    if tuple(shape) == given_shape or (operand == "weight" and tuple(shape) in ((3, 4, 1, 1), (3, 4, 3, 3))):
        return
    with pytest.raises(ValueError, match=r"must|has"):
        pixel_gradients(**replace(inputs, **{operand: other}).keywords(), backend="cpu")


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64]


@SETTINGS
@given(
    sizes=st.tuples(*[st.integers(0, 4)] * 3),
    spatial=st.lists(st.integers(0, 4), max_size=4),
    dtypes=st.one_of(
        st.sampled_from(DTYPES).map(lambda dtype: [dtype] * 5),
        st.lists(st.sampled_from(DTYPES), min_size=5, max_size=5),
    ),
    there=st.lists(st.booleans(), min_size=4, max_size=4),
    backend=st.sampled_from([None, "cpu", "reference"]),
    outputs=st.lists(st.sampled_from(OUTPUTS), unique=True),
)
def test_any_types_and_empties_are_computed_or_refused(
    sizes: tuple[int, int, int],
    spatial: list[int],
    dtypes: list[torch.dtype],
    there: list[bool],
    backend: str | None,
    outputs: list[str],
) -> None:
    batch, n_classes, channels = sizes
    shapes = [(batch, channels, *spatial), (n_classes, channels), (n_classes,), *[(batch, n_classes, *spatial)] * 2]
    features, weight, *more = (torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    more.append(torch.ones((batch, *spatial), dtype=torch.bool))
    names = ("bias", "logits", "residual", "valid")
    given = {name: tensor for name, tensor, is_there in zip(names, more, there, strict=True) if is_there}
    try:
        found = pixel_gradients(features, weight, **given, outputs=outputs, backend=backend)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return
    assert all(len(value) == batch for value in found if value is not None)


def scratch(**given: Any) -> int:
    """Bytes that a native call of these arguments would take; the others are those of a call that is possible."""
    kernels: Any = cpu_kernels()
    operands = {"weight": 64, "bias": 0, "logits": None, "residual": None, "valid": None, "threads": 1}
    return int(kernels.PixelGradientsCall(**operands | {"outputs": [64] * len(OUTPUTS)} | given).scratch())


SIZES = st.one_of(st.integers(-2, 40), st.integers(0, 70).map(lambda power: 2**power), st.integers(-(2**70), 2**70))


@SETTINGS
@given(
    sizes=st.lists(SIZES, min_size=9, max_size=9),
    kind=st.integers(-1, 5),
    address=st.sampled_from([0, 64]),
    threads=st.integers(-1, 3),
)
def test_a_native_call_of_impossible_sizes_is_refused(sizes: list[int], kind: int, address: int, threads: int) -> None:
    possible = all(size >= 1 for size in sizes) and math.prod(sizes) <= 2**50 and all(size % 2 for size in sizes[6:])
    given = {"shape": sizes, "features": (address, kind, (0,) * 5), "threads": threads}
    if possible and 0 <= kind <= 3 and address and threads >= 1:
        assert 0 <= scratch(**given) <= threads * 2**20
    else:
        with pytest.raises((ValueError, TypeError)):
            scratch(**given)


@SETTINGS
@given(
    rows=SIZES,
    columns=SIZES,
    size=st.tuples(st.integers(1, 2), SIZES, SIZES),
    stride=st.sampled_from([1, 8]),
    outputs=st.one_of(
        st.just([64, *[0] * (len(OUTPUTS) - 1)]),
        st.lists(st.sampled_from([0, 64]), min_size=len(OUTPUTS), max_size=len(OUTPUTS)),
    ),
    outline=st.sampled_from([0, 64]),
)
def test_impossible_windows_are_refused(
    rows: int, columns: int, size: tuple[int, int, int], stride: int, outputs: list[int], outline: int
) -> None:
    windows = bool(rows or columns or outline)
    fits = 1 <= rows <= size[1] and 1 <= columns <= size[2] and outputs[0] and outline and not any(outputs[1:])
    possible = all(length >= 1 for length in size) and math.prod((*size, 4, 5)) <= 2**50 and (fits or not windows)
    given = {"shape": [1, 4, 5, *size, 1, 1, 1], "features": (64, 0, (0, stride, 0, 0, 0)), "outputs": outputs}
    given |= {"inputs": 8, "hidden_weight": 64, "rows": rows, "columns": columns, "outline": outline}
    if not possible:
        with pytest.raises((ValueError, TypeError)):
            scratch(**given)
    elif windows and (size[0] > 1 or stride > 1):
        assert scratch(**given) == 0  # it has no pass for them
    else:
        assert 0 <= scratch(**given) <= 2**20


def test_an_odd_number_of_sums_in_several_chunks() -> None:
    """Partial sums lie one after the other, doubles first: 15 floats once left the next doubles off their alignment."""
    inputs = draw(2, 3, 5, (64, 64))
    found = pixel_gradients(**inputs.keywords(), outputs=("image",), backend="cpu").image
    expected = pixel_gradients(**inputs.keywords(), outputs=("image",), backend="reference").image
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
