"""How `pixel_gradients` may be called: autograd, torch.compile, streams, bad arguments, and which backend runs."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from backends_here import ALL_BACKENDS, HAS_GPU, Backend, cannot_run, same
from oracle import OUTPUTS, draw
from torch import Tensor

from alges_fast import pixel_gradients
from alges_fast.backends import _say_once
from alges_fast.ops import dispatch
from alges_fast.ops.dispatch import preferred_backends

GOOD = draw(2, 3, 4, (5, 6))


@pytest.mark.parametrize("each", ALL_BACKENDS, ids=str)
def test_a_backend_is_in_this_suite_or_says_why_not(each: Backend) -> None:
    reason = cannot_run(each)
    if reason is not None:
        pytest.skip(f"{each}: {reason}")
    assert each(GOOD).image.shape == (2, 3, 4)


# Under autograd, autocast, opcheck, torch.compile


def test_no_gradient_flows_and_autocast_changes_nothing(backend: Backend) -> None:
    inputs = draw(2, 5, 6, (8, 12), given=("logits", "residual"))
    expected = backend(inputs)
    for tensor in (inputs.features, inputs.weight, inputs.bias, inputs.logits, inputs.residual):
        tensor.requires_grad_()
    found = backend(inputs)
    assert not any(value.requires_grad for value in found)
    same(found, expected)
    with torch.inference_mode():
        same(backend(inputs), expected)
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
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_traces_whole_under_torch_compile(backend: Backend, compiler: str, dynamic: bool) -> None:
    torch.compiler.reset()  # the tests before this one count towards the limit of recompilations

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=compiler)
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
        found = embed(inputs.features, inputs.weight, inputs.valid)
        assert torch.equal(found[0], expected.image.flatten(1) + 1)
        assert torch.equal(found[1], expected.norm_map)
        assert torch.equal(found[2], expected.class_pixels)


# On a GPU


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


ONES = torch.ones(2, 4, 5, 6)
BAD_ARGUMENTS: list[tuple[str, object, type[Exception], str]] = [
    ("outputs", "image", TypeError, r"outputs.*sequence.*'image'"),
    ("outputs", iter(["image"]), TypeError, r"outputs.*sequence.*list_iterator"),
    ("outputs", None, TypeError, r"outputs.*sequence.*None"),
    ("outputs", ("images",), ValueError, r"outputs.*'images'.*image, semantic"),
    ("backend", "cudnn", ValueError, r"backend.*'cudnn'.*reference, cpu, triton, cuda"),
    ("features", [1.0], TypeError, r"features.*tensor.*list"),
    ("features", ONES.int(), TypeError, r"features.*int32"),
    ("features", ONES.to_sparse(), TypeError, r"features.*dense.*sparse_coo"),
    ("features", torch.nested.nested_tensor([ONES[0, 0]], layout=torch.jagged), TypeError, r"features.*dense.*nested"),
    ("features", torch.ones(2, 4), ValueError, r"features.*\(B, d, \*spatial\).*\(2, 4\)"),
    ("features", torch.ones(2, 4, 1, 1, 1, 1), ValueError, r"features.*1 to 3.*\(2, 4, 1"),
    ("weight", torch.ones(0, 4), ValueError, r"weight.*at least one class.*\(0, 4\)"),
    ("weight", torch.ones(4), ValueError, r"weight.*\(K, d\).*\(4,\)"),
    ("weight", torch.ones(3, 4, 3), ValueError, r"weight.*2 kernel axes.*\(3, 4, 3\)"),
    ("weight", torch.ones(3, 5), ValueError, r"weight has 5 channels.*features have 4"),
    ("weight", torch.ones(3, 4, 2, 3), ValueError, r"weight.*odd.*\(3, 4, 2, 3\)"),
    ("weight", torch.ones(3, 4).half(), TypeError, r"weight.*float32.*float16"),
    ("weight", torch.ones(3, 4).double(), TypeError, r"weight.*float32.*float64"),
    ("weight", None, TypeError, r"weight.*tensor.*NoneType"),
    ("weight", torch.ones(3, 4, device="meta"), ValueError, r"weight is on meta.*features.*cpu"),
    ("bias", torch.ones(4), ValueError, r"bias.*\(3,\).*\(4,\)"),
    ("bias", 0.0, TypeError, r"bias.*tensor or None.*float"),
    ("logits", ONES[:, :3].to_sparse(), TypeError, r"logits.*dense.*sparse_coo"),
    ("logits", ONES, ValueError, r"logits.*\(2, 3, 5, 6\).*\(2, 4, 5, 6\)"),
    ("logits", ONES[:, :3].long(), TypeError, r"logits.*float32.*int64"),
    ("residual", ONES[:, :3].mT, ValueError, r"residual.*\(2, 3, 5, 6\).*\(2, 3, 6, 5\)"),
    ("residual", ONES[:, :3].to("meta"), ValueError, r"residual is on meta.*features.*cpu"),
    ("valid", ONES[:, :1] > 0, ValueError, r"valid.*\(2, 5, 6\).*\(2, 1, 5, 6\)"),
    ("valid", ONES[:, 0], TypeError, r"valid.*bool.*float32"),
]


@pytest.mark.parametrize(("operand", "value", "error", "message"), BAD_ARGUMENTS, ids=[bad[3] for bad in BAD_ARGUMENTS])
def test_bad_arguments_are_named(operand: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pixel_gradients(**{**GOOD.keywords(), operand: value})


def test_layers_without_a_channel_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight and features.*at least one.*\(3, 0\).*\(2, 0, 5, 6\)"):
        pixel_gradients(torch.ones(2, 0, 5, 6), torch.ones(3, 0))


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
