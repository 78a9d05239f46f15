"""`pixel_gradients` in Triton: any install with an NVIDIA GPU, no toolkit.

P pixels, K classes, d channels, T taps of the kernel, C = d T patch channels, s bytes an element. A patch channel
(c, t) is channel c seen from tap t: its address is the pixel's plus one offset, so a k x k head is a 1 x 1 head over C
channels and no patch is stored; the re-reads of neighbouring taps come from cache.

Two plans, chosen by `choose_plan` from the sizes of one image, never from the batch:

    one pass   (K x C accumulators fit in registers) a program takes a chunk of one image's pixels in tiles; a tile's
               patches are read once, serve both products, and only K x C sums a chunk are written.
    segmented  (wider heads) the pixels go by in segments: `_residuals` writes a segment's r to scratch, where it stays
               in L2, `_outer_sums` multiplies it with the patches, each program a tile of K x C, and adds to the
               chunk's sums.

    bytes      P d s read from memory (twice for segmented), K P for each given operand, 4 P written for norm_map
    flops      4 K C a pixel; for float32 three TF32 products each (below)
    scratch    at most 16 MB: large batches run in groups of images, large images in segments
    order      pixels of a tile, tiles of a chunk, chunks of an image (`_finish`): fixed by the image's size; no atomics

Precision: products run on tensor cores and keep float32's accuracy. float32 operands are each split in two TF32 parts
("tf32x3"). float16 and bfloat16 features enter as they are, and the float32 operand (weight or r) is cut into parts
that are exact in the type of the product: three bfloat16 parts, or two TF32 parts beside float16. Sums over tiles are
added outside the tensor core, which rounds its own running sum toward zero (Ootomo and Yokota, IJHPCA 2022); so are
sums over more than 128 channels, every 64.
"""

# Kernels carry no types: Triton's compiler gives its own meaning to annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from alges_fast.ops.operands import Operands
from alges_fast.ops.outputs import OUTPUTS
from alges_fast.ops.problem import HIDDEN, Problem, tf32_allowed

# The interpreter multiplies the raw bits of bfloat16 (triton#11584): there, halves become float32 as they are loaded.
_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)
_SCRATCH = 15 * 2**20
_MOST_CLASSES = 1024
_BY_CLASS = {"class_mass", "class_entropy"}


def unavailable() -> str | None:
    """Why this backend cannot run on this machine."""
    if _INTERPRETED.value:
        return None
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "no NVIDIA GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # of many kinds: no C compiler, no headers of Python, no driver library
        return f"Triton cannot build its launcher: {error}"
    return None


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot run these inputs."""
    device = problem.features.device
    if problem.hidden is not None:
        return HIDDEN
    if problem.features.dtype == torch.float64:
        return "float64 runs on the reference backend alone"
    if problem.classes > _MOST_CLASSES:
        return f"{problem.classes} classes are more than {_MOST_CLASSES}"
    if _INTERPRETED.value:
        return None
    if device.type != "cuda":
        return f"features are on {device}, not on a GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor} is below 8.0"
    return None


def bind(operands: Operands) -> Callable[[Operands], list[Tensor]]:
    """What runs calls of this layout."""
    problem, shapes = operands.problem(), operands.shapes()
    plan = choose_plan(
        problem.batch,
        problem.classes,
        problem.channels * math.prod(problem.kernel),
        math.prod(problem.spatial),
        sums=len(problem.outputs & {"image", "semantic_vector"}),
        by_class=bool(problem.outputs & _BY_CLASS),
        features="feature_sum" in problem.outputs,
        float32=problem.features.dtype == torch.float32,
    )

    def run(operands: Operands) -> list[Tensor]:
        results = [operands.features.new_empty(shape, dtype=dtype) for shape, dtype in shapes]
        problem = operands.problem()
        on_device = torch.cuda.device(problem.features.device) if problem.features.is_cuda else contextlib.nullcontext()
        with on_device:
            launch = _Launch(problem, plan)
            for images in _groups(problem.batch, plan.images):
                launch(images, dict(zip(operands.names, results, strict=True)))
        return results

    return run


@dataclass(frozen=True)
class Plan:
    """How one image is cut. All but `images` follow from the image's own size."""

    one_pass: bool
    tile_pixels: int
    tile_channels: int
    tile_classes: int
    """Classes of a tile: K padded to a power of two."""
    chunks: int
    chunk_pixels: int
    tiles_in_flight: int
    """Pixel tiles of a chunk that one segment holds; 1 for one pass."""
    segments: int
    images: int
    """Images of a group: their scratch is within the limit."""
    warps: int
    stages: int

    @property
    def segment_pixels(self) -> int:
        return self.tiles_in_flight * self.tile_pixels


def choose_plan(
    batch: int,
    n_classes: int,
    channels: int,
    pixels: int,
    *,
    sums: int,
    float32: bool,
    by_class: bool = False,
    features: bool = False,
) -> Plan:
    """The plan for images of `pixels`, `channels` patch channels and `sums` (0, 1, 2) outputs of K x C each.

    `float32`: features whose products take both operands in two parts, and so twice the registers. `by_class`: whether
    p is summed by class; `features`: whether the features are.
    """
    classes, padded = max(16, _power_of_2(n_classes)), max(16, _power_of_2(channels))
    row = 4 * channels * (n_classes * sums + features)
    of_scores = 4 * (_score_columns(n_classes, by_class) + n_classes + 1)
    if padded <= 256 and classes <= 64 and classes * padded * max(1, sums) <= 8192:
        # Tiles of 8 KB, 16 for 256 channels, their stages, and the weight: within the 99 KB of the smallest GPU. Larger
        # float32 tiles spill registers from 64 channels on (bench/NOTES.md).
        tile = min(64 if float32 else 128, max(16, (2048 if float32 else 4096) // padded))
        tiles = -(-pixels // tile)
        # A chunk's sums are small beside the features it read, and 128 chunks fill a GPU.
        per_chunk = max(-(-tiles // 128), 4, 16 * classes // tile)
        chunks = -(-tiles // per_chunk)
        images = _fit(batch, chunks * (row + of_scores))
        warps = 8 if padded * tile > 2048 else 4
        # Two stages of 256 float32 channels take 112 KB on sm_80.
        stages = 1 if float32 and padded > 128 else 2
        return Plan(True, tile, padded, classes, chunks, per_chunk * tile, 1, 1, images, warps, stages)

    # The weight of a step over channels is 64 KB at most; from 32 KB on in one stage, for the smallest GPU.
    tile, channel_tile = max(16, min(64, 8192 // classes)), max(16, min(64, 16384 // classes))
    stages = 2 if classes <= 64 else 1
    tiles = -(-pixels // tile)
    # About 1.75 MB of residuals an image in flight, so that four images at least share a group.
    in_flight = min(tiles, max(1, 7 * 2**18 // (4 * (classes + 1) * tile)))
    outer_tiles = -(-channels // channel_tile) * -(-classes // 64)
    # 64 programs of `_outer_sums` an image; sums of several chunks are scratch, of a single one the result itself.
    chunks = max(1, min(in_flight, 64 // outer_tiles, 2**21 // max(row, 1)))
    per_chunk = -(-tiles // chunks)
    chunks = -(-tiles // per_chunk)
    tiles_in_flight = max(1, min(per_chunk, in_flight // chunks))
    scores = chunks * tiles_in_flight * of_scores
    residuals = chunks * tiles_in_flight * tile * 4 * (classes + 1)
    images = _fit(batch, residuals + scores + (chunks * row if chunks > 1 else 4 * channels * features))
    segments = -(-per_chunk // tiles_in_flight)
    cut = chunks, per_chunk * tile, tiles_in_flight, segments, images
    return Plan(False, tile, channel_tile, classes, *cut, 8, stages)


def _score_columns(n_classes: int, by_class: bool) -> int:
    """semantic (K), entropy, margin, confidence; where asked for, class_mass and class_entropy (K each)."""
    return n_classes + 3 + 2 * n_classes * by_class


def _power_of_2(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _fit(batch: int, bytes_per_image: int) -> int:
    return max(1, min(batch, 32768, _SCRATCH // max(1, bytes_per_image)))


def _groups(batch: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, batch)) for start in range(0, batch, size))


class _Launch:
    """Launches the kernels of a plan for groups of images."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem, self.plan = problem, plan
        outputs = problem.outputs
        depth, self.height, self.width = problem.spatial
        self.pixels = depth * self.height * self.width
        per_pixel = [(problem.features, 2), (problem.logits, 2), (problem.residual, 2), (problem.valid, 1)]
        steps = [None if tensor is None else _flat_step(tensor, axis) for tensor, axis in per_pixel]
        flat = problem.kernel == (1, 1, 1) and all(
            step is not None for (tensor, _), step in zip(per_pixel, steps, strict=True) if tensor is not None
        )
        self.strides = [
            None if tensor is None else _strides(tensor, axis, step if flat else None)
            for (tensor, axis), step in zip(per_pixel, steps, strict=True)
        ]
        # Constants the kernels are compiled for: of the model and the call, never of the map or the batch.
        given_dtype, exact = problem.weight_dtype, problem.features.dtype
        relaxed = tf32_allowed()
        self.constants = {
            "K": problem.classes,
            "C": problem.weight[0].numel(),
            "KERNEL": problem.kernel,
            "FLAT": flat,
            "TILE_P": plan.tile_pixels,
            "TILE_C": plan.tile_channels,
            "TILE_K": plan.tile_classes,
        }
        self.product = _product_mode(exact, relaxed)
        self.constants_of_pixels = {
            "WEIGHT_PRODUCT": "exact" if given_dtype == exact and exact != torch.float32 else self.product,
            "PREDICTION": problem.needs_prediction,
            "NORMS": bool(outputs & {"semantic", "norm_map"}),
            "SEMANTIC": "semantic" in outputs,
            "UNCERTAINTY": bool(outputs & {"entropy", "margin", "confidence"}),
            "BY_CLASS": bool(outputs & _BY_CLASS),
            "COUNTS": "class_pixels" in outputs or ("image" in outputs and problem.valid is not None),
        }
        self.columns = _score_columns(problem.classes, bool(outputs & _BY_CLASS))
        self.sums = {"IMAGE": "image" in outputs, "VECTOR": "semantic_vector" in outputs}

    def __call__(self, images: slice, results: dict[str, Tensor]) -> None:
        problem, plan = self.problem, self.plan
        features, logits, residual, valid = (
            None if tensor is None else (tensor[images], strides)
            for tensor, strides in zip(
                (problem.features, problem.logits, problem.residual, problem.valid), self.strides, strict=True
            )
        )
        assert features is not None
        found = {name: tensor[images] for name, tensor in results.items()}
        n_images, n_classes = features[0].shape[0], problem.classes
        new = functools.partial(torch.empty, device=problem.features.device)
        n_scores = plan.chunks * plan.tiles_in_flight
        scores = new(n_images, n_scores, self.columns, dtype=torch.float32)
        counts = new(n_images, n_scores, n_classes + 1, dtype=torch.int32)
        if plan.chunks > 1:
            image, vector = (
                new(n_images, plan.chunks, problem.weight.numel(), dtype=torch.float32) if name in found else None
                for name in ("image", "semantic_vector")
            )
        else:
            image, vector = found.get("image"), found.get("semantic_vector")
        feature_sums = None
        if "feature_sum" in found:
            feature_sums = new(n_images, plan.chunks, problem.channels, dtype=torch.float32)
        sizes = self.height, self.width, self.pixels, plan.chunk_pixels // plan.tile_pixels
        options = {"num_warps": plan.warps, "num_stages": plan.stages}
        operands = (features, problem.weight, problem.bias, logits, residual, valid)
        if plan.one_pass:
            _one_pass[plan.chunks, n_images](
                *operands, image, vector, feature_sums, scores, counts, found.get("norm_map"), *sizes,
                SUM_PRODUCT=self.product, **self.constants, **self.constants_of_pixels, **self.sums, **options,
            )  # fmt: skip
        else:
            residual_scratch = new(n_images, plan.chunks, plan.segment_pixels, plan.tile_classes, dtype=torch.float32)
            predictions = new(n_images, plan.chunks, plan.segment_pixels, dtype=torch.int32)
            outer_grid = (
                plan.chunks * triton.cdiv(problem.weight[0].numel(), plan.tile_channels),
                triton.cdiv(n_classes, min(64, plan.tile_classes)),
                n_images,
            )
            for segment in range(plan.segments):
                _residuals[n_scores, n_images](
                    *operands, residual_scratch, predictions, scores, counts, found.get("norm_map"), *sizes, segment,
                    plan.tiles_in_flight, SUMS=any(self.sums.values()), **self.constants, **self.constants_of_pixels,
                    **options,
                )  # fmt: skip
                if any(self.sums.values()) or feature_sums is not None:
                    _outer_sums[outer_grid](
                        features, valid, residual_scratch, predictions, image, vector, feature_sums, *sizes, segment,
                        plan.tiles_in_flight, SUM_PRODUCT=self.product, TILE_R=min(64, plan.tile_classes),
                        **self.constants, **self.sums, **options,
                    )  # fmt: skip
        size = problem.weight.numel() if any(self.sums.values()) else 0
        n_features = problem.channels if feature_sums is not None else 0
        _finish[1 + triton.cdiv(size, 256) + triton.cdiv(n_features, 256), n_images](
            image, vector, feature_sums, scores, counts, found.get("image"), found.get("semantic_vector"),
            *(found.get(name) for name in OUTPUTS if name not in ("image", "semantic_vector", "norm_map")), self.pixels,
            plan.chunks, n_scores, size, n_features, VALID_GIVEN=valid is not None, K=n_classes, COLUMNS=self.columns,
            TILE=256, TILE_K=plan.tile_classes,
        )  # fmt: skip


def _product_mode(features: torch.dtype, relaxed: bool) -> str:
    """How a float32 operand meets the features (`_product`); relaxed: TF32 is allowed."""
    if features == torch.float32:
        return "tf32" if relaxed else "tf32x3"
    if features == torch.bfloat16:
        return "bfloat16x2" if relaxed else "bfloat16x3"
    return "float16_tf32" if relaxed else "float16_tf32x2"


def _flat_step(tensor: Tensor, axis: int) -> int | None:
    """The stride of a map whose axes from `axis` on are one evenly spaced run, or None."""
    step, extent = None, 0
    for size, stride in zip(reversed(tensor.shape[axis:]), reversed(tensor.stride()[axis:]), strict=True):
        if size == 1:
            continue
        if step is None:
            step = stride
        elif stride != extent:
            return None
        extent = size * stride
    return 1 if step is None else step


def _strides(tensor: Tensor, axis: int, step: int | None) -> tuple[int, ...]:
    """Strides of image, channel, z, y, x; with a flat step, of a map that is one long row."""
    lead = tensor.stride()[:axis] if axis == 2 else (tensor.stride(0), 0)
    return (*lead, *tensor.stride()[axis:]) if step is None else (*lead, 0, 0, step)


# The kernels and their parts. Tiles are (pixels, channels) and (pixels, classes). Of a map they are
# specialised on whether its pixels are a multiple of 16, which lets loads take 16 bytes: two kernels serve all sizes.


@triton.jit
def _top_bits(value, MASK: tl.constexpr):
    return (value.to(tl.int32, bitcast=True) & MASK).to(tl.float32, bitcast=True)


@triton.jit
def _bfloat16(value):
    # Exact: the value has at most 8 significant bits.
    return value if _INTERPRETED else value.to(tl.bfloat16)


@triton.jit
def _product(features, other, MODE: tl.constexpr):
    """features @ other: features as loaded, the float32 `other` cut into parts that the product takes exactly."""
    if MODE == "exact":  # `other` was given in the features' type
        found = tl.dot(features, other.to(features.dtype))
    elif MODE == "bfloat16x3" or MODE == "bfloat16x2":
        high = _top_bits(other, -65536)  # 8 of 24 significant bits
        rest = other - high
        middle = _top_bits(rest, -65536)
        found = tl.dot(features, _bfloat16(middle))
        if MODE == "bfloat16x3":
            found += tl.dot(features, _bfloat16(rest - middle))
        found = tl.dot(features, _bfloat16(high), acc=found)
    elif MODE == "float16_tf32x2":
        high = _top_bits(other, -8192)  # TF32's 11 of 24 significant bits; a float16 has no more
        found = tl.dot(features.to(tl.float32), other - high, input_precision="tf32")
        found = tl.dot(features.to(tl.float32), high, acc=found, input_precision="tf32")
    elif MODE == "float16_tf32":
        found = tl.dot(features.to(tl.float32), other, input_precision="tf32")
    else:
        found = tl.dot(features, other, input_precision=MODE)
    return found


@triton.jit
def _position(first, height, width, TILE_P: tl.constexpr, FLAT: tl.constexpr):
    """The pixels of a tile from `first` on, and their z, y, x; of a map that is one long row, 0, 0 and the pixel."""
    inside = tl.arange(0, TILE_P)
    pixel = first + inside
    if FLAT:
        z, y, x = pixel * 0, pixel * 0, pixel
    else:
        # One 64-bit division a tile; within it 32 bits do.
        row = first // width
        x = (first - row * width).to(tl.int32) + inside
        y = (row % height).to(tl.int32) + x // width
        z = (row // height).to(tl.int32) + y // height
        x, y = x % width, y % height
    return pixel, z, y, x


@triton.jit
def _offset(strides, image, z, y, x):
    by_row = z.to(tl.int64) * strides[2] + y.to(tl.int64) * strides[3]
    return image * strides[0] + by_row + x.to(tl.int64) * strides[4]


@triton.jit
def _counting(valid, image, z, y, x, inside):
    """Which pixels of a tile count."""
    if valid is not None:
        inside = inside & (tl.load(valid[0] + _offset(valid[1], image, z, y, x), mask=inside, other=0) != 0)
    return inside


@triton.jit
def _patches(features, image, z, y, x, counting, channel, height, width, pixels,
             C: tl.constexpr, KERNEL: tl.constexpr, FLAT: tl.constexpr):  # fmt: skip
    """(pixels, patch channels), 0 beyond the map and at pixels that do not count: NaN there must not spread."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    strides = features[1]
    tap = channel % TAPS
    dz = tap // (KERNEL[1] * KERNEL[2]) - KERNEL[0] // 2
    dy = tap // KERNEL[2] % KERNEL[1] - KERNEL[1] // 2
    dx = tap % KERNEL[2] - KERNEL[2] // 2
    shift = (channel // TAPS).to(tl.int64) * strides[1]
    read = counting[:, None] & (channel < C)[None, :]
    if KERNEL[0] > 1:
        shift += dz.to(tl.int64) * strides[2]
        there = z[:, None] + dz[None, :]
        read = read & (there >= 0) & (there < pixels // height // width)
    if KERNEL[1] > 1:
        shift += dy.to(tl.int64) * strides[3]
        there = y[:, None] + dy[None, :]
        read = read & (there >= 0) & (there < height)
    if KERNEL[2] > 1:
        shift += dx.to(tl.int64) * strides[4]
        there = x[:, None] + dx[None, :]
        read = read & (there >= 0) & (there < width)
    place = features[0] + _offset(strides, image, z, y, x)[:, None] + shift[None, :]
    patch = tl.load(place, mask=read, other=0.0)
    return patch.to(tl.float32) if _INTERPRETED else patch


@triton.jit
def _weights(weight, channel, K: tl.constexpr, C: tl.constexpr, TILE_K: tl.constexpr):
    """(patch channels, classes) of the weight."""
    class_ = tl.arange(0, TILE_K)
    place = weight + class_[None, :] * C + channel[:, None]
    return tl.load(place, mask=(class_ < K)[None, :] & (channel < C)[:, None], other=0.0)


@triton.jit
def _given(operand, image, z, y, x, counting, K: tl.constexpr, TILE_K: tl.constexpr):
    """(pixels, classes) of given logits or residual, in float32."""
    class_ = tl.arange(0, TILE_K)
    place = operand[0] + _offset(operand[1], image, z, y, x)[:, None] + class_.to(tl.int64)[None, :] * operand[1][1]
    return tl.load(place, mask=counting[:, None] & (class_ < K)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _predict(logits, K: tl.constexpr, TILE_K: tl.constexpr):
    """The prediction and, with e = exp(s - max s): s - max s, e, Σ e of the other classes, Σ e."""
    class_ = tl.arange(0, TILE_K)
    logits = tl.where((class_ < K)[None, :], logits, float("-inf"))
    largest = tl.max(logits, 1)
    # Ties go to the lowest class. A NaN equals nothing: K is clamped, and the NaN reaches every output through Σ e.
    prediction = tl.min(tl.where(logits == largest[:, None], class_[None, :], K), 1)
    prediction = tl.minimum(prediction, K - 1)
    shifted = logits - largest[:, None]
    exps = tl.exp(shifted)
    predicted = class_[None, :] == prediction[:, None]
    others = tl.sum(tl.where(predicted, 0.0, exps), 1)
    total = others + tl.sum(tl.where(predicted, exps, 0.0), 1)
    return prediction, predicted, shifted, exps, others, total


@triton.jit
def _log1p(value):
    """ln(1 + v) for v >= 0: the hardware's logarithm of 1 + v keeps no digit of a small v."""
    ratio = value / (2.0 + value)  # 2 artanh(v / (2 + v)), at most 0.2 where the series serves
    square = ratio * ratio
    series = 1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square * (1 / 11)))))
    return tl.where(value < 0.5, 2.0 * ratio * series, tl.log(1.0 + value))


@triton.jit
def _uncertainty(predicted, shifted, exps, others, total, counting):
    """Entropy, margin and confidence of each pixel, 0 where it does not count."""
    # -Σ p ln p = ln Σ e - Σ e ln e / Σ e; a class with e = 0 adds nothing, and ln e would be -inf there.
    weighted = tl.sum(exps * tl.where((exps > 0) & (predicted == 0), shifted, 0.0), 1)
    inverse = 1.0 / total
    entropy = _log1p(others) - weighted * inverse
    second = tl.max(tl.where(predicted, 0.0, exps), 1)
    return (
        tl.where(counting, entropy, 0.0),
        tl.where(counting, (1.0 - second) * inverse, 0.0),
        tl.where(counting, inverse, 0.0),
    )


@triton.jit
def _probability(predicted, shifted, exps, others, total, counting):
    """p of every class, and p times the pixel's entropy; 0 where the pixel does not count."""
    p = tl.where(predicted, 1.0, exps) * (1.0 / total)[:, None]
    entropy, _, _ = _uncertainty(predicted, shifted, exps, others, total, counting)
    p = tl.where(counting[:, None], p, 0.0)
    return p, p * entropy[:, None]


@triton.jit(do_not_specialize=["height", "width", "chunk_tiles"])
def _one_pass(
    features, weight, bias, logits, residual, valid, image_sums, vector_sums, feature_sums, scores, counts, norm_map,
    height, width, pixels, chunk_tiles,
    K: tl.constexpr, C: tl.constexpr, KERNEL: tl.constexpr, FLAT: tl.constexpr,
    TILE_P: tl.constexpr, TILE_C: tl.constexpr, TILE_K: tl.constexpr,
    WEIGHT_PRODUCT: tl.constexpr, SUM_PRODUCT: tl.constexpr, PREDICTION: tl.constexpr, NORMS: tl.constexpr,
    SEMANTIC: tl.constexpr, UNCERTAINTY: tl.constexpr, BY_CLASS: tl.constexpr, COUNTS: tl.constexpr,
    IMAGE: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """One chunk of one image: program (chunk, image). Every output of a tile while its patches are at hand.

    features, logits, residual, valid: (pointer, strides) or None.
    image_sums, vector_sums: (images, chunks, K * C), Σ r ⊗ z̃ of the chunk.
    feature_sums: (images, chunks, d), Σ z.
    scores: (images, chunks, K + 3 [+ 2 K]), semantic, entropy, margin, confidence, class_mass, class_entropy.
    counts: (images, chunks, K + 1), pixels of each class, valid pixels.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    COLUMNS: tl.constexpr = K + 3 + 2 * K * BY_CLASS
    chunk, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = image * tl.num_programs(0) + chunk
    channel, class_ = tl.arange(0, TILE_C), tl.arange(0, TILE_K)
    IN_PIECES: tl.constexpr = TILE_C > 128 and WEIGHT_PRODUCT == "tf32x3"
    if PREDICTION and logits is None and not IN_PIECES:
        weights = _weights(weight, channel, K, C, TILE_K)
    image_sum = tl.zeros((TILE_K, TILE_C), tl.float32)
    vector_sum = tl.zeros((TILE_K, TILE_C), tl.float32)
    # Kept a pixel apart and added over pixels after the loop: one exchange between warps instead of one a tile.
    semantic = tl.zeros((TILE_P, TILE_K), tl.float32)
    counted = tl.zeros((TILE_P, TILE_K), tl.int32)
    valid_pixels = tl.zeros((TILE_P,), tl.int32)
    entropy = tl.zeros((TILE_P,), tl.float32)
    margin = tl.zeros((TILE_P,), tl.float32)
    confidence = tl.zeros((TILE_P,), tl.float32)
    mass = tl.zeros((TILE_P, TILE_K), tl.float32)
    mass_entropy = tl.zeros((TILE_P, TILE_K), tl.float32)
    feature_sum = tl.zeros((TILE_C,), tl.float32)

    chunk_pixels = chunk_tiles.to(tl.int64) * TILE_P
    stop = tl.minimum((chunk + 1) * chunk_pixels, pixels)
    for start in range(chunk * chunk_pixels, stop, TILE_P):
        pixel, z, y, x = _position(start, height, width, TILE_P, FLAT)
        inside = pixel < stop
        counting = _counting(valid, image, z, y, x, inside)
        if NORMS or IMAGE or VECTOR or (PREDICTION and logits is None) or feature_sums is not None:
            patch = _patches(features, image, z, y, x, counting, channel, height, width, pixels, C, KERNEL, FLAT)

        if PREDICTION:
            if logits is None:
                if IN_PIECES:
                    # From cache again: the chain of truncating sums inside the tensor core ends every 64 channels.
                    by_class = tl.zeros((TILE_K, TILE_P), tl.float32)
                    for first in tl.static_range(0, TILE_C, 64):
                        some = first + tl.arange(0, 64)
                        piece = _patches(
                            features, image, z, y, x, counting, some, height, width, pixels, C, KERNEL, FLAT
                        )
                        found = _product(piece, _weights(weight, some, K, C, TILE_K), WEIGHT_PRODUCT)
                        by_class += tl.trans(found)
                    s = tl.trans(by_class)
                else:
                    s = _product(patch, weights, WEIGHT_PRODUCT)
                if bias is not None:
                    s += tl.load(bias + class_, mask=class_ < K, other=0.0)[None, :]
            else:
                s = _given(logits, image, z, y, x, counting, K, TILE_K)
            _, predicted, shifted, exps, others, total = _predict(s, K, TILE_K)
            own = predicted & counting[:, None]
        if residual is not None:
            r = _given(residual, image, z, y, x, counting, K, TILE_K)
        elif PREDICTION:
            # At the prediction minus the sum of the other classes' p: p - 1 cancels near p = 1.
            r = tl.where(predicted, -others[:, None], exps) * (1.0 / total)[:, None]
            r = tl.where(counting[:, None], r, 0.0)

        # Each tile's product is added outside the tensor core; transposed, for Triton would fuse the sum back in.
        if IMAGE:
            image_sum += tl.trans(_product(tl.trans(patch), r, SUM_PRODUCT))
        if VECTOR:
            vector_sum += tl.trans(_product(tl.trans(patch), tl.where(own, r, 0.0), SUM_PRODUCT))
        if NORMS:
            values = patch.to(tl.float32)
            norm = tl.sqrt(tl.sum(r * r, 1)) * tl.sqrt(tl.sum(values * values, 1))
            norm = tl.where(counting, norm, 0.0)
            if norm_map is not None:
                tl.store(norm_map + image * pixels + pixel, norm, mask=inside)
            if SEMANTIC:
                semantic += tl.where(own, norm[:, None], 0.0)
        if COUNTS:
            valid_pixels += counting.to(tl.int32)
            if PREDICTION:
                counted += own.to(tl.int32)
        if UNCERTAINTY:
            more = _uncertainty(predicted, shifted, exps, others, total, counting)
            entropy += more[0]
            margin += more[1]
            confidence += more[2]
        if BY_CLASS:
            p, p_entropy = _probability(predicted, shifted, exps, others, total, counting)
            mass += p
            mass_entropy += p_entropy
        if feature_sums is not None:
            feature_sum += tl.sum(patch.to(tl.float32), 0)

    place = row * (K * C) + class_[:, None] * C + channel[None, :]
    kept = (class_ < K)[:, None] & (channel < C)[None, :]
    if IMAGE:
        tl.store(image_sums + place, image_sum, mask=kept)
    if VECTOR:
        tl.store(vector_sums + place, vector_sum, mask=kept)
    if feature_sums is not None:
        # Of a pixel's patch the middle is the pixel itself.
        middle = (channel < C) & (channel % TAPS == TAPS // 2)
        tl.store(feature_sums + row * (C // TAPS) + channel // TAPS, feature_sum, mask=middle)
    scores += row * COLUMNS
    if SEMANTIC:
        tl.store(scores + class_, tl.sum(semantic, 0), mask=class_ < K)
    if UNCERTAINTY:
        tl.store(scores + K, tl.sum(entropy, 0))
        tl.store(scores + K + 1, tl.sum(margin, 0))
        tl.store(scores + K + 2, tl.sum(confidence, 0))
    if BY_CLASS:
        tl.store(scores + K + 3 + class_, tl.sum(mass, 0), mask=class_ < K)
        tl.store(scores + 2 * K + 3 + class_, tl.sum(mass_entropy, 0), mask=class_ < K)
    counts += row * (K + 1)
    if COUNTS:
        tl.store(counts + K, tl.sum(valid_pixels, 0))
        if PREDICTION:
            tl.store(counts + class_, tl.sum(counted, 0), mask=class_ < K)


@triton.jit(do_not_specialize=["height", "width", "chunk_tiles", "segment", "tiles_in_flight"])
def _residuals(
    features, weight, bias, logits, residual, valid, residual_scratch, predictions, scores, counts, norm_map,
    height, width, pixels, chunk_tiles, segment, tiles_in_flight,
    K: tl.constexpr, C: tl.constexpr, KERNEL: tl.constexpr, FLAT: tl.constexpr,
    TILE_P: tl.constexpr, TILE_C: tl.constexpr, TILE_K: tl.constexpr,
    WEIGHT_PRODUCT: tl.constexpr, PREDICTION: tl.constexpr, NORMS: tl.constexpr, SEMANTIC: tl.constexpr,
    UNCERTAINTY: tl.constexpr, BY_CLASS: tl.constexpr, COUNTS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk's segment: program (chunk * tiles_in_flight + tile, image). Keeps r, adds to the scores.

    residual_scratch: (images, chunks, segment pixels, TILE_K), r.
    predictions: (images, chunks, segment pixels), -1 where a pixel does not count.
    scores, counts: as in `_one_pass`, a row a program.
    """
    program, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk, tile = program // tiles_in_flight, program % tiles_in_flight
    row = image * tl.num_programs(0) + program
    class_ = tl.arange(0, TILE_K)
    chunk_pixels = chunk_tiles.to(tl.int64) * TILE_P
    stop = tl.minimum((chunk + 1) * chunk_pixels, pixels)
    # A chunk need not be whole segments: tiles past its end count nothing.
    first = chunk * chunk_pixels + (segment * tiles_in_flight + tile) * TILE_P
    pixel, z, y, x = _position(first, height, width, TILE_P, FLAT)
    inside = pixel < stop
    counting = _counting(valid, image, z, y, x, inside)

    squares = tl.zeros((TILE_P,), tl.float32)
    s = tl.zeros((TILE_K, TILE_P), tl.float32)
    if NORMS or (PREDICTION and logits is None):
        for start in range(0, C, TILE_C):
            channel = start + tl.arange(0, TILE_C)
            patch = _patches(features, image, z, y, x, counting, channel, height, width, pixels, C, KERNEL, FLAT)
            if PREDICTION and logits is None:
                weights = _weights(weight, channel, K, C, TILE_K)
                s += tl.trans(_product(patch, weights, WEIGHT_PRODUCT))  # transposed as in `_one_pass`
            if NORMS:
                values = patch.to(tl.float32)
                squares += tl.sum(values * values, 1)

    if PREDICTION:
        if logits is not None:
            by_pixel = _given(logits, image, z, y, x, counting, K, TILE_K)
        else:
            by_pixel = tl.trans(s)
            if bias is not None:
                by_pixel += tl.load(bias + class_, mask=class_ < K, other=0.0)[None, :]
        prediction, predicted, shifted, exps, others, total = _predict(by_pixel, K, TILE_K)
        own = predicted & counting[:, None]
    if residual is not None:
        r = _given(residual, image, z, y, x, counting, K, TILE_K)
    elif PREDICTION:
        r = tl.where(predicted, -others[:, None], exps) * (1.0 / total)[:, None]
        r = tl.where(counting[:, None], r, 0.0)

    if SUMS:
        at = row * TILE_P + tl.arange(0, TILE_P)
        tl.store(residual_scratch + at[:, None] * TILE_K + class_[None, :], r)
        if PREDICTION:
            tl.store(predictions + at, tl.where(counting, prediction, -1))
    scores += row * (K + 3 + 2 * K * BY_CLASS)
    counts += row * (K + 1)
    later = segment > 0
    known = tl.minimum(segment, 1) * K  # classes with sums of earlier segments: none or all
    if NORMS:
        norm = tl.sqrt(tl.sum(r * r, 1)) * tl.sqrt(squares)
        norm = tl.where(counting, norm, 0.0)
        if norm_map is not None:
            tl.store(norm_map + image * pixels + pixel, norm, mask=inside)
        if SEMANTIC:
            before = tl.load(scores + class_, mask=class_ < known, other=0.0)
            tl.store(scores + class_, before + tl.sum(tl.where(own, norm[:, None], 0.0), 0), mask=class_ < K)
    if UNCERTAINTY:
        entropy, margin, confidence = _uncertainty(predicted, shifted, exps, others, total, counting)
        tl.store(scores + K, tl.where(later, tl.load(scores + K), 0) + tl.sum(entropy, 0))
        tl.store(scores + K + 1, tl.where(later, tl.load(scores + K + 1), 0) + tl.sum(margin, 0))
        tl.store(scores + K + 2, tl.where(later, tl.load(scores + K + 2), 0) + tl.sum(confidence, 0))
    if BY_CLASS:
        p, p_entropy = _probability(predicted, shifted, exps, others, total, counting)
        mass = scores + K + 3 + class_
        before = tl.load(mass, mask=class_ < known, other=0.0)
        tl.store(mass, before + tl.sum(p, 0), mask=class_ < K)
        before = tl.load(mass + K, mask=class_ < known, other=0.0)
        tl.store(mass + K, before + tl.sum(p_entropy, 0), mask=class_ < K)
    if COUNTS:
        tl.store(counts + K, tl.where(later, tl.load(counts + K), 0) + tl.sum(counting.to(tl.int32), 0))
        if PREDICTION:
            before = tl.load(counts + class_, mask=class_ < known, other=0)
            tl.store(counts + class_, before + tl.sum(own.to(tl.int32), 0), mask=class_ < K)


@triton.jit(do_not_specialize=["height", "width", "chunk_tiles", "segment", "tiles_in_flight"])
def _outer_sums(
    features, valid, residual_scratch, predictions, image_sums, vector_sums, feature_sums,
    height, width, pixels, chunk_tiles, segment, tiles_in_flight,
    K: tl.constexpr, C: tl.constexpr, KERNEL: tl.constexpr, FLAT: tl.constexpr,
    TILE_P: tl.constexpr, TILE_C: tl.constexpr, TILE_K: tl.constexpr, TILE_R: tl.constexpr,
    SUM_PRODUCT: tl.constexpr, IMAGE: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """A segment's Σ r ⊗ z̃ and Σ z, added to its chunk's.

    Program (chunk * channel tiles + channel tile, class tile, image).
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    N_TILES: tl.constexpr = (C + TILE_C - 1) // TILE_C
    chunk, image = (tl.program_id(0) // N_TILES).to(tl.int64), tl.program_id(2).to(tl.int64)
    row = image * (tl.num_programs(0) // N_TILES) + chunk
    channel = tl.program_id(0) % N_TILES * TILE_C + tl.arange(0, TILE_C)
    class_ = tl.program_id(1) * TILE_R + tl.arange(0, TILE_R)
    place = row * (K * C) + class_[:, None] * C + channel[None, :]
    kept = (class_ < K)[:, None] & (channel < C)[None, :]
    later = kept & (class_ < tl.minimum(segment, 1) * K)[:, None]
    if IMAGE:
        image_sum = tl.load(image_sums + place, mask=later, other=0.0)
    if VECTOR:
        vector_sum = tl.load(vector_sums + place, mask=later, other=0.0)
    if feature_sums is not None:
        # Of a pixel's patch the middle is the pixel itself; one class tile adds it up.
        middle = (channel < C) & (channel % TAPS == TAPS // 2) & (tl.program_id(1) == 0)
        feature_place = feature_sums + row * (C // TAPS) + channel // TAPS
        feature_sum = tl.load(feature_place, mask=middle & (segment > 0), other=0.0)

    chunk_pixels = chunk_tiles.to(tl.int64) * TILE_P
    segment_pixels = tiles_in_flight * TILE_P
    stop = tl.minimum((chunk + 1) * chunk_pixels, pixels)
    first = chunk * chunk_pixels + segment.to(tl.int64) * segment_pixels
    for start in range(0, segment_pixels, TILE_P):
        in_segment = start + tl.arange(0, TILE_P)
        pixel, z, y, x = _position(first + start, height, width, TILE_P, FLAT)
        counting = _counting(valid, image, z, y, x, pixel < stop)
        patch = tl.trans(_patches(features, image, z, y, x, counting, channel, height, width, pixels, C, KERNEL, FLAT))
        at = row * segment_pixels + in_segment
        if IMAGE or VECTOR:
            r = tl.load(residual_scratch + at[:, None] * TILE_K + class_[None, :])
        if feature_sums is not None:
            feature_sum += tl.sum(patch.to(tl.float32), 1)
        if IMAGE:
            image_sum += tl.trans(_product(patch, r, SUM_PRODUCT))  # transposed as in `_one_pass`
        if VECTOR:
            own = class_[None, :] == tl.load(predictions + at)[:, None]
            vector_sum += tl.trans(_product(patch, tl.where(own, r, 0.0), SUM_PRODUCT))

    if IMAGE:
        tl.store(image_sums + place, image_sum, mask=kept)
    if VECTOR:
        tl.store(vector_sums + place, vector_sum, mask=kept)
    if feature_sums is not None:
        tl.store(feature_place, feature_sum, mask=middle)


@triton.jit(do_not_specialize=["pixels", "n_sums", "n_scores"])
def _finish(
    image_sums, vector_sums, feature_sums, scores, counts, image, vector,
    semantic, class_pixels, entropy, margin, confidence, class_mass, class_entropy, feature_sum,
    pixels, n_sums, n_scores, size, n_features,
    VALID_GIVEN: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """An image's partial sums, added up: program (the scores, blocks of K * C, blocks of d; image)."""
    block, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    score_row, count_row = scores + b * n_scores * COLUMNS, counts + b * n_scores * (K + 1)
    first_of_features = 1 + tl.cdiv(size, TILE)
    if block == 0:
        class_ = tl.arange(0, TILE_K)
        known = class_ < K
        if semantic is not None:
            tl.store(semantic + b * K + class_, _total(score_row, class_, known, n_scores, COLUMNS, tl.float32), known)
        if class_pixels is not None:
            tl.store(class_pixels + b * K + class_, _total(count_row, class_, known, n_scores, K + 1, tl.int64), known)
        if class_mass is not None:
            column = class_ + K + 3
            tl.store(
                class_mass + b * K + class_, _total(score_row, column, known, n_scores, COLUMNS, tl.float32), known
            )
        if class_entropy is not None:
            column = class_ + 2 * K + 3
            of_class = _total(score_row, column, known, n_scores, COLUMNS, tl.float32)
            tl.store(class_entropy + b * K + class_, of_class, known)
        one = tl.arange(0, 1)
        if entropy is not None:
            tl.store(entropy + b + one, _total(score_row, K + one, one == 0, n_scores, COLUMNS, tl.float32))
        if margin is not None:
            tl.store(margin + b + one, _total(score_row, K + 1 + one, one == 0, n_scores, COLUMNS, tl.float32))
        if confidence is not None:
            tl.store(confidence + b + one, _total(score_row, K + 2 + one, one == 0, n_scores, COLUMNS, tl.float32))
    elif block < first_of_features:
        element = (block - 1).to(tl.int64) * TILE + tl.arange(0, TILE)
        inside = element < size
        if image is not None:
            total = _total(image_sums + b * n_sums * size, element, inside, n_sums, size, tl.float32)
            n_valid = pixels
            if VALID_GIVEN:
                one = tl.arange(0, 1)
                n_valid = tl.maximum(tl.sum(_total(count_row, K + one, one == 0, n_scores, K + 1, tl.int64), 0), 1)
            tl.store(image + b * size + element, total / n_valid.to(tl.float32), mask=inside)
        if vector is not None:
            total = _total(vector_sums + b * n_sums * size, element, inside, n_sums, size, tl.float32)
            tl.store(vector + b * size + element, total, mask=inside)
    elif feature_sum is not None:
        feature = (block - first_of_features) * TILE + tl.arange(0, TILE)
        counted = feature < n_features
        of_feature = _total(feature_sums + b * n_sums * n_features, feature, counted, n_sums, n_features, tl.float32)
        tl.store(feature_sum + b * n_features + feature, of_feature, mask=counted)


@triton.jit
def _total(parts, column, wanted, n_parts, columns, TYPE: tl.constexpr):
    """Σ over the rows of (n_parts, columns), a few rows at a time as a tree, their sums one after the other."""
    ROWS: tl.constexpr = max(1, min(64, 4096 // column.shape[0]))
    total = tl.zeros(column.shape, TYPE)
    for first in range(0, n_parts, ROWS):
        row = first + tl.arange(0, ROWS)
        place = parts + row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.sum(tl.load(place, mask=(row < n_parts)[:, None] & wanted[None, :], other=0).to(TYPE), 0)
    return total
