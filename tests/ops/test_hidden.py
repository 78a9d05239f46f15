"""`hidden_pixel_gradients` against the definition of `pixel_gradients` on features that are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hidden_calls import BACKENDS, AfterHidden, drawn
from oracle import OUTPUTS, assert_within_budget, channels_last
from torch import Tensor

from alges_fast import PixelGradients
from alges_fast.ops import hidden, one_pass_with_hidden, reference
from alges_fast.ops.operands import Operands, mask_of


def window_of_channels_last(tensor: Tensor) -> Tensor:
    """The same values, amid NaN."""
    larger = channels_last(tensor.new_full([size + 2 * (axis > 1) for axis, size in enumerate(tensor.shape)], math.nan))
    view = larger[(..., *[slice(1, -1)] * (tensor.ndim - 2))]
    return view.copy_(tensor)


def every_other_channel(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, 1)[:, ::2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [torch.clone, channels_last, window_of_channels_last, every_other_channel])
@pytest.mark.parametrize(("dtype", "valid"), [(torch.float16, True), (torch.bfloat16, False), (torch.float32, True)])
def test_types_and_layouts(backend: str, layout: Callable[[Tensor], Tensor], dtype: torch.dtype, valid: bool) -> None:
    inputs = drawn(valid=valid)
    inputs = replace(inputs, features=layout(inputs.features.to(dtype)))
    assert_within_budget(inputs.run(backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("classes", "channels", "inputs", "spatial"),
    [
        (1, 1, 1, (1,)),
        (2, 3, 5, (1, 1)),
        (21, 17, 65, (5, 9)),
        (150, 64, 130, (7, 6)),
        (3, 33, 768, (3, 4, 5)),
        (256, 255, 31, (9,)),
    ],
)
def test_sizes(backend: str, classes: int, channels: int, inputs: int, spatial: tuple[int, ...]) -> None:
    for layout in (torch.clone, channels_last):
        given = drawn(1, classes, channels, inputs, spatial)
        given = replace(given, features=layout(given.features))
        assert_within_budget(given.run(backend), given)
    given = replace(given, bias=None, hidden_bias=None)
    assert_within_budget(given.run(backend), given)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native kernels")
@pytest.mark.parametrize("layout", [torch.clone, channels_last])
@pytest.mark.usefixtures("threads_of_its_own")
def test_bits_depend_neither_on_the_batch_nor_on_threads(layout: Callable[[Tensor], Tensor]) -> None:
    """From 8 images a thread on a thread does whole images, below it parts of them."""
    inputs = drawn(33, spatial=(24, 25), valid=True)
    inputs = replace(inputs, features=layout(inputs.features.half()))
    torch.set_num_threads(1)
    alone = [inputs.image(index).run("cpu") for index in range(33)]
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        together = inputs.run("cpu")
        for name in OUTPUTS:
            expected = torch.cat([getattr(one, name) for one in alone])
            assert torch.equal(getattr(together, name), expected), (name, threads)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native kernels")
@pytest.mark.usefixtures("threads_of_its_own")
def test_callers_that_share_the_helpers_get_their_own_numbers() -> None:
    """One at a time has helpers; the others do all themselves, and nobody waits for ever."""
    given = [drawn(24, spatial=(24, 25), seed=seed) for seed in range(4)]
    torch.set_num_threads(1)
    expected = [inputs.run("cpu", ("image",)).image for inputs in given]

    def again(at: int) -> bool:
        torch.set_num_threads(3)  # of this Python thread
        return torch.equal(given[at % 4].run("cpu", ("image",)).image, expected[at % 4])

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(again, range(200), timeout=60))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_bad_pixel_shows_in_every_output_of_its_image_alone(backend: str, bad: float, sign: int) -> None:
    """Where all hidden channels would be 0 for an infinity too."""
    inputs = drawn(3)
    inputs = replace(inputs, hidden_weight=sign * inputs.hidden_weight.abs())
    good = inputs.run(backend)
    features = inputs.features.half().clone()
    features[1, 3, 4, 5] = bad
    found = replace(inputs, features=features).run(backend)
    compared = replace(inputs, features=inputs.features.half()).run(backend)
    for name in OUTPUTS:
        assert torch.equal(getattr(found, name)[::2], getattr(compared, name)[::2]), name
        if name != "class_pixels":
            assert not getattr(found, name)[1].isfinite().all(), name
    assert all(getattr(good, name).isfinite().all() for name in OUTPUTS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_count_may_hold_anything(backend: str) -> None:
    inputs = drawn(valid=True)
    features = torch.where(inputs.valid[:, None], inputs.features, math.nan)
    found, expected = replace(inputs, features=features).run(backend), inputs.run(backend)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("spatial", [(11, 13), (5,), (3, 4, 2)])
def test_by_products_some_images_at_a_time(
    dtype: torch.dtype, spatial: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the GPU backends are given, here with the reference behind it."""
    inputs = drawn(5, 7, 12, 20, spatial, valid=True)
    inputs = replace(inputs, features=inputs.features.to(dtype))
    monkeypatch.setattr(hidden, "MAP_BYTES", 2 * math.prod(spatial) * (12 + 20) * 4)
    sizes: list[int] = []

    def run(operands: Operands) -> list[Tensor]:
        sizes.append(len(operands.features))
        return reference.run(operands)

    results = hidden.by_products(operands_of(inputs), run)
    assert sizes == [2, 2, 1]
    assert_within_budget(PixelGradients(*results), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = hidden.by_products(
            operands_of(replace(inputs, features=inputs.features[2:3], valid=inputs.valid[2:3])), run
        )
    for name, alone, together in zip(OUTPUTS, again, results, strict=True):
        assert torch.equal(alone[0], together[2]), name


@pytest.mark.parametrize("spoiler", [math.nan, math.inf, -math.inf])
def test_what_an_input_spoils_shows_in_the_maps(spoiler: float) -> None:
    inputs = torch.zeros(2, 3, 4)
    inputs[0, 1, 2] = spoiler
    maps = hidden.hidden_maps(inputs, torch.ones(5, 3), torch.ones(5))
    assert not maps[0, :, 2].isfinite().any()
    assert torch.equal(maps[1], torch.ones(5, 4))


def operands_of(inputs: AfterHidden) -> Operands:
    return Operands(
        inputs.features,
        inputs.weight,
        inputs.bias,
        valid=inputs.valid,
        outputs=mask_of(OUTPUTS),
        hidden_weight=inputs.hidden_weight,
        hidden_bias=inputs.hidden_bias,
    )


def test_what_cannot_be_is_said() -> None:
    inputs = drawn()
    with pytest.raises(ValueError, match=r"hidden_weight must have a kernel of 1, got shape \(32, 64, 3, 3\)"):
        replace(inputs, hidden_weight=torch.zeros(32, 64, 3, 3)).run(None)
    with pytest.raises(ValueError, match="weight has 16 channels"):
        replace(inputs, weight=torch.zeros(13, 16)).run(None)
    with pytest.raises(ValueError, match="weight has 63 channels"):
        replace(inputs, hidden_weight=torch.zeros(32, 63)).run(None)
    large = drawn(1, 3, 64, 2000, (2, 2))
    assert not one_pass_with_hidden(large.features, large.hidden_weight, large.weight)
    assert_within_budget(large.run(None), large)
    if "cpu" in BACKENDS:
        assert one_pass_with_hidden(inputs.features, inputs.hidden_weight, inputs.weight)
        with pytest.raises(ValueError, match=r"backend='cpu' cannot run this call: .*2000 inputs, 64 hidden channels"):
            large.run("cpu")
