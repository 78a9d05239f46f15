"""`hidden_windows` against its definition: `pixel_gradients` of every window, and its changes of predicted class."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hidden_calls import BACKENDS, AfterHidden, drawn
from oracle import channels_last

from alges_fast.ops import WindowSums, hidden_windows, one_pass_with_hidden
from alges_fast.ops.operands import Operands


def check(found: WindowSums, call: AfterHidden, regions: tuple[int, int]) -> None:
    """At most twice the error of plain PyTorch in float32, and 1e-6 of the scale; the outline to the pixel."""
    exact, outline = call.defined_windows(regions, torch.float64)
    plain, _ = call.defined_windows(regions, torch.float32)
    budget = 2 * (plain.double() - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (found.image.double() - exact).abs().max() <= budget
    assert found.image.shape == exact.shape
    assert torch.equal(found.outline.double(), outline.double())
    assert (found.image.dtype, found.outline.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("regions", [(1, 1), (3, 4), (11, 13), (1, 13), (11, 1)])
def test_types_and_grids(backend: str, dtype: torch.dtype, regions: tuple[int, int]) -> None:
    call = replace(drawn(), features=drawn().features.to(dtype))
    check(call.windows(regions, backend), call, regions)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("classes", "channels", "inputs", "size", "regions"),
    [
        (1, 1, 1, (1, 1), (1, 1)),
        (2, 3, 5, (4, 1), (2, 1)),
        (13, 32, 64, (33, 31), (4, 4)),  # windows end amid blocks, and one block has many
        (13, 32, 64, (5, 300), (2, 1)),  # a row is longer than a block
        (21, 17, 65, (14, 9), (4, 3)),
        (150, 64, 130, (7, 6), (2, 2)),
        (3, 33, 768, (12, 5), (3, 2)),
        (40, 255, 31, (9, 16), (2, 5)),
    ],
)
def test_sizes(
    backend: str, classes: int, channels: int, inputs: int, size: tuple[int, int], regions: tuple[int, int]
) -> None:
    call = drawn(2, classes, channels, inputs, size)
    check(call.windows(regions, backend), call, regions)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_bias_and_views(backend: str) -> None:
    call = replace(drawn(), hidden_bias=None, bias=None)
    check(call.windows((2, 3), backend), call, (2, 3))
    larger = channels_last(torch.full((4, 64, 13, 15), math.nan))
    view = larger[1:3, :, 1:-1, 1:-1].copy_(call.features)
    check(hidden_windows(view, *call.layers, regions=(2, 3), backend=backend), call, (2, 3))


def test_one_window_is_the_image() -> None:
    call = drawn()
    whole = call.run(None, ("image",)).image
    torch.testing.assert_close(call.windows((1, 1), None).image[:, 0], whole, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native kernels")
@pytest.mark.usefixtures("threads_of_its_own")
def test_bits_depend_neither_on_the_batch_nor_on_threads() -> None:
    call = drawn(9, spatial=(24, 25))
    torch.set_num_threads(1)
    alone = [call.image(index).windows((3, 5), "cpu") for index in range(9)]
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        together = call.windows((3, 5), "cpu")
        for found, expected in zip(together, zip(*alone, strict=True), strict=True):
            assert torch.equal(found, torch.cat(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_pixel_shows_in_its_window_alone(backend: str, bad: float) -> None:
    call = drawn(2)
    spoilt = call.features.clone()
    spoilt[1, 3, 4, 5] = bad
    found = replace(call, features=spoilt).windows((2, 2), backend).image
    expected = call.windows((2, 2), backend).image
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1, 1:], expected[1, 1:])
    assert not found[1, 0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_class(backend: str) -> None:
    call = replace(drawn(), weight=torch.zeros(13, 32), bias=torch.zeros(13))
    assert not call.windows((2, 2), backend).outline.any()


def test_an_empty_batch_and_what_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    call = drawn()
    found = hidden_windows(call.features[:0], *call.layers, regions=(2, 3))
    assert found.image.shape == (0, 6, 13, 32)
    with pytest.raises(ValueError, match="windows do not fit 11 x 13"):
        call.windows((12, 1), None)
    with pytest.raises(ValueError, match="two spatial axes"):
        hidden_windows(call.features.flatten(2), *call.layers)
    with pytest.raises(ValueError, match="behind a hidden layer run on 'cpu' and 'reference'"):
        call.windows((1, 1), "triton")
    planar = call.features.contiguous()
    check(hidden_windows(planar, *call.layers, regions=(2, 2)), call, (2, 2))
    if "cpu" in BACKENDS:
        assert one_pass_with_hidden(channels_last(planar), call.hidden_weight, call.weight, windows=True)
        assert not one_pass_with_hidden(planar, call.hidden_weight, call.weight, windows=True)
        with pytest.raises(ValueError, match="channels do not lie together"):
            hidden_windows(planar, *call.layers, regions=(2, 2), backend="cpu")


def test_windows_pass_opcheck() -> None:
    call = drawn(1, 3, 5, 16, (6, 7))
    layer = (channels_last(call.features), call.weight, call.bias)
    operands = Operands(*layer, outputs=1, hidden_weight=call.hidden_weight, hidden_bias=call.hidden_bias)
    torch.library.opcheck(torch.ops.alges_fast.pixel_gradients.default, tuple(operands._replace(regions=[2, 3])))
