"""The conformance suite of `pixel_gradients`: every backend that runs on this machine against the same definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from backends_here import Backend, image_of, same
from hypothesis import HealthCheck, given, settings
from oracle import (
    OUTPUTS,
    Inputs,
    assert_within_budget,
    channels_last,
    definition,
    draw,
    last_layer,
    pixels,
    stored_tensor,
)
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)

# NumPy, which interprets Triton's kernels, speaks of the NaN that some tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


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


# (classes, channels, side of the kernel): every size of the one with some of the other.
LAYERS = [(1, 1, 1), (1, 304, 1), (2, 3, 1), (2, 64, 1), (3, 17, 1), (3, 2048, 1), (13, 16, 1), (13, 255, 1)]
LAYERS += [(19, 1, 1), (19, 256, 1), (21, 64, 1), (21, 304, 1), (150, 3, 1), (150, 2048, 1), (256, 16, 1), (256, 17, 1)]
LAYERS += [(13, 304, 3), (21, 40, 3), (150, 20, 3), (256, 9, 3)]


@pytest.mark.parametrize(("n_classes", "channels", "size"), LAYERS)
def test_classes_and_channels(
    backend: Backend, n_classes: int, channels: int, size: int, request: pytest.FixtureRequest
) -> None:
    limit = None if request.config.getoption("--slow") else backend.most_weights
    if limit is not None and n_classes * channels * size**2 > limit:
        pytest.skip(f"more than {limit} weights are slow here: run with --slow")
    inputs = draw(1, n_classes, channels, (5, 7), (size, size) if size > 1 else (), seed=n_classes + channels)
    assert_within_budget(backend(inputs), inputs)


@pytest.mark.parametrize(
    ("spatial", "kernel"),
    [
        *[((1,), (1,)), ((2,), (5,)), ((31,), (3,)), ((1009,), (5,)), ((1, 1), (3, 3)), ((17, 19), (1, 1))],
        *[((17, 19), (5, 5)), ((129, 130), (1, 1)), ((129, 130), (3, 3)), ((1, 300), (5, 5)), ((300, 1), (3, 3))],
        *[((1, 1, 1), (3, 3, 3)), ((3, 5, 7), (5, 5, 5)), ((13, 1, 11), (1, 1, 1)), ((13, 1, 11), (3, 3, 3))],
        *[((11, 10), (1, 3)), ((11, 10), (5, 1)), ((11, 10), (7, 3))],
    ],
    ids=str,
)
def test_maps_and_kernels(backend: Backend, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    inputs = draw(1, 7, 9, backend.fit(spatial, kernel), kernel, given=("valid",) if len(set(kernel)) > 1 else ())
    assert_within_budget(backend(inputs), inputs)


@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [(torch.float16, ()), (torch.bfloat16, (3, 3)), (torch.float32, ()), (torch.float32, (3, 3))],
    ids=str,
)
@pytest.mark.parametrize(
    "given_operands",
    [(), ("valid",), ("logits",), ("residual",), ("logits", "residual", "valid")],
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
    for n_classes, given_operands in ((13, ("valid",)), (5, ("logits", "residual"))):
        inputs = draw(2, n_classes, 48, spatial, given=given_operands)
        for features in (inputs.features.to(dtype), channels_last(inputs.features.to(dtype))):
            mixed = replace(inputs, features=features)
            assert_within_budget(backend(mixed), mixed)


def test_float64_is_float64_throughout_or_refused(backend: Backend) -> None:
    inputs = draw(2, 13, 16, (11, 13), (3, 3), dtype=torch.float64, given=("valid",))
    if backend.name != "reference":
        with pytest.raises(ValueError, match=f"backend='{backend.name}' cannot run this call: .*float64"):
            backend(inputs)
        return
    for found, exact in zip(backend(inputs), definition(inputs, torch.float64), strict=True):
        torch.testing.assert_close(found.cpu(), exact, rtol=1e-11, atol=1e-11)


# Memory layouts


def every_other(tensor: Tensor) -> Tensor:
    """The same values, as every second element along each axis of a larger tensor full of NaN."""
    larger = tensor.new_full([2 * size + 1 for size in tensor.shape], math.nan)
    view = larger[tuple(slice(1, 2 * size, 2) for size in tensor.shape)]
    return view.copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


LAYOUTS = (torch.clone, channels_last, every_other, transposed)


@pytest.mark.parametrize(
    ("kernel", "dtype"), [((), torch.float32), ((), torch.bfloat16), ((3, 3), torch.float32)], ids=str
)
@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=lambda layout: layout.__name__)
def test_any_strides(
    backend: Backend, layout: Callable[[Tensor], Tensor], kernel: tuple[int, ...], dtype: torch.dtype
) -> None:
    plain = draw(2, 6, 7 if kernel else 17, (9, 13), kernel, given=("logits", "residual"), dtype=dtype)
    given_maps = {name: layout(getattr(plain, name)) for name in ("features", "logits", "residual")}
    strided = replace(plain, valid=(torch.rand(2, 13, 9) > 0.3).mT, **given_maps)
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


@pytest.mark.parametrize(("n_classes", "kernel"), [(1, ()), (3, (3, 3)), (20, ())], ids=str)
@pytest.mark.parametrize("spoiler", [math.nan, math.inf, -math.inf])
def test_nan_or_infinity_spoils_its_image_alone(
    backend: Backend, spoiler: float, n_classes: int, kernel: tuple[int, ...]
) -> None:
    """A spoiled image shows it in every sum (with a residual given: no finite number), in its norm map at the pixels
    whose patch holds the spoiler, in the feature sum of its channel; class_pixels counts every pixel once, and the
    other images keep every bit."""
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
    assert torch.equal(found.feature_sum[1, [0, 1, 3, 4, 5]], expected.feature_sum[1, [0, 1, 3, 4, 5]])
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
    assert found.norm_map[1].isnan().nonzero().tolist() == [[3, 4]]
    assert found.image[1].isnan().any()
    assert found.semantic[1].isnan().any()
    if operand == "logits":
        for name in ("image", "entropy", "confidence", "class_mass", "class_entropy"):
            assert getattr(found, name)[1].isnan().all(), name
    assert torch.equal(found.feature_sum, expected.feature_sum)
    assert found.class_pixels[1].sum() == 35


# Repeatability


@pytest.mark.parametrize(
    ("kernel", "dtype"), [((), torch.float32), ((), torch.bfloat16), ((3, 3), torch.float32)], ids=str
)
def test_an_image_is_the_same_to_the_bit_alone_and_in_any_batch(
    backend: Backend, kernel: tuple[int, ...], dtype: torch.dtype
) -> None:
    inputs = draw(4, 5, 7 if kernel else 16, backend.fit((37, 41)), kernel, dtype=dtype, given=("valid",))
    together = backend(inputs)
    same(backend(inputs), together)
    for chosen in ([0], [3], [3, 1, 3]):
        same(backend(inputs.image(chosen)), image_of(together, chosen))


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
