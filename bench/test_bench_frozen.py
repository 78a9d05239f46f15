"""Frozen encoders at the size of ALGES's pool, 4 640 frames of 224 x 224: scoring, a round, and the trunk, once.

Features are drawn from a normal distribution, 56 x 56 x 68 float16 in a mapped file: no time here depends on values.
Rivals run right before the subject in every round, most over a part of the pool, and count for the whole of it. Seconds
are medians; CPU seconds are of all threads, and say what a machine that does other things as well would have taken.

    python -m pytest bench/test_bench_frozen.py --benchmark-json=bench/results/frozen.json
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast import embed_pool, kmeans_plusplus
from alges_fast.data.frame_pool import FramePool
from alges_fast.experiment.config import RunConfig
from alges_fast.models import build_model
from alges_fast.models.features_cache import CPU_PIXELS, FrozenEncoder
from alges_fast.models.frozen import RAISED, FrozenHead, Projection, build_trunk, fit_projection, join
from alges_fast.ops import pixel_gradients
from alges_fast.strategies import get_strategy
from alges_fast.training.head import train_head
from alges_fast.windows import cell_boxes, class_changes, cut, whole_box

FRAMES, SIDE, GRID, CHANNELS, CLASSES, LABELLED, PICKS = 4640, 224, 56, 68, 13, 300, 10
SHOWN = RAISED.scale * SIDE
PART, IMAGES, ROUNDS, BATCH, WINDOWED = 64, 4, 5, 32, 320
LOSS = get_strategy("random")().loss


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tensor]:
    path = tmp_path_factory.mktemp("features") / "features.f16"
    some = np.random.default_rng(0).standard_normal((80, GRID, GRID, CHANNELS)).astype(np.float16)
    with path.open("wb") as file:
        for _ in range(FRAMES // 80):
            file.write(some.tobytes())
    mapped = np.memmap(path, np.float16, "c", shape=(FRAMES, GRID, GRID, CHANNELS))
    yield torch.from_numpy(mapped).permute(0, 3, 1, 2)
    path.unlink()


@pytest.fixture(params=[1, 2], ids=["one_thread", "two_threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def head() -> FrozenHead:
    projection = Projection(torch.eye(RAISED.components), torch.zeros(RAISED.components), (RAISED.components,), RAISED)
    assert projection.n_features == CHANNELS
    return FrozenHead(projection, CLASSES, seed=0).eval().to(memory_format=torch.channels_last)


def head_then_op(model: nn.Module, maps: Tensor, regions: tuple[int, int] | None = None) -> list[Tensor]:
    """Embeddings by PyTorch's head over float32 copies, and the op over its hidden maps; with regions a call for every
    window, and the outline from its logits."""
    hidden = model.layers[1](model.layers[0](maps.float()))
    last = model.layers[2]
    boxes = [whole_box(maps.shape[2:])] if regions is None else cell_boxes(maps.shape[2:], regions)
    found = [pixel_gradients(cut(hidden, box), last.weight, last.bias, outputs=("image",)).image for box in boxes]
    images = torch.stack([image for image in found if image is not None], 1)
    return [images] if regions is None else [images, class_changes(last(hidden).argmax(1), regions)]


def score_and_pick(model: nn.Module, features: Tensor, *, eager: bool = False) -> Tensor:
    if eager:
        values = torch.cat([head_then_op(model, maps)[0] for maps in features.split(16)])
    else:
        ids = [str(i) for i in range(len(features))]
        values = embed_pool(
            model, FramePool(ids, features.__getitem__, features), batch_size=BATCH, progress=False
        ).values
    return kmeans_plusplus(values.flatten(1), PICKS, seed=0).indices


def test_score_the_pool_and_pick(benchmark: Any, features: Tensor, threads: int) -> None:
    """Floor: the head's products at the rate of a matrix product. Rivals: the head run by PyTorch and the op after it;
    U-Net ResNet-18's bare forward pass over the frames; autograd on the head, a frame at a time; torch.compile of the
    head and the plain PyTorch op."""
    benchmark.group = "score the pool and pick"
    model, unet = head(), build_model("unet", "resnet18", num_classes=CLASSES, seed=0).eval()
    unet = unet.to(memory_format=torch.channels_last)
    images = torch.randn(IMAGES, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    square = torch.randn(1024, 1024)
    last = model.layers[2]

    @torch.compile
    def hidden(maps: Tensor) -> Tensor:
        return model.layers[1](model.layers[0](maps.float()))

    def compiled_and_eager() -> None:
        for at in range(0, PART, BATCH):
            z = hidden(features[at : at + BATCH])
            pixel_gradients(z, last.weight, last.bias, outputs=("image",), backend="reference")

    def autograd() -> None:
        with torch.enable_grad():
            for maps in features[:PART]:
                logits = model(maps[None].float())
                torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), last.weight)

    flops = 2 * FRAMES * GRID**2 * (CHANNELS * 32 + 2 * 32 * CLASSES)
    with torch.no_grad():
        times = compared(
            benchmark,
            lambda: score_and_pick(model, features),
            {
                "floor": (lambda: square @ square, flops / (2 * 1024**3)),
                "eager_head_and_op": (lambda: score_and_pick(model, features, eager=True), 1.0),
                "unet_forward": (lambda: unet(images), FRAMES / IMAGES),
                "autograd": (autograd, FRAMES / PART),
                "compiled_head_eager_op": (compiled_and_eager, FRAMES / PART),
            },
        )
    for rival in ("floor", "eager_head_and_op", "unet_forward", "autograd", "compiled_head_eager_op"):
        benchmark.extra_info[f"{rival}_over_subject"] = ratio(times, rival)
    benchmark.extra_info.update(threads=threads, gflop=round(flops / 1e9, 1), peak_rss_mb=peak_rss())


@pytest.mark.parametrize("regions", [None, (8, 8), (16, 16)], ids=["frames", "8x8", "16x16"])
def test_embeddings_and_outline(
    benchmark: Any, features: Tensor, threads: int, regions: tuple[int, int] | None
) -> None:
    """What `alges-effort` knows of frames or windows, over a part of the pool. Rival: PyTorch's head, and the op
    called for every window."""
    benchmark.group = "embeddings and outline"
    model, part = head(), features[:WINDOWED]
    pool = FramePool([str(i) for i in range(WINDOWED)], part.__getitem__, part)
    how: dict[str, Any] = {"output": ("image", "outline"), "regions": regions, "batch_size": BATCH, "progress": False}

    def eager() -> list[list[Tensor]]:
        return [head_then_op(model, maps, regions or (1, 1)) for maps in part.split(16)]

    with torch.no_grad():
        times = compared(benchmark, lambda: embed_pool(model, pool, **how), {"eager_head_and_op": (eager, 1.0)})
    benchmark.extra_info["eager_head_and_op_over_subject"] = ratio(times, "eager_head_and_op")
    whole = FRAMES / WINDOWED * benchmark.extra_info["subject_cpu_s"]
    benchmark.extra_info.update(threads=threads, whole_pool_cpu_s=round(whole, 3), peak_rss_mb=peak_rss())


def test_one_round(benchmark: Any, features: Tensor, threads: int) -> None:
    """Train the head on 300 frames, score the pool, pick 10."""
    one_round(benchmark, features, torch.device("cpu"))
    benchmark.extra_info.update(threads=threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_one_round_on_a_gpu(benchmark: Any, features: Tensor) -> None:
    """The same, the features coming from the host's memory."""
    one_round(benchmark, features, torch.device("cuda"))


def one_round(benchmark: Any, features: Tensor, device: torch.device) -> None:
    benchmark.group = f"one round, {device}"
    config = RunConfig(architecture="frozen")
    labels = np.random.default_rng(1).integers(0, CLASSES, (LABELLED, GRID, GRID)).astype(np.uint8)
    seconds: list[float] = []
    cpu_seconds: list[float] = []

    def round() -> None:
        model = head().to(device)
        cpu = time.process_time()
        start = time.perf_counter()
        train_head(
            device,
            model,
            features[:LABELLED],
            labels,
            steps=config.head_steps,
            pixels=config.head_pixels,
            lr=config.head_lr,
            weight_decay=config.head_weight_decay,
            seed=0,
            round=0,
            loss=LOSS,
        )
        seconds.append(time.perf_counter() - start)
        score_and_pick(model, features).tolist()
        cpu_seconds.append(time.process_time() - cpu)

    benchmark.pedantic(round, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info.update(
        training_s=median_of(seconds),
        cpu_s=median_of(cpu_seconds),
        peak_rss_mb=peak_rss(),
    )


def test_the_trunk(benchmark: Any, threads: int) -> None:
    """Frames to features, but for the disk, against the bare forward pass of the encoder that users would run on the
    same pictures, which have twice the masks' side: all of its levels, and the first four, in the same parts."""
    benchmark.group = "the trunk"
    smp = pytest.importorskip("segmentation_models_pytorch")
    trunk = build_trunk("tu-tf_efficientnet_lite0", "packaged").to(memory_format=torch.channels_last)
    frames = np.random.default_rng(0).integers(0, 256, (12, 3, SHOWN, SHOWN), dtype=np.uint8)
    images = trunk.normalisation(torch.from_numpy(frames)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        joined = join(trunk(images[:2]), (GRID, GRID)).permute(0, 2, 3, 1).flatten(0, 2)
        encoder = FrozenEncoder(trunk, fit_projection(joined, trunk.channels, RAISED))
        step = max(CPU_PIXELS // SHOWN**2, 1)
        rivals: dict[str, tuple[Callable[[], Any], float]] = {}
        for depth in (4, 5):
            bare = smp.encoders.get_encoder("tu-tf_efficientnet_lite0", depth=depth, weights=None).eval()
            bare = bare.to(memory_format=torch.channels_last)
            rivals[f"encoder_of_depth_{depth}"] = (lambda bare=bare: [bare(part) for part in images.split(step)], 1.0)
        parts = torch.from_numpy(frames).split(step)
        times = compared(benchmark, lambda: [encoder(part) for part in parts], rivals)
    for rival in rivals:
        benchmark.extra_info[f"subject_over_{rival}"] = round(1 / ratio(times, rival), 3)
    benchmark.extra_info.update(threads=threads, ms_per_frame=1e3 * statistics.median(times["subject"]) / len(frames))


def compared(
    benchmark: Any, subject: Callable[[], Any], rivals: dict[str, tuple[Callable[[], Any], float]]
) -> dict[str, list[float]]:
    """Seconds of the subject and, times their factor, of every rival, which runs just before it in every round."""
    times: dict[str, list[float]] = {"subject": [], **{name: [] for name in rivals}}
    cpu_seconds: list[float] = []

    def others() -> None:
        for name, (run, factor) in rivals.items():
            start = time.perf_counter()
            run()
            times[name].append(factor * (time.perf_counter() - start))

    def timed() -> None:
        start, cpu = time.perf_counter(), time.process_time()
        subject()
        times["subject"].append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)

    others()
    for name in rivals:
        times[name].clear()
    benchmark.pedantic(timed, setup=others, rounds=ROUNDS)
    for name, seconds in times.items():
        benchmark.extra_info[f"{name}_s"] = median_of(seconds)
    benchmark.extra_info["subject_cpu_s"] = median_of(cpu_seconds)
    return times


def median_of(seconds: list[float]) -> float:
    return round(statistics.median(seconds), 3)


def ratio(times: dict[str, list[float]], rival: str) -> float:
    """Median over the rounds of the rival's time over the subject's."""
    return round(statistics.median(a / b for a, b in zip(times[rival], times["subject"], strict=True)), 3)


def peak_rss() -> int:
    """Of this process so far, in MB; mapped features that were read count too."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
