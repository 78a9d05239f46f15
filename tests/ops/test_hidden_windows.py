"""`hidden_windows` against its definition: `pixel_gradients` of every window, and its changes of predicted class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from oracle import draw
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.ops import WindowSums, hidden_pixel_gradients, hidden_windows, one_pass_with_hidden
from alges_fast.ops.operands import Operands

BACKENDS = ["reference", *(["cpu"] if cpu_kernels() is not None else [])]


@dataclass(frozen=True)
class Call:
    inputs: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor | None
    weight: Tensor
    bias: Tensor | None

    def run(self, regions: tuple[int, int], backend: str | None, dtype: torch.dtype | None = None) -> WindowSums:
        operands = (self.hidden_weight, self.hidden_bias, self.weight, self.bias)
        inputs = channels_last(self.inputs) if dtype is None else channels_last(self.inputs.to(dtype))
        return hidden_windows(inputs, *operands, regions=regions, backend=backend)

    def defined(self, regions: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Window by window, the outline pair by pair, by features that PyTorch makes in this type."""
        features = torch.einsum("dc,bchw->bdhw", self.hidden_weight.to(dtype), self.inputs.to(dtype))
        if self.hidden_bias is not None:
            features = features + self.hidden_bias.to(dtype).view(-1, 1, 1)
        features = features.relu()
        logits = torch.einsum("kd,bdhw->bkhw", self.weight.to(dtype), features)
        logits = logits if self.bias is None else logits + self.bias.to(dtype).view(-1, 1, 1)
        classes = logits.argmax(1)
        (height, width), (rows, columns) = features.shape[2:], regions
        images, outlines = [], []
        for row in range(rows):
            for column in range(columns):
                ys = slice(height * row // rows, height * (row + 1) // rows)
                xs = slice(width * column // columns, width * (column + 1) // columns)
                cut, inside = features[:, :, ys, xs], classes[:, ys, xs]
                residual = logits[:, :, ys, xs].softmax(1)
                residual = residual - torch.nn.functional.one_hot(inside, len(self.weight)).movedim(-1, 1)
                n_pixels = cut.shape[2] * cut.shape[3]
                images.append(torch.einsum("bkhw,bdhw->bkd", residual, cut) / n_pixels)
                beside = (inside[:, :, 1:] != inside[:, :, :-1]).sum((1, 2))
                outlines.append(beside + (inside[:, 1:] != inside[:, :-1]).sum((1, 2)))
        return torch.stack(images, 1), torch.stack(outlines, 1)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def drawn(
    batch: int = 2,
    classes: int = 13,
    channels: int = 32,
    inputs: int = 64,
    size: Sequence[int] = (11, 13),
    *,
    seed: int = 0,
) -> Call:
    last, hidden = draw(batch, classes, channels, size, seed=seed), draw(batch, channels, inputs, size, seed=seed + 1)
    return Call(hidden.features, hidden.weight, hidden.bias, last.weight, last.bias)


def check(found: WindowSums, call: Call, regions: tuple[int, int]) -> None:
    """At most twice the error of plain PyTorch in float32, and 1e-6 of the scale; the outline to the pixel."""
    exact, outline = call.defined(regions, torch.float64)
    plain, _ = call.defined(regions, torch.float32)
    budget = 2 * (plain.double() - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (found.image.double() - exact).abs().max() <= budget
    assert found.image.shape == exact.shape
    assert torch.equal(found.outline.double(), outline.double())
    assert (found.image.dtype, found.outline.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("regions", [(1, 1), (3, 4), (11, 13), (1, 13), (11, 1)])
def test_types_and_grids(backend: str, dtype: torch.dtype, regions: tuple[int, int]) -> None:
    call = drawn()
    call = Call(call.inputs.to(dtype).float(), *list(vars(call).values())[1:])
    check(call.run(regions, backend, dtype), call, regions)


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
    check(call.run(regions, backend), call, regions)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_bias_and_views(backend: str) -> None:
    call = Call(drawn().inputs, drawn().hidden_weight, None, drawn().weight, None)
    check(call.run((2, 3), backend), call, (2, 3))
    larger = channels_last(torch.full((4, 64, 13, 15), math.nan))
    view = larger[1:3, :, 1:-1, 1:-1].copy_(call.inputs)
    found = hidden_windows(view, call.hidden_weight, None, call.weight, regions=(2, 3), backend=backend)
    check(found, call, (2, 3))


def test_one_window_is_the_image() -> None:
    call = drawn()
    operands = (call.hidden_weight, call.hidden_bias, call.weight, call.bias)
    whole = hidden_pixel_gradients(call.inputs, *operands, outputs=("image",)).image
    torch.testing.assert_close(call.run((1, 1), None).image[:, 0], whole, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native kernels")
def test_bits_depend_neither_on_the_batch_nor_on_threads() -> None:
    call = drawn(9, size=(24, 25))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [Call(call.inputs[i : i + 1], *list(vars(call).values())[1:]).run((3, 5), "cpu") for i in range(9)]
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            together = call.run((3, 5), "cpu")
            for found, expected in zip(together, zip(*alone, strict=True), strict=True):
                assert torch.equal(found, torch.cat(expected))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_pixel_shows_in_its_window_alone(backend: str, bad: float) -> None:
    call = drawn(2)
    spoilt = call.inputs.clone()
    spoilt[1, 3, 4, 5] = bad
    found = Call(spoilt, *list(vars(call).values())[1:]).run((2, 2), backend).image
    expected = call.run((2, 2), backend).image
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1, 1:], expected[1, 1:])
    assert not found[1, 0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_class(backend: str) -> None:
    call = drawn()
    call = Call(call.inputs, call.hidden_weight, call.hidden_bias, torch.zeros_like(call.weight), torch.zeros(13))
    assert not call.run((2, 2), backend).outline.any()


def test_an_empty_batch_and_what_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    call = drawn()
    operands = (call.hidden_weight, call.hidden_bias, call.weight, call.bias)
    found = hidden_windows(call.inputs[:0], *operands, regions=(2, 3))
    assert found.image.shape == (0, 6, 13, 32)
    with pytest.raises(ValueError, match="windows do not fit 11 x 13"):
        call.run((12, 1), None)
    with pytest.raises(ValueError, match="two spatial axes"):
        hidden_windows(call.inputs.flatten(2), *operands)
    with pytest.raises(ValueError, match="hidden layers run on 'cpu' and 'reference'"):
        call.run((1, 1), "triton")
    planar = call.inputs.contiguous()
    check(hidden_windows(planar, *operands, regions=(2, 2)), call, (2, 2))
    if "cpu" in BACKENDS:
        assert one_pass_with_hidden(channels_last(planar), call.hidden_weight, call.weight, windows=True)
        assert not one_pass_with_hidden(planar, call.hidden_weight, call.weight, windows=True)
        with pytest.raises(ValueError, match="channels do not lie together"):
            hidden_windows(planar, *operands, regions=(2, 2), backend="cpu")


def test_windows_pass_opcheck() -> None:
    call = drawn(1, 3, 5, 16, (6, 7))
    layer = (channels_last(call.inputs), call.weight, call.bias)
    operands = Operands(*layer, outputs=1, hidden_weight=call.hidden_weight, hidden_bias=call.hidden_bias)
    torch.library.opcheck(torch.ops.alges_fast.pixel_gradients.default, tuple(operands._replace(regions=[2, 3])))
