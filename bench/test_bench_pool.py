"""Whole-pool scoring with a U-Net ResNet-18 at 224 x 224: against the bare forward pass, and against its rivals.

Every round runs all contenders one after the other, so a figure is a median of ratios within a round: drift of the
machine's clock cancels. The floor of whole-pool scoring is the bare forward pass.

    python -m pytest bench/test_bench_pool.py --benchmark-json=bench/results/pool.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from alges_fast import LastLayer, embed_pool
from alges_fast.models import build_model
from alges_fast.pool.transfer import in_parts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, CLASSES, SIDE = (64 if DEVICE.type == "cuda" else 8), 13, 224

Contenders = dict[str, Callable[[], Any]]


@pytest.fixture(scope="module", params=[1, 3], ids=["head_1x1", "head_3x3"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build_model("unet", "resnet18", num_classes=CLASSES, head_kernel=request.param, seed=0).to(DEVICE).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_overhead_over_the_forward_pass(benchmark: Any, model: nn.Module, images: Tensor) -> None:
    """`embed_pool` and a bare forward pass over the same images in memory: in the format they come in, in the faster
    one that `embed_pool` puts them in, and besides in its parts, which is the floor."""
    layer = LastLayer.find(model, images[:1].to(DEVICE))

    def forward(memory_format: torch.memory_format) -> None:
        with torch.no_grad():
            model(images.to(DEVICE).to(memory_format=memory_format))

    def forward_in_parts() -> None:
        with torch.no_grad():
            for part in in_parts(images.to(DEVICE).to(memory_format=torch.channels_last)):
                model(part)

    def score() -> None:
        embed_pool(model, images, batch_size=BATCH, last_layer=layer, progress=False)

    contenders: Contenders = {
        "scoring": score,
        "forward": lambda: forward(torch.contiguous_format),
        "forward_channels_last": lambda: forward(torch.channels_last),
        "forward_in_parts": forward_in_parts,
    }
    times = compare(benchmark, "scoring", contenders, rounds=11)
    for floor in ("forward", "forward_channels_last", "forward_in_parts"):
        benchmark.extra_info[f"overhead_over_{floor}_percent"] = round(100 * (ratio(times, "scoring", floor) - 1), 2)


def test_whole_pool(benchmark: Any, model: nn.Module, images: Tensor) -> None:
    """Against what gives the same embeddings, from the usual way to the best one can do with autograd.

    `backward` is loss.backward() one image at a time, as ALGES's released code does; `autograd` asks for the last
    weight's gradient alone; `autograd_frozen` besides lets no other parameter require one; `torch.func` runs the model
    on the whole batch and vmaps the gradient of the head.
    """
    layer = LastLayer.find(model, images[:1].to(DEVICE))
    on_device, weight = images.to(DEVICE), layer.module.weight

    def autograd_frozen() -> Tensor:
        model.requires_grad_(False)
        weight.requires_grad_(True)
        try:
            return autograd_one_by_one(model, weight, on_device)
        finally:
            model.requires_grad_(True)

    def per_sample() -> Tensor:
        return per_sample_gradients(layer.module, layer.features(on_device))

    contenders: Contenders = {
        "scoring": lambda: embed_pool(model, images, batch_size=BATCH, last_layer=layer, progress=False).values,
        "backward": lambda: backward_one_by_one(model, weight, on_device),
        "autograd": lambda: autograd_one_by_one(model, weight, on_device),
        "autograd_frozen": autograd_frozen,
        "torch.func": per_sample,
    }
    agree(contenders)
    times = compare(benchmark, "scoring", contenders, rounds=5)
    for rival in list(contenders)[1:]:
        benchmark.extra_info[f"{rival}_over_scoring"] = round(ratio(times, rival, "scoring"), 2)


def test_embedding_step(benchmark: Any, model: nn.Module, images: Tensor) -> None:
    """From the last layer's input to the embeddings, without the model."""
    layer = LastLayer.find(model, images[:1].to(DEVICE))
    features = layer.features(images.to(DEVICE))
    head = nn.Sequential(layer.module)
    step = LastLayer.find(head, features[:1])
    contenders: Contenders = {
        "scoring": lambda: step.pixel_gradients(features, outputs=("image",)).image,
        "autograd": lambda: autograd_one_by_one(head, step.module.weight, features),
        "torch.func": lambda: per_sample_gradients(step.module, features),
    }
    agree(contenders)
    times = compare(benchmark, "scoring", contenders, rounds=9)
    for rival in ("autograd", "torch.func"):
        benchmark.extra_info[f"{rival}_over_scoring"] = round(ratio(times, rival, "scoring"), 2)


def backward_one_by_one(model: nn.Module, weight: Tensor, images: Tensor) -> Tensor:
    rows = []
    for image in images:
        model.zero_grad()
        logits = model(image[None])
        F.cross_entropy(logits, logits.argmax(1)).backward()
        assert weight.grad is not None
        rows.append(weight.grad.clone())
    return torch.stack(rows)


def autograd_one_by_one(model: nn.Module, weight: Tensor, images: Tensor) -> Tensor:
    rows = []
    for image in images:
        logits = model(image[None])
        rows.append(torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), weight)[0])
    return torch.stack(rows)


def per_sample_gradients(head: nn.Module, features: Tensor) -> Tensor:
    def loss(weight: Tensor, image: Tensor) -> Tensor:
        logits = functional_call(head, {"weight": weight, "bias": head.bias.detach()}, (image[None],))
        return F.cross_entropy(logits, logits.argmax(1).detach())

    return vmap(grad(loss), in_dims=(None, 0))(head.weight.detach(), features)


def agree(contenders: Contenders) -> None:
    """A rival that computes something else is no rival."""
    reference = contenders["autograd"]().cpu()
    for name, run in contenders.items():
        error = (run().cpu() - reference).norm() / reference.norm()
        assert error < 1e-4, f"{name} differs from autograd by {error:.1e}"


def compare(benchmark: Any, subject: str, contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round; pytest-benchmark times the subject, the others run just before it."""
    times: dict[str, list[float]] = {name: [] for name in contenders}

    def timed(name: str) -> None:
        synchronize()
        start = time.perf_counter()
        contenders[name]()
        synchronize()
        times[name].append(time.perf_counter() - start)

    def others() -> None:
        for name in contenders:
            if name != subject:
                timed(name)

    others()
    contenders[subject]()
    for name in times:
        times[name].clear()
    benchmark.group = benchmark.name.removeprefix("test_").partition("[")[0].replace("_", " ")
    benchmark.pedantic(timed, args=(subject,), setup=others, rounds=rounds)
    for name, seconds in times.items():
        benchmark.extra_info[f"{name}_ms_per_image"] = per_image(seconds)
    benchmark.extra_info.update(device=str(DEVICE), threads=torch.get_num_threads(), batch=BATCH, rounds=rounds)
    return times


def ratio(times: dict[str, list[float]], numerator: str, denominator: str) -> float:
    return statistics.median(a / b for a, b in zip(times[numerator], times[denominator], strict=True))


def per_image(seconds: list[float]) -> float:
    return round(1e3 * statistics.median(seconds) / BATCH, 3)


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
