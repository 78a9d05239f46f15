"""The conformance suite of `pixel_gradients`: every backend that runs on this machine against the same definition.

A backend that cannot run here is skipped with its own reason. Without a GPU, Triton runs under its interpreter, slowly:
maps of more than `most_pixels` are cut down (`Backend.fit`), and layers of more than `most_weights` run with --slow.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from _pytest.mark import ParameterSet
from hypothesis import HealthCheck, given, settings
from oracle import (
    OUTPUTS,
    Inputs,
    assert_within_budget,
    copy_with_strides,
    definition,
    draw,
    last_layer,
    pixels,
    stored_tensor,
)
from torch import Tensor

from alges_fast import PixelGradients, pixel_gradients
from alges_fast.backends import _say_once
from alges_fast.ops import BACKENDS, dispatch, reference
from alges_fast.ops.dispatch import preferred_backends, unavailable

HAS_GPU = torch.cuda.is_available()
GOOD = draw(2, 3, 4, (5, 6))
HALF = (torch.float16, torch.bfloat16)

# NumPy, which interprets Triton's kernels, speaks of the NaN that some tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@dataclass(frozen=True)
class Backend:
    name: str
    device: str
    most_pixels: int | None = None
    """Of an image."""
    most_weights: int | None = None

    def __call__(self, inputs: Inputs, outputs: Sequence[str] = OUTPUTS) -> PixelGradients:
        on_device = inputs if self.device == "cpu" else inputs.to(self.device)  # strides and all
        return pixel_gradients(**on_device.keywords(), outputs=outputs, backend=self.name)

    def __str__(self) -> str:
        return f"{self.name}-{self.device}"

    def fit(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The map, or one of as many axes with its larger axes halved until it is small enough."""
        spatial = list(spatial)
        while self.most_pixels is not None and math.prod(spatial) > self.most_pixels:
            largest = spatial.index(max(spatial))
            spatial[largest] = spatial[largest] // 2 | 1
        return tuple(spatial)


ALL_BACKENDS = (
    Backend("reference", "cpu"),
    Backend("reference", "cuda"),
    Backend("cpu", "cpu"),
    Backend("triton", "cuda") if HAS_GPU else Backend("triton", "cpu", most_pixels=600, most_weights=2**14),
    Backend("cuda", "cuda"),
)


def cannot_run(backend: Backend) -> str | None:
    if backend.device == "cuda" and not HAS_GPU:
        return "no CUDA device"
    return unavailable(backend.name)


def running(device: str | None = None) -> list[ParameterSet]:
    """The backends that can run here, marked `gpu` where that is on one."""
    able = [each for each in ALL_BACKENDS if cannot_run(each) is None and device in (None, each.device)]
    return [pytest.param(each, id=str(each), marks=[pytest.mark.gpu] * (each.device == "cuda")) for each in able]


@pytest.fixture(params=running())
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.mark.parametrize("each", ALL_BACKENDS, ids=str)
def test_a_backend_is_in_this_suite_or_says_why_not(each: Backend) -> None:
    reason = cannot_run(each)
    if reason is not None:
        pytest.skip(f"{each}: {reason}")
    assert each(GOOD).image.shape == (2, 3, 4)


def same(found: PixelGradients, expected: PixelGradients) -> None:
    """Bitwise equal, NaN included."""
    for name in OUTPUTS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(
                one, other, rtol=0, atol=0, equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
            )


def image_of(found: PixelGradients, index: int | Sequence[int]) -> PixelGradients:
    return PixelGradients(*[None if value is None else value[index] for value in found])


# The oracle itself


@pytest.mark.parametrize("given_operands", [(), ("valid",), ("logits", "residual", "valid")])
@pytest.mark.parametrize(("spatial", "kernel"), [((7,), (3,)), ((5, 4), ()), ((5, 4), (3, 1)), ((3, 4, 2), (1, 3, 3))])
def test_the_plain_formula_equals_the_stored_tensor(
    spatial: tuple[int, ...], kernel: tuple[int, ...], given_operands: tuple[str, ...]
) -> None:
    inputs = draw(2, 4, 3, spatial, kernel, dtype=torch.float64, given=given_operands)
    for one, other in zip(definition(inputs, torch.float64), stored_tensor(inputs), strict=True):
        if other is not None:
            torch.testing.assert_close(one, other)


# Against autograd and the definition


def autograd_image(inputs: Inputs, counts: Callable[[Tensor], Tensor]) -> Tensor:
    """dL/dW of each image, L the cross-entropy against the model's own prediction summed over `counts(prediction)`."""
    exact = inputs.to(torch.float64)
    gradients = []
    for index in range(exact.features.shape[0]):
        alone = exact.image(index)
        weight = alone.weight.clone().requires_grad_()
        logits = last_layer(alone, weight)
        prediction = logits.detach().argmax(1)
        losses = F.cross_entropy(logits, prediction, reduction="none")
        valid = torch.ones_like(prediction, dtype=torch.bool) if alone.valid is None else alone.valid
        (gradient,) = torch.autograd.grad((losses * (valid & counts(prediction))).sum(), weight)
        gradients.append(gradient)
    return torch.stack(gradients)


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize(
    ("spatial", "kernel"), [((23,), (5,)), ((9, 11), ()), ((9, 11), (1, 1)), ((9, 11), (3, 3)), ((4, 5, 6), (1, 5, 3))]
)
def test_autograd_gives_the_same(
    backend: Backend, spatial: tuple[int, ...], kernel: tuple[int, ...], with_valid: bool
) -> None:
    inputs = draw(2, 5, 4, spatial, kernel, given=("valid",) if with_valid else ())
    found = backend(inputs, ("image", "semantic_vector"))
    counts = inputs.valid.flatten(1).sum(1) if with_valid else torch.full((2,), math.prod(spatial))
    mean = autograd_image(inputs, torch.ones_like) / counts.view(-1, *[1] * inputs.weight.ndim)
    torch.testing.assert_close(found.image.cpu().double(), mean, rtol=1e-5, atol=1e-6 * mean.abs().max().item())
    # Row k of Eq. 6 as printed is row k of the gradient of the loss over the pixels predicted as k.
    for k in range(5):
        rows = autograd_image(inputs, lambda prediction, k=k: prediction == k)[:, k]
        torch.testing.assert_close(
            found.semantic_vector[:, k].cpu().double(), rows, rtol=1e-5, atol=2e-6 * max(rows.abs().max().item(), 1)
        )


@pytest.mark.parametrize("channels", [1, 3, 16, 17, 64, 255, 304, 2048])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 13, 19, 21, 150, 256])
def test_classes_and_channels(backend: Backend, n_classes: int, channels: int, request: pytest.FixtureRequest) -> None:
    limit = None if request.config.getoption("--slow") else backend.most_weights
    if limit is not None and n_classes * channels > limit:
        pytest.skip(f"more than {limit} weights are slow in the interpreter: run with --slow")
    inputs = draw(1, n_classes, channels, (5, 7), seed=n_classes + channels)
    assert_within_budget(backend(inputs), inputs)


@pytest.mark.parametrize(
    "spatial",
    [(1,), (1, 1), (1, 1, 1), (2,), (31,), (1009,), (17, 19), (129, 130), (1, 300), (300, 1), (3, 5, 7), (13, 1, 11)],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_maps_and_kernels(backend: Backend, spatial: tuple[int, ...], size: int) -> None:
    inputs = draw(1, 7, 9, backend.fit(spatial), [size] * len(spatial))
    assert_within_budget(backend(inputs), inputs)


@pytest.mark.parametrize("kernel", [(1, 3), (5, 1), (3, 5), (7, 3)], ids=str)
def test_kernels_that_are_not_square(backend: Backend, kernel: tuple[int, ...]) -> None:
    inputs = draw(2, 4, 6, (11, 10), kernel, given=("valid",))
    assert_within_budget(backend(inputs), inputs)


@pytest.mark.parametrize(("n_classes", "channels"), [(13, 304), (150, 20), (256, 9)], ids=lambda value: str(value))
def test_wide_layers_with_a_kernel(backend: Backend, n_classes: int, channels: int) -> None:
    inputs = draw(1, n_classes, channels, (6, 5), (3, 3))
    assert_within_budget(backend(inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["1x1", "3x3"])
@pytest.mark.parametrize(
    "given_operands",
    [(), ("valid",), ("logits",), ("residual",), ("logits", "residual"), ("logits", "residual", "valid")],
    ids=lambda names: "+".join(names) or "plain",
)
def test_types_and_given_operands(
    backend: Backend, dtype: torch.dtype, kernel: tuple[int, ...], given_operands: tuple[str, ...]
) -> None:
    inputs = draw(2, 13, 7 if kernel else 16, (11, 13), kernel, dtype=dtype, given=given_operands)
    assert_within_budget(backend(inputs), inputs)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("spatial", [(11, 13), (12, 16)], ids=["odd rows", "rows of 16 bytes"])
def test_half_precision_features_with_float32_operands(
    backend: Backend, dtype: torch.dtype, spatial: tuple[int, int]
) -> None:
    """What autocast gives: the features of a model in half precision beside the weights of one in float32."""
    for inputs in (
        draw(2, 13, 48, spatial, given=("valid",)),
        draw(2, 5, 48, spatial, given=("logits", "residual")),
    ):
        mixed = replace(inputs, features=inputs.features.to(dtype))
        assert_within_budget(backend(mixed), mixed)
        last = replace(mixed, features=channels_last(mixed.features))
        assert_within_budget(backend(last), last)


def test_float64_is_float64_throughout_or_refused(backend: Backend) -> None:
    inputs = draw(2, 13, 16, (11, 13), (3, 3), dtype=torch.float64, given=("valid",))
    if backend.name != "reference":
        with pytest.raises(ValueError, match=f"backend='{backend.name}' cannot run this call: .*float64"):
            backend(inputs)
        return
    for found, exact in zip(backend(inputs), definition(inputs, torch.float64), strict=True):
        torch.testing.assert_close(found.cpu(), exact, rtol=1e-11, atol=1e-11)


def test_each_output_alone_is_the_same(backend: Backend) -> None:
    inputs = draw(2, 5, 7, (9, 8), (3, 3), given=("valid",))
    everything = backend(inputs)
    for name in OUTPUTS:
        alone = backend(inputs, (name,))
        assert [field for field in OUTPUTS if getattr(alone, field) is not None] == [name]
        torch.testing.assert_close(getattr(alone, name), getattr(everything, name), rtol=1e-5, atol=1e-6)
        assert_within_budget(alone, inputs)


def test_what_the_sums_by_class_add_up_to(backend: Backend) -> None:
    """p adds up to 1 and p H to H, whatever residual is given: it enters gradients and norms alone."""
    inputs = draw(2, 7, 16, backend.fit((24, 32)), given=("valid",))
    found = backend(inputs)
    counts = inputs.valid.flatten(1).sum(1)
    torch.testing.assert_close(found.class_mass.sum(1).cpu(), counts.float())
    torch.testing.assert_close(found.class_entropy.sum(1), found.entropy)
    residual = draw(2, 7, 16, inputs.features.shape[2:], given=("residual",), seed=1).residual
    of_p = ("class_pixels", "entropy", "margin", "confidence", "class_mass", "class_entropy", "feature_sum")
    with_residual, without = backend(replace(inputs, residual=residual), of_p), backend(inputs, of_p)
    for name in of_p:
        torch.testing.assert_close(getattr(with_residual, name), getattr(without, name), rtol=1e-6, atol=1e-6, msg=name)


# Memory layouts


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def every_other(tensor: Tensor) -> Tensor:
    """The same values, as every second element along each axis of a larger tensor full of NaN."""
    larger = tensor.new_full([2 * size + 1 for size in tensor.shape], math.nan)
    view = larger[tuple(slice(1, 2 * size, 2) for size in tensor.shape)]
    return view.copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


LAYOUTS = (torch.clone, channels_last, every_other, transposed)


def test_layouts_survive_the_way_to_a_device() -> None:
    features = draw(2, 3, 4, (5, 6)).features
    expanded = features[:1].expand(2, -1, -1, -1)
    for tensor in (*(layout(features) for layout in LAYOUTS), expanded, features[:, :, 1:, ::2]):
        copied = copy_with_strides(tensor, "meta")
        assert copied.stride() == tensor.stride()
        assert copied.shape == tensor.shape
        assert copied.storage_offset() % 16 == tensor.storage_offset() % 16


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["1x1", "3x3"])
@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(
    backend: Backend, layout: Callable[[Tensor], Tensor], kernel: tuple[int, ...], dtype: torch.dtype
) -> None:
    plain = draw(2, 6, 7 if kernel else 17, (9, 13), kernel, given=("logits", "residual"), dtype=dtype)
    valid = torch.rand(2, 13, 9) > 0.3
    plain = replace(plain, valid=valid.mT)
    strided = replace(
        plain, features=layout(plain.features), logits=layout(plain.logits), residual=layout(plain.residual)
    )
    assert_within_budget(backend(strided), strided)
    strided = replace(strided, logits=None, residual=None)
    assert_within_budget(backend(strided), strided)


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["1x1", "3x3"])
def test_expanded_operands(backend: Backend, kernel: tuple[int, ...]) -> None:
    """Stride 0: one image shared by the batch, one row shared by the map, one mask for all."""
    small = draw(1, 6, 5, (1, 13), kernel)
    inputs = replace(
        small,
        features=small.features.expand(3, -1, 9, -1),
        valid=(torch.rand(1, 9, 1) > 0.3).expand(3, -1, 13),
        residual=torch.randn(1, 6, 1, 13).expand(3, -1, 9, -1),
        bias=torch.ones(1).expand(6),
    )
    found = backend(inputs)
    assert_within_budget(found, inputs)
    same(image_of(found, 0), image_of(found, 2))


def test_weight_and_bias_of_any_strides(backend: Backend) -> None:
    inputs = draw(2, 6, 5, (4, 7), (3, 3))
    strided = replace(inputs, weight=every_other(inputs.weight), bias=every_other(inputs.bias))
    same(backend(strided), backend(inputs))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("axis", [0, 1, 2, 3], ids=["image", "channel", "row", "column"])
def test_offsets_beyond_32_bits(backend: Backend, axis: int, dtype: torch.dtype) -> None:
    """Neighbours along an axis 2^31 elements apart; the memory between is reserved and never touched. bfloat16 images
    and channels that far apart are rows of 16 bytes all the same."""
    inputs = draw(2, 3, 2, (2, 8) if axis < 2 else (2, 2), dtype=dtype)
    strides = list(inputs.features.stride())
    strides[axis] = 2**31 + (8 if axis < 2 else 5)
    if backend.device == "cuda" and torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("less than 6 GiB free on the GPU")
    far = torch.empty(2**31 + 64, dtype=dtype, device=backend.device).as_strided(inputs.features.shape, strides)
    far.copy_(inputs.features)
    assert_within_budget(backend(replace(inputs, features=far)), inputs)


@st.composite
def calls(draws: st.DrawFn, most: int) -> tuple[Inputs, tuple[str, ...]]:
    axes = draws(st.integers(1, 3))
    spatial = draws(st.lists(st.integers(1, most), min_size=axes, max_size=axes))
    kernel = draws(st.one_of(st.just([]), st.lists(st.sampled_from([1, 3, 5]), min_size=axes, max_size=axes)))
    inputs = draw(
        draws(st.integers(0, 3)),
        draws(st.integers(1, 24)),
        draws(st.integers(1, 40)),
        spatial,
        kernel,
        dtype=draws(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        given=draws(st.lists(st.sampled_from(["logits", "residual", "valid"]), unique=True)),
        seed=draws(st.integers(0, 999)),
    )
    if draws(st.booleans()):
        inputs = replace(inputs, bias=None)
    inputs = replace(inputs, features=draws(st.sampled_from(LAYOUTS))(inputs.features))
    return inputs, tuple(draws(st.lists(st.sampled_from(OUTPUTS), min_size=1, unique=True)))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(call=calls(9))
def test_any_call(backend: Backend, call: tuple[Inputs, tuple[str, ...]]) -> None:
    inputs, outputs = call
    found = backend(inputs, outputs)
    assert [name for name in OUTPUTS if getattr(found, name) is not None] == sorted(outputs, key=OUTPUTS.index)
    assert_within_budget(found, inputs)


# Which pixels count


def test_only_valid_pixels_count(backend: Backend) -> None:
    """Cutting a map is the same as marking the rest invalid."""
    inputs = draw(2, 5, 6, (8, 12))
    left = torch.zeros(2, 8, 12, dtype=torch.bool)
    left[:, :, :7] = True
    masked, cut = backend(replace(inputs, valid=left)), backend(replace(inputs, features=inputs.features[..., :7]))
    assert torch.equal(masked.class_pixels, cut.class_pixels)
    assert not masked.norm_map[..., 7:].any()
    for name in sorted(set(OUTPUTS) - {"class_pixels", "norm_map"}):
        torch.testing.assert_close(getattr(masked, name), getattr(cut, name), rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["1x1", "3x3"])
def test_an_image_with_no_valid_pixel_is_all_zeros(backend: Backend, kernel: tuple[int, ...]) -> None:
    inputs = draw(3, 5, 6, (8, 12), kernel, given=("valid",))
    inputs.valid[1] = False
    found = backend(inputs)
    for name, value in zip(OUTPUTS, found, strict=True):
        assert not value[1].any(), name
    assert_within_budget(found, inputs)


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["1x1", "3x3"])
@pytest.mark.parametrize("spoiler", [math.nan, math.inf, -math.inf])
def test_what_an_invalid_pixel_holds_does_not_matter(backend: Backend, kernel: tuple[int, ...], spoiler: float) -> None:
    inputs = draw(2, 5, 6, (8, 12), kernel, given=("logits", "residual"))
    valid = torch.ones(2, 8, 12, dtype=torch.bool)
    valid[0, 2:7, 3:8] = False
    for clean in (replace(inputs, valid=valid), replace(inputs, valid=valid, logits=None, residual=None)):
        expected = backend(clean)
        spoiled = replace(clean, features=clean.features.clone())
        spoiled.features[0, :, 4, 5] = spoiler  # its whole 3 x 3 neighbourhood is invalid
        if clean.logits is not None:
            spoiled = replace(spoiled, logits=clean.logits.clone(), residual=clean.residual.clone())
            spoiled.logits[0, :, 2:7, 3:8] = spoiler
            spoiled.residual[0, :, 2:7, 3:8] = spoiler
        same(backend(spoiled), expected)


def test_an_invalid_pixel_still_is_part_of_its_neighbours_patches(backend: Backend) -> None:
    inputs = draw(1, 5, 6, (8, 12), (3, 3))
    valid = torch.ones(1, 8, 12, dtype=torch.bool)
    valid[0, 4, 5] = False
    inputs = replace(inputs, valid=valid)
    inputs.features[0, 0, 4, 5] = math.nan
    norms = backend(inputs).norm_map[0].isnan().cpu()
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[3:6, 4:7] = True
    expected[4, 5] = False
    assert torch.equal(norms, expected)


def test_no_image(backend: Backend) -> None:
    inputs = draw(2, 5, 6, (8, 12), (3, 3), given=("logits", "residual", "valid"))
    found = backend(inputs.image(slice(0, 0)))
    shapes = [value.shape for value in backend(inputs)]
    assert [(0, *shape[1:]) for shape in shapes] == [tuple(value.shape) for value in found]
    no_pixel = backend(draw(2, 5, 6, (0, 12)))
    assert no_pixel.norm_map.shape == (2, 0, 12)
    assert no_pixel.image.shape == (2, 5, 6)
    assert not no_pixel.image.any()


# Hard values


def test_ties_go_to_the_lowest_class(backend: Backend) -> None:
    """Classes 2 and 4 are the same, so are 1 and 3: computed logits tie exactly, and so do given ones."""
    inputs = draw(2, 5, 4, (9, 11))
    inputs.features.round_()
    weight = inputs.weight.mul(4).round()
    weight[4], weight[3] = weight[2], weight[1]
    inputs = replace(inputs, weight=weight, bias=torch.zeros(5))
    found = backend(inputs)
    assert not found.class_pixels[:, 3:].any()
    assert found.class_pixels[:, 1:3].all()
    assert_within_budget(found, inputs)

    equal = replace(inputs, logits=torch.zeros(2, 5, 9, 11))
    assert torch.equal(backend(equal).class_pixels.cpu(), torch.tensor([[99, 0, 0, 0, 0]] * 2))
    rounded = replace(inputs, logits=last_layer(inputs).bfloat16().float())
    assert_within_budget(backend(rounded), rounded)


@pytest.mark.parametrize("n_classes", [3, 21, 150])
def test_large_logits(backend: Backend, n_classes: int) -> None:
    inputs = draw(2, n_classes, 6, (9, 11), given=("logits",))
    inputs = replace(inputs, logits=inputs.logits.div(2).round() * 1e4)
    found = backend(inputs)
    assert all(value.isfinite().all() for value in found)
    assert_within_budget(found, inputs)


@pytest.mark.parametrize("n_classes", [3, 21, 150])
def test_classes_ruled_out_by_a_logit_of_minus_infinity(backend: Backend, n_classes: int) -> None:
    inputs = draw(2, n_classes, 6, (9, 11), given=("logits",))
    inputs.logits[torch.rand(inputs.logits.shape) < 0.5] = -math.inf
    inputs.logits[:, -1] = 0.5  # one class is left, and in many pixels no other
    found = backend(inputs)
    assert all(value.isfinite().all() for value in found)
    assert_within_budget(found, inputs)
    ruled_out = replace(draw(2, n_classes, 6, (9, 11)), bias=torch.full((n_classes,), -math.inf))
    ruled_out.bias[1] = 0.0
    found = backend(ruled_out)
    assert torch.equal(found.class_pixels[:, 1].cpu(), torch.tensor([99, 99]))
    assert_within_budget(found, ruled_out)


@pytest.mark.parametrize("gap", [12.0, 20.0, 30.0])
def test_a_confident_pixel_keeps_its_gradient(backend: Backend, gap: float) -> None:
    """p - 1 is lost to rounding beyond a gap of 17: r at the prediction is formed from the other classes' p."""
    inputs = draw(1, 4, 6, (5, 5), given=("logits",))
    inputs.logits[:, 2] = inputs.logits.amax(1) + gap
    exact = inputs.to(torch.float64)
    at = pixels(exact)
    residual = at.probabilities.clone()
    residual[:, 2] = 0
    residual[:, 2] = -residual.sum(1)
    image = residual @ at.patches.mT / 25
    norms = (residual.norm(dim=1) * at.patches.norm(dim=1)).view(1, 5, 5)
    found = backend(inputs)
    torch.testing.assert_close(found.norm_map.cpu().double(), norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.image.cpu().double(), image, rtol=1e-5, atol=1e-5 * image.abs().amax().item())
    torch.testing.assert_close(found.image[:, 2], -found.image[:, [0, 1, 3]].sum(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["1x1", "3x3"])
@pytest.mark.parametrize("n_classes", [1, 3, 20])
@pytest.mark.parametrize("spoiler", [math.nan, math.inf, -math.inf])
def test_nan_or_infinity_spoils_its_image_alone(
    backend: Backend, spoiler: float, n_classes: int, kernel: tuple[int, ...]
) -> None:
    """What a spoiled image shows: NaN, or where a residual is given no finite number, in

    - image, class_mass and class_entropy, everywhere; semantic and semantic_vector, in a class at least; entropy,
      margin and confidence; feature_sum, in the spoiler's channel and no other;
    - norm_map, at the pixels whose patch holds the spoiler. Its other pixels are as if nothing had happened,
    - and class_pixels still counts every pixel once.

    The other images of the batch keep every bit.
    """
    clean = draw(3, n_classes, 6, (5, 7), kernel)
    expected = backend(clean)
    spoiled = replace(clean, features=clean.features.clone())
    spoiled.features[1, 2, 3, 4] = spoiler
    found = backend(spoiled)
    same(image_of(found, [0, 2]), image_of(expected, [0, 2]))

    reach = torch.zeros(5, 7, dtype=torch.bool)
    margin = 1 if kernel else 0
    reach[3 - margin : 4 + margin, 4 - margin : 5 + margin] = True
    norms = found.norm_map[1].cpu()
    assert norms[reach].isnan().all()
    assert torch.equal(norms[~reach], expected.norm_map[1].cpu()[~reach])
    assert found.image[1].isnan().all()
    assert found.semantic[1].isnan().any()
    assert found.semantic_vector[1].flatten(1).isnan().any(1).any()
    for name in ("entropy", "margin", "confidence", "class_mass", "class_entropy"):
        assert getattr(found, name)[1].isnan().all(), name
    assert not found.feature_sum[1, 2].isfinite()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found.feature_sum[1, others], expected.feature_sum[1, others])
    assert found.class_pixels[1].sum() == 35

    residual = draw(3, n_classes, 6, (5, 7), given=("residual", "logits"))
    given_both = replace(spoiled, residual=residual.residual, logits=residual.logits)
    found, expected = backend(given_both), backend(replace(given_both, features=clean.features))
    same(image_of(found, [0, 2]), image_of(expected, [0, 2]))
    assert not found.norm_map[1].cpu()[reach].isfinite().any()
    assert not found.image[1, :, 2].isfinite().all()
    assert not found.semantic[1].isfinite().all()


@pytest.mark.parametrize("operand", ["logits", "residual"])
def test_nan_in_a_given_operand_spoils_its_image_alone(backend: Backend, operand: str) -> None:
    clean = draw(3, 4, 6, (5, 7), given=("logits", "residual") if operand == "residual" else ("logits",))
    expected = backend(clean)
    changed = getattr(clean, operand).clone()
    changed[1, 2, 3, 4] = math.nan
    found = backend(replace(clean, **{operand: changed}))
    same(image_of(found, [0, 2]), image_of(expected, [0, 2]))
    assert found.norm_map[1].isnan().sum() == 1
    assert found.norm_map[1, 3, 4].isnan()
    assert found.image[1].isnan().any()
    assert found.semantic[1].isnan().any()
    if operand == "logits":
        assert found.image[1].isnan().all()
        assert found.entropy[1].isnan()
        assert found.confidence[1].isnan()
        assert found.class_mass[1].isnan().all()
        assert found.class_entropy[1].isnan().all()
    assert torch.equal(found.feature_sum, expected.feature_sum)
    assert found.class_pixels[1].sum() == 35


# Repeatability


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["1x1", "3x3"])
def test_an_image_is_the_same_to_the_bit_alone_and_in_any_batch(
    backend: Backend, kernel: tuple[int, ...], dtype: torch.dtype
) -> None:
    inputs = draw(4, 5, 7 if kernel else 16, backend.fit((37, 41)), kernel, dtype=dtype, given=("valid",))
    together = backend(inputs)
    same(backend(inputs), together)
    for chosen in ([0], [3], [3, 1, 3]):
        same(backend(inputs.image(chosen)), image_of(together, chosen))


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(backend: Backend, n_threads: int) -> None:
    inputs = draw(2, 13, 16, backend.fit((64, 64)), given=("valid",))
    expected = backend(inputs)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        found = backend(inputs)
    finally:
        torch.set_num_threads(before)
    if backend.name == "reference":  # plain PyTorch: its matrix products may cut their sums by thread
        assert_within_budget(found, inputs)
    else:
        same(found, expected)


def test_many_equal_pixels_are_summed_without_loss(backend: Backend) -> None:
    """One float32 running sum over this many equal terms is off in the third digit."""
    spatial = backend.fit((1024, 1024))
    inputs = draw(1, 3, 2, (1, 1))
    one = backend(inputs)
    found = backend(replace(inputs, features=inputs.features.expand(-1, -1, *spatial)))
    count = math.prod(spatial)
    torch.testing.assert_close(found.image, one.image, rtol=1e-4, atol=0)
    for name in sorted(set(OUTPUTS) - {"image", "norm_map", "class_pixels"}):
        torch.testing.assert_close(getattr(found, name), getattr(one, name) * count, rtol=1e-4, atol=0, msg=name)


def test_more_than_2_to_the_31_elements(backend: Backend, request: pytest.FixtureRequest) -> None:
    if backend.device == "cpu" and not request.config.getoption("--slow"):
        pytest.skip("slow: run with --slow")
    if backend.most_pixels is not None or backend.name == "reference":
        pytest.skip(f"{backend.name} on {backend.device} would take hours or more memory than there is")
    inputs = draw(1, 3, 16, (1, 1))
    one = backend(inputs)
    height, width = 2**14 + 1, 2**13
    many = replace(inputs, features=inputs.features.expand(-1, -1, height, width))
    assert many.features.numel() > 2**31
    found = backend(many, ("image", "class_pixels", "entropy"))
    assert torch.equal(found.class_pixels, one.class_pixels * height * width)
    torch.testing.assert_close(found.image, one.image, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.entropy, one.entropy * height * width, rtol=1e-5, atol=0)


# Under autograd, autocast, opcheck, torch.compile


def test_no_gradient_flows(backend: Backend) -> None:
    inputs = draw(2, 5, 6, (8, 12), given=("logits", "residual"))
    expected = backend(inputs)
    for tensor in (inputs.features, inputs.weight, inputs.bias, inputs.logits, inputs.residual):
        tensor.requires_grad_()
    found = backend(inputs)
    assert not any(value.requires_grad for value in found)
    same(found, expected)
    with torch.inference_mode():
        same(backend(inputs), expected)


def test_autocast_changes_nothing(backend: Backend) -> None:
    inputs = draw(2, 5, 6, (8, 12), (3, 3))
    expected = backend(inputs)
    with torch.autocast(backend.device, torch.bfloat16):
        same(backend(inputs), expected)


@pytest.mark.parametrize("given_operands", [(), ("logits", "residual", "valid")], ids=["plain", "given"])
def test_opcheck(backend: Backend, given_operands: tuple[str, ...]) -> None:
    inputs = draw(2, 3, 4, (5, 6), (3, 3), given=given_operands).to(backend.device)
    arguments = list(inputs.keywords().values())
    for requires_grad in (False, True):
        arguments[0] = inputs.features.clone().requires_grad_(requires_grad)
        torch.library.opcheck(
            torch.ops.alges_fast.pixel_gradients.default, (*arguments, (1 << len(OUTPUTS)) - 1, backend.name)
        )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_traces_whole_under_torch_compile(backend: Backend, dynamic: bool) -> None:
    torch.compiler.reset()  # the tests before this one count towards the limit of recompilations

    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def embed(features: Tensor, weight: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = pixel_gradients(
            features * 2, weight, outputs=("image", "norm_map", "class_pixels"), valid=valid, backend=backend.name
        )
        return found.image.flatten(1) + 1, found.norm_map, found.class_pixels

    for spatial in ((8, 12), (5, 7)):
        inputs = draw(2, 5, 6, spatial, given=("valid",)).to(backend.device)
        expected = pixel_gradients(
            inputs.features * 2, inputs.weight, valid=inputs.valid, outputs=OUTPUTS, backend=backend.name
        )
        image, norm_map, class_pixels = embed(inputs.features, inputs.weight, inputs.valid)
        assert torch.equal(image, expected.image.flatten(1) + 1)
        assert torch.equal(norm_map, expected.norm_map)
        assert torch.equal(class_pixels, expected.class_pixels)


@pytest.mark.slow
def test_inductor(backend: Backend) -> None:
    inputs = draw(2, 5, 6, (8, 12)).to(backend.device)
    compiled = torch.compile(
        lambda features, weight: pixel_gradients(features.relu(), weight, backend=backend.name).image.sum(1),
        fullgraph=True,
    )
    expected = pixel_gradients(inputs.features.relu(), inputs.weight, backend=backend.name).image.sum(1)
    torch.testing.assert_close(compiled(inputs.features, inputs.weight), expected)


# On a GPU


@pytest.fixture(params=running("cuda"))
def on_gpu(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


def test_runs_on_the_current_stream_without_host_sync(on_gpu: Backend) -> None:
    inputs = draw(2, 13, 16, (129, 130), given=("valid",)).to("cuda")
    expected = on_gpu(inputs)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        features = inputs.features + 0  # ready only after the sleep: a kernel on another stream would read too early
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = on_gpu(replace(inputs, features=features))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    same(found, expected)


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["1x1", "3x3"])
def test_is_captured_by_a_cuda_graph(on_gpu: Backend, kernel: tuple[int, ...]) -> None:
    inputs = draw(2, 13, 16, (65, 67), kernel).to("cuda")
    on_gpu(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = on_gpu(inputs)
    inputs.features.copy_(draw(2, 13, 16, (65, 67), kernel, seed=1).features)
    graph.replay()
    same(found, on_gpu(inputs))


def test_scratch_memory_does_not_grow_with_the_map(on_gpu: Backend) -> None:
    if on_gpu.name == "reference":
        pytest.skip("the definition keeps one image's residual")
    for n_classes, channels, kernel in ((19, 256, ()), (256, 2048, ()), (13, 16, (3, 3))):
        inputs = draw(4, n_classes, channels, (64, 64), kernel).to("cuda")
        outputs = ("image", "semantic", "semantic_vector")
        result = sum(value.nbytes for value in on_gpu(inputs, outputs) if value is not None)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        on_gpu(inputs, outputs)
        used = torch.cuda.max_memory_allocated() - before - result
        assert used <= 16 * 2**20 + 2**20, f"{used / 2**20:.1f} MiB of scratch"


# Bad arguments


BAD_ARGUMENTS: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "outputs, a string": ({"outputs": "image"}, TypeError, r"outputs.*sequence.*'image'"),
    "outputs, an iterator": ({"outputs": iter(["image"])}, TypeError, r"outputs.*sequence.*list_iterator"),
    "outputs, None": ({"outputs": None}, TypeError, r"outputs.*sequence.*None"),
    "outputs, unknown": ({"outputs": ("images",)}, ValueError, r"outputs.*'images'.*image, semantic"),
    "backend, unknown": ({"backend": "cudnn"}, ValueError, r"backend.*'cudnn'.*reference, cpu, triton, cuda"),
    "features, a list": ({"features": [1.0]}, TypeError, r"features.*tensor.*list"),
    "features, integers": ({"features": torch.ones(2, 4, 5, 6, dtype=torch.int32)}, TypeError, r"features.*int32"),
    "features, sparse": ({"features": torch.ones(2, 4, 5, 6).to_sparse()}, TypeError, r"features.*dense.*sparse_coo"),
    "features, nested": (
        {"features": torch.nested.nested_tensor([torch.ones(4, 5)], layout=torch.jagged)},
        TypeError,
        r"features.*dense.*nested",
    ),
    "logits, sparse": ({"logits": torch.ones(2, 3, 5, 6).to_sparse()}, TypeError, r"logits.*dense.*sparse_coo"),
    "features, two axes": ({"features": torch.ones(2, 4)}, ValueError, r"features.*\(B, d, \*spatial\).*\(2, 4\)"),
    "features, six axes": ({"features": torch.ones(2, 4, 1, 1, 1, 1)}, ValueError, r"features.*1 to 3.*\(2, 4, 1"),
    "features, no channel": (
        {"features": torch.ones(2, 0, 5, 6), "weight": torch.ones(3, 0)},
        ValueError,
        r"weight and features.*at least one.*\(3, 0\).*\(2, 0, 5, 6\)",
    ),
    "weight, no class": ({"weight": torch.ones(0, 4)}, ValueError, r"weight.*at least one class.*\(0, 4\)"),
    "weight, one axis": ({"weight": torch.ones(4)}, ValueError, r"weight.*\(K, d\).*\(4,\)"),
    "weight, kernel of one axis": ({"weight": torch.ones(3, 4, 3)}, ValueError, r"weight.*2 kernel axes.*\(3, 4, 3\)"),
    "weight, channels": ({"weight": torch.ones(3, 5)}, ValueError, r"weight has 5 channels.*features have 4"),
    "weight, even kernel": ({"weight": torch.ones(3, 4, 2, 3)}, ValueError, r"weight.*odd.*\(3, 4, 2, 3\)"),
    "weight, half": ({"weight": torch.ones(3, 4).half()}, TypeError, r"weight.*float32.*float16"),
    "weight, double": ({"weight": torch.ones(3, 4).double()}, TypeError, r"weight.*float32.*float64"),
    "weight, None": ({"weight": None}, TypeError, r"weight.*tensor.*NoneType"),
    "weight, device": ({"weight": torch.ones(3, 4, device="meta")}, ValueError, r"weight is on meta.*features.*cpu"),
    "bias, shape": ({"bias": torch.ones(4)}, ValueError, r"bias.*\(3,\).*\(4,\)"),
    "bias, a number": ({"bias": 0.0}, TypeError, r"bias.*tensor or None.*float"),
    "logits, classes": ({"logits": torch.ones(2, 4, 5, 6)}, ValueError, r"logits.*\(2, 3, 5, 6\).*\(2, 4, 5, 6\)"),
    "logits, type": ({"logits": torch.ones(2, 3, 5, 6).long()}, TypeError, r"logits.*float32.*int64"),
    "residual, map": ({"residual": torch.ones(2, 3, 6, 5)}, ValueError, r"residual.*\(2, 3, 5, 6\).*\(2, 3, 6, 5\)"),
    "residual, device": (
        {"residual": torch.ones(2, 3, 5, 6, device="meta")},
        ValueError,
        r"residual is on meta.*features.*cpu",
    ),
    "valid, shape": (
        {"valid": torch.ones(2, 1, 5, 6, dtype=torch.bool)},
        ValueError,
        r"valid.*\(2, 5, 6\).*\(2, 1, 5, 6\)",
    ),
    "valid, type": ({"valid": torch.ones(2, 5, 6)}, TypeError, r"valid.*bool.*float32"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments_are_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    keywords: dict[str, object] = {**GOOD.keywords(), **change}
    with pytest.raises(error, match=message):
        pixel_gradients(**keywords)


def test_float32_weights_serve_half_features_but_not_the_other_way_round() -> None:
    half = replace(GOOD, features=GOOD.features.half())
    assert pixel_gradients(**half.keywords()).image.dtype == torch.float32
    with pytest.raises(TypeError, match=r"weight must be float16 or float32 like features, got bfloat16"):
        pixel_gradients(half.features, GOOD.weight.bfloat16())
    with pytest.raises(TypeError, match=r"weight must be float64 like features, got float32"):
        pixel_gradients(GOOD.features.double(), GOOD.weight)


# Dispatch


@pytest.mark.parametrize(
    ("device", "kernel", "streams", "float32", "channels", "expected"),
    [
        ("cpu", False, False, True, 16, ("cpu", "reference")),
        ("cpu", True, False, True, 256, ("cpu", "reference")),
        ("mps", False, False, True, 16, ("reference",)),
        ("cuda", False, True, True, 16, ("cuda", "triton", "reference")),
        ("cuda", False, True, False, 256, ("cuda", "triton", "reference")),
        ("cuda", False, False, True, 16, ("triton", "cuda", "reference")),
        ("cuda", False, False, True, 256, ("cuda", "triton", "reference")),
        ("cuda", False, False, False, 256, ("triton", "cuda", "reference")),
        ("cuda", True, False, False, 16, ("cuda", "triton", "reference")),
    ],
)
def test_which_backend_is_preferred(
    device: str, kernel: bool, streams: bool, float32: bool, channels: int, expected: tuple[str, ...]
) -> None:
    preferred = preferred_backends(device, kernel=kernel, streams=streams, float32=float32, channels=channels)
    assert preferred == expected


def test_only_the_default_falls_back_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("alges_fast.ops.cpu.unsupported", lambda problem: "this test forbids it")
    monkeypatch.setattr(dispatch, "_runners", {})
    _say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "alges_fast"):
        first, second = pixel_gradients(**GOOD.keywords()), pixel_gradients(**GOOD.keywords())
    same(first, second)
    same(first, pixel_gradients(**GOOD.keywords(), backend="reference"))
    assert len(caplog.records) == 1
    assert "reference runs instead of cpu: " in caplog.text
    with pytest.raises(ValueError, match="backend='cpu' cannot run this call"):
        pixel_gradients(**GOOD.keywords(), backend="cpu")


def test_a_backend_of_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend='cuda' cannot run this call: .+"):
        pixel_gradients(**GOOD.keywords(), backend="cuda")
    if HAS_GPU:
        for name in ("cpu", "triton", "cuda"):
            elsewhere = GOOD if name != "cpu" else GOOD.to("cuda")
            with pytest.raises(ValueError, match=rf"backend='{name}' cannot run this call: .+"):
                pixel_gradients(**elsewhere.keywords(), backend=name)


def test_the_definition_runs_everywhere() -> None:
    assert "reference" in BACKENDS
    assert reference.unavailable() is None
