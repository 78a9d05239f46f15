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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from alges_fast.ops.native import Arguments
from alges_fast.ops.operands import Operands
from alges_fast.ops.outputs import TABLE, PixelGradients
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
    problem, names, arguments = operands.problem(), operands.names, Arguments(operands)
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
    launch = _Launch(problem, plan)

    def run(operands: Operands) -> list[Tensor]:
        results, given, _, _ = arguments.of(operands)
        device = operands.features.device
        elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
            launch(given, dict(zip(names, results, strict=True)))
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


class Given(NamedTuple):
    """What a call is given: maps as (tensor, strides of image, channel, z, y, x), the rest contiguous; or None."""

    features: Any
    weight: Any
    bias: Any
    logits: Any
    residual: Any
    valid: Any


class Sums(NamedTuple):
    """Partial sums of every chunk of every image; None where they are not asked for.

    image, vector: (images, chunks, K * C), Σ r ⊗ z̃, of all pixels and of each class's own row.
    features: (images, chunks, d), Σ z.
    scores: (images, chunks, K + 3 [+ 2 K]), semantic, entropy, margin, confidence, class_mass, class_entropy.
    counts: (images, chunks, K + 1), pixels of each class, valid pixels.
    """

    image: Any
    vector: Any
    features: Any
    scores: Any
    counts: Any


class Head(NamedTuple):
    """Sizes the kernels are compiled for: of the model, and of its tiles; never of the map or the batch."""

    K: int
    C: int
    KERNEL: tuple[int, int, int]
    FLAT: bool
    """Whether the map is one long row."""
    TILE_P: int
    TILE_C: int
    TILE_K: int


class Asked(NamedTuple):
    """What the kernels are compiled to do for each pixel. A field that is handed to a function is named first:
    triton 3.6 hands over a bare str of it, not a constant."""

    WEIGHT_PRODUCT: str
    SUM_PRODUCT: str
    PATCHES: bool
    PREDICTION: bool
    NORMS: bool
    SEMANTIC: bool
    UNCERTAINTY: bool
    BY_CLASS: bool
    COUNTS: bool
    IMAGE: bool
    VECTOR: bool


class _Launch:
    """Launches the kernels of a plan for groups of images. Holds the layout of calls, and no tensor."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.plan, self.outputs, self.batch = plan, problem.outputs, problem.batch
        depth, self.height, self.width = problem.spatial
        self.pixels = depth * self.height * self.width
        maps = [(problem.features, 2), (problem.logits, 2), (problem.residual, 2), (problem.valid, 1)]
        steps = [None if tensor is None else _flat_step(tensor, axis) for tensor, axis in maps]
        flat = problem.kernel == (1, 1, 1) and all(
            step is not None for (tensor, _), step in zip(maps, steps, strict=True) if tensor is not None
        )
        self.strides = [
            () if tensor is None else _strides(tensor, axis, step if flat else None)
            for (tensor, axis), step in zip(maps, steps, strict=True)
        ]
        tiles = plan.tile_pixels, plan.tile_channels, plan.tile_classes
        self.channels = problem.channels
        self.head = Head(problem.classes, problem.weight[0].numel(), problem.kernel, flat, *tiles)
        self.columns = _score_columns(problem.classes, bool(problem.outputs & _BY_CLASS))
        self.asked = {relaxed: _asked(problem, relaxed) for relaxed in (False, True)}

    def __call__(self, tensors: Sequence[Tensor | None], results: dict[str, Tensor]) -> None:
        """tensors: as a call of this layout is given them, in the order of `Arguments`."""
        asked = self.asked[tf32_allowed()]
        if self.plan.images >= self.batch:
            self.launch(tensors, self.batch, asked, PixelGradients(**results))
            return
        for images in _groups(self.batch, self.plan.images):
            features, weight, bias, *maps = tensors[:6]
            of_group = [None if tensor is None else tensor[images] for tensor in (features, *maps)]
            given = [of_group[0], weight, bias, *of_group[1:]]
            here = PixelGradients(**{name: tensor[images] for name, tensor in results.items()})
            self.launch(given, images.stop - images.start, asked, here)

    def launch(self, tensors: Sequence[Tensor | None], n_images: int, asked: Asked, results: PixelGradients) -> None:
        plan, head = self.plan, self.head
        features, weight, bias, *others = tensors[:6]
        assert features is not None
        of_features, logits, residual, valid = (
            None if tensor is None else (tensor, strides)
            for tensor, strides in zip((features, *others), self.strides, strict=True)
        )
        given, n_scores = Given(of_features, weight, bias, logits, residual, valid), plan.chunks * plan.tiles_in_flight
        new = functools.partial(torch.empty, device=features.device)

        def partial(name: str, size: int) -> Tensor | None:
            return new(n_images, plan.chunks, size, dtype=torch.float32) if name in self.outputs else None

        size = head.K * head.C if asked.IMAGE or asked.VECTOR else 0
        several = plan.chunks > 1  # of a single chunk the sums are the result
        sums = Sums(
            image=partial("image", size) if several else results.image,
            vector=partial("semantic_vector", size) if several else results.semantic_vector,
            features=partial("feature_sum", self.channels),
            scores=new(n_images, n_scores, self.columns, dtype=torch.float32),
            counts=new(n_images, n_scores, head.K + 1, dtype=torch.int32),
        )
        sizes = self.height, self.width, self.pixels, plan.chunk_pixels // plan.tile_pixels
        compiled = {"HEAD": head, "ASKED": asked, "num_warps": plan.warps, "num_stages": plan.stages}
        if plan.one_pass:
            _one_pass[plan.chunks, n_images](given, sums, results.norm_map, *sizes, **compiled)
        else:
            in_segment = n_images, plan.chunks, plan.segment_pixels
            scratch = new(*in_segment, head.TILE_K, dtype=torch.float32), new(*in_segment, dtype=torch.int32)
            channel_tiles, class_tiles = triton.cdiv(head.C, head.TILE_C), triton.cdiv(head.K, min(64, head.TILE_K))
            outer_grid = plan.chunks * channel_tiles, class_tiles, n_images
            for segment in range(plan.segments):
                of_segment = *sizes, segment, plan.tiles_in_flight
                _residuals[n_scores, n_images](given, scratch, sums, results.norm_map, *of_segment, **compiled)
                if size or sums.features is not None:
                    _outer_sums[outer_grid](given, scratch, sums, *of_segment, **compiled)
        n_features = 0 if sums.features is None else self.channels
        _finish[1 + triton.cdiv(size, 256) + triton.cdiv(n_features, 256), n_images](
            sums, results, self.pixels, plan.chunks, n_scores, size, n_features,
            VALID_GIVEN=valid is not None, HEAD=head, COLUMNS=self.columns, TILE=256,
        )  # fmt: skip


def _asked(problem: Problem, relaxed: bool) -> Asked:
    """What is asked of the kernels, with TF32 allowed or not."""
    outputs, exact = problem.outputs, problem.features.dtype
    of_logits = problem.needs_prediction and problem.logits is None
    product = _product_mode(exact, relaxed)
    return Asked(
        WEIGHT_PRODUCT="exact" if problem.weight_dtype == exact and exact != torch.float32 else product,
        SUM_PRODUCT=product,
        PATCHES=of_logits or any(TABLE[name].patch is not None for name in outputs),
        PREDICTION=problem.needs_prediction,
        NORMS=bool(outputs & {"semantic", "norm_map"}),
        SEMANTIC="semantic" in outputs,
        UNCERTAINTY=bool(outputs & {"entropy", "margin", "confidence"}),
        BY_CLASS=bool(outputs & _BY_CLASS),
        COUNTS="class_pixels" in outputs or ("image" in outputs and problem.valid is not None),
        IMAGE="image" in outputs,
        VECTOR="semantic_vector" in outputs,
    )


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
        product = tl.dot(features, other.to(features.dtype))
    elif MODE == "bfloat16x3" or MODE == "bfloat16x2":
        high = _top_bits(other, -65536)  # 8 of 24 significant bits
        rest = other - high
        middle = _top_bits(rest, -65536)
        product = tl.dot(features, _bfloat16(middle))
        if MODE == "bfloat16x3":
            product += tl.dot(features, _bfloat16(rest - middle))
        product = tl.dot(features, _bfloat16(high), acc=product)
    elif MODE == "float16_tf32x2":
        high = _top_bits(other, -8192)  # TF32's 11 of 24 significant bits; a float16 has no more
        product = tl.dot(features.to(tl.float32), other - high, input_precision="tf32")
        product = tl.dot(features.to(tl.float32), high, acc=product, input_precision="tf32")
    elif MODE == "float16_tf32":
        product = tl.dot(features.to(tl.float32), other, input_precision="tf32")
    else:
        product = tl.dot(features, other, input_precision=MODE)
    return product


@triton.jit
def _position(first, height, width, HEAD: tl.constexpr):
    """The pixels of a tile from `first` on, and their z, y, x; of a map that is one long row, 0, 0 and the pixel."""
    inside = tl.arange(0, HEAD.TILE_P)
    pixel = first + inside
    if HEAD.FLAT:
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
def _offset(strides, at):
    image, z, y, x = at
    by_row = z.to(tl.int64) * strides[2] + y.to(tl.int64) * strides[3]
    return image * strides[0] + by_row + x.to(tl.int64) * strides[4]


@triton.jit
def _counting(valid, at, inside):
    """Which pixels of a tile count."""
    if valid is not None:
        inside = inside & (tl.load(valid[0] + _offset(valid[1], at), mask=inside, other=0) != 0)
    return inside


@triton.jit
def _patches(features, at, counting, channel, height, width, pixels, HEAD: tl.constexpr):
    """(pixels, patch channels), 0 beyond the map and at pixels that do not count: NaN there must not spread."""
    KERNEL: tl.constexpr = HEAD.KERNEL
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    _, z, y, x = at
    strides = features[1]
    tap = channel % TAPS
    dz = tap // (KERNEL[1] * KERNEL[2]) - KERNEL[0] // 2
    dy = tap // KERNEL[2] % KERNEL[1] - KERNEL[1] // 2
    dx = tap % KERNEL[2] - KERNEL[2] // 2
    shift = (channel // TAPS).to(tl.int64) * strides[1]
    read = counting[:, None] & (channel < HEAD.C)[None, :]
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
    place = features[0] + _offset(strides, at)[:, None] + shift[None, :]
    patch = tl.load(place, mask=read, other=0.0)
    return patch.to(tl.float32) if _INTERPRETED else patch


@triton.jit
def _weights(weight, channel, HEAD: tl.constexpr):
    """(patch channels, classes) of the weight."""
    class_ = tl.arange(0, HEAD.TILE_K)
    place = weight + class_[None, :] * HEAD.C + channel[:, None]
    return tl.load(place, mask=(class_ < HEAD.K)[None, :] & (channel < HEAD.C)[:, None], other=0.0)


@triton.jit
def _given(operand, at, counting, HEAD: tl.constexpr):
    """(pixels, classes) of given logits or residual, in float32."""
    class_ = tl.arange(0, HEAD.TILE_K)
    place = operand[0] + _offset(operand[1], at)[:, None] + class_.to(tl.int64)[None, :] * operand[1][1]
    return tl.load(place, mask=counting[:, None] & (class_ < HEAD.K)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _predict(logits, HEAD: tl.constexpr):
    """The prediction, as a class and as a mask, and, with e = exp(s - max s): s - max s, e, Σ e of the others, Σ e."""
    K: tl.constexpr = HEAD.K
    class_ = tl.arange(0, HEAD.TILE_K)
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
def _uncertainty(softmax, counting):
    """Entropy, margin and confidence of each pixel, 0 where it does not count. softmax: what `_predict` returns."""
    _, predicted, shifted, exps, others, total = softmax
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
def _probability(softmax, counting):
    """p of every class, and p times the pixel's entropy; 0 where the pixel does not count."""
    _, predicted, _, exps, _, total = softmax
    p = tl.where(predicted, 1.0, exps) * (1.0 / total)[:, None]
    entropy, _, _ = _uncertainty(softmax, counting)
    p = tl.where(counting[:, None], p, 0.0)
    return p, p * entropy[:, None]


@triton.jit(do_not_specialize=["height", "width", "chunk_tiles"])
def _one_pass(
    given, sums, norm_map, height, width, pixels, chunk_tiles, HEAD: tl.constexpr, ASKED: tl.constexpr
):  # fmt: skip
    """One chunk of one image: program (chunk, image). Every output of a tile while its patches are at hand.

    given, sums, HEAD, ASKED: `Given`, `Sums`, `Head`, `Asked`.
    """
    K: tl.constexpr = HEAD.K
    C: tl.constexpr = HEAD.C
    TILE_P: tl.constexpr = HEAD.TILE_P
    TILE_C: tl.constexpr = HEAD.TILE_C
    TILE_K: tl.constexpr = HEAD.TILE_K
    WEIGHT_PRODUCT: tl.constexpr = ASKED.WEIGHT_PRODUCT
    SUM_PRODUCT: tl.constexpr = ASKED.SUM_PRODUCT
    TAPS: tl.constexpr = HEAD.KERNEL[0] * HEAD.KERNEL[1] * HEAD.KERNEL[2]
    COLUMNS: tl.constexpr = K + 3 + 2 * K * ASKED.BY_CLASS
    chunk, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = image * tl.num_programs(0) + chunk
    channel, class_ = tl.arange(0, TILE_C), tl.arange(0, TILE_K)
    IN_PIECES: tl.constexpr = TILE_C > 128 and WEIGHT_PRODUCT == "tf32x3"
    if ASKED.PREDICTION and given.logits is None and not IN_PIECES:
        weights = _weights(given.weight, channel, HEAD)
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
        pixel, z, y, x = _position(start, height, width, HEAD)
        at = (image, z, y, x)
        inside = pixel < stop
        counting = _counting(given.valid, at, inside)
        if ASKED.PATCHES:
            patch = _patches(given.features, at, counting, channel, height, width, pixels, HEAD)

        if ASKED.PREDICTION:
            if given.logits is None:
                if IN_PIECES:
                    # From cache again: the chain of truncating sums inside the tensor core ends every 64 channels.
                    by_class = tl.zeros((TILE_K, TILE_P), tl.float32)
                    for first in tl.static_range(0, TILE_C, 64):
                        some = first + tl.arange(0, 64)
                        piece = _patches(given.features, at, counting, some, height, width, pixels, HEAD)
                        product = _product(piece, _weights(given.weight, some, HEAD), WEIGHT_PRODUCT)
                        by_class += tl.trans(product)
                    s = tl.trans(by_class)
                else:
                    s = _product(patch, weights, WEIGHT_PRODUCT)
                if given.bias is not None:
                    s += tl.load(given.bias + class_, mask=class_ < K, other=0.0)[None, :]
            else:
                s = _given(given.logits, at, counting, HEAD)
            softmax = _predict(s, HEAD)
            _, predicted, _, exps, others, total = softmax
            own = predicted & counting[:, None]
        if given.residual is not None:
            r = _given(given.residual, at, counting, HEAD)
        elif ASKED.PREDICTION:
            # At the prediction minus the sum of the other classes' p: p - 1 cancels near p = 1.
            r = tl.where(predicted, -others[:, None], exps) * (1.0 / total)[:, None]
            r = tl.where(counting[:, None], r, 0.0)

        # Each tile's product is added outside the tensor core; transposed, for Triton would fuse the sum back in.
        if ASKED.IMAGE:
            image_sum += tl.trans(_product(tl.trans(patch), r, SUM_PRODUCT))
        if ASKED.VECTOR:
            vector_sum += tl.trans(_product(tl.trans(patch), tl.where(own, r, 0.0), SUM_PRODUCT))
        if ASKED.NORMS:
            values = patch.to(tl.float32)
            norm = tl.sqrt(tl.sum(r * r, 1)) * tl.sqrt(tl.sum(values * values, 1))
            norm = tl.where(counting, norm, 0.0)
            if norm_map is not None:
                tl.store(norm_map + image * pixels + pixel, norm, mask=inside)
            if ASKED.SEMANTIC:
                semantic += tl.where(own, norm[:, None], 0.0)
        if ASKED.COUNTS:
            valid_pixels += counting.to(tl.int32)
            if ASKED.PREDICTION:
                counted += own.to(tl.int32)
        if ASKED.UNCERTAINTY:
            more = _uncertainty(softmax, counting)
            entropy += more[0]
            margin += more[1]
            confidence += more[2]
        if ASKED.BY_CLASS:
            p, p_entropy = _probability(softmax, counting)
            mass += p
            mass_entropy += p_entropy
        if sums.features is not None:
            feature_sum += tl.sum(patch.to(tl.float32), 0)

    place = row * (K * C) + class_[:, None] * C + channel[None, :]
    kept = (class_ < K)[:, None] & (channel < C)[None, :]
    if ASKED.IMAGE:
        tl.store(sums.image + place, image_sum, mask=kept)
    if ASKED.VECTOR:
        tl.store(sums.vector + place, vector_sum, mask=kept)
    if sums.features is not None:
        # Of a pixel's patch the middle is the pixel itself.
        middle = (channel < C) & (channel % TAPS == TAPS // 2)
        tl.store(sums.features + row * (C // TAPS) + channel // TAPS, feature_sum, mask=middle)
    scores = sums.scores + row * COLUMNS
    if ASKED.SEMANTIC:
        tl.store(scores + class_, tl.sum(semantic, 0), mask=class_ < K)
    if ASKED.UNCERTAINTY:
        tl.store(scores + K, tl.sum(entropy, 0))
        tl.store(scores + K + 1, tl.sum(margin, 0))
        tl.store(scores + K + 2, tl.sum(confidence, 0))
    if ASKED.BY_CLASS:
        tl.store(scores + K + 3 + class_, tl.sum(mass, 0), mask=class_ < K)
        tl.store(scores + 2 * K + 3 + class_, tl.sum(mass_entropy, 0), mask=class_ < K)
    counts = sums.counts + row * (K + 1)
    if ASKED.COUNTS:
        tl.store(counts + K, tl.sum(valid_pixels, 0))
        if ASKED.PREDICTION:
            tl.store(counts + class_, tl.sum(counted, 0), mask=class_ < K)


@triton.jit(do_not_specialize=["height", "width", "chunk_tiles", "segment", "tiles_in_flight"])
def _residuals(
    given, scratch, sums, norm_map, height, width, pixels, chunk_tiles, segment, tiles_in_flight,
    HEAD: tl.constexpr, ASKED: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk's segment: program (chunk * tiles_in_flight + tile, image). Keeps r, adds to the scores.

    scratch: (images, chunks, segment pixels, TILE_K), r; (images, chunks, segment pixels), the prediction, -1 where a
    pixel does not count. Of the sums, scores and counts have a row a program.
    """
    K: tl.constexpr = HEAD.K
    TILE_P: tl.constexpr = HEAD.TILE_P
    TILE_C: tl.constexpr = HEAD.TILE_C
    TILE_K: tl.constexpr = HEAD.TILE_K
    WEIGHT_PRODUCT: tl.constexpr = ASKED.WEIGHT_PRODUCT
    program, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk, tile = program // tiles_in_flight, program % tiles_in_flight
    row = image * tl.num_programs(0) + program
    class_ = tl.arange(0, TILE_K)
    chunk_pixels = chunk_tiles.to(tl.int64) * TILE_P
    stop = tl.minimum((chunk + 1) * chunk_pixels, pixels)
    # A chunk need not be whole segments: tiles past its end count nothing.
    first = chunk * chunk_pixels + (segment * tiles_in_flight + tile) * TILE_P
    pixel, z, y, x = _position(first, height, width, HEAD)
    at = (image, z, y, x)
    inside = pixel < stop
    counting = _counting(given.valid, at, inside)

    squares = tl.zeros((TILE_P,), tl.float32)
    s = tl.zeros((TILE_K, TILE_P), tl.float32)
    if ASKED.NORMS or (ASKED.PREDICTION and given.logits is None):
        for start in range(0, HEAD.C, TILE_C):
            channel = start + tl.arange(0, TILE_C)
            patch = _patches(given.features, at, counting, channel, height, width, pixels, HEAD)
            if ASKED.PREDICTION and given.logits is None:
                weights = _weights(given.weight, channel, HEAD)
                s += tl.trans(_product(patch, weights, WEIGHT_PRODUCT))  # transposed as in `_one_pass`
            if ASKED.NORMS:
                values = patch.to(tl.float32)
                squares += tl.sum(values * values, 1)

    if ASKED.PREDICTION:
        if given.logits is not None:
            by_pixel = _given(given.logits, at, counting, HEAD)
        else:
            by_pixel = tl.trans(s)
            if given.bias is not None:
                by_pixel += tl.load(given.bias + class_, mask=class_ < K, other=0.0)[None, :]
        softmax = _predict(by_pixel, HEAD)
        prediction, predicted, _, exps, others, total = softmax
        own = predicted & counting[:, None]
    if given.residual is not None:
        r = _given(given.residual, at, counting, HEAD)
    elif ASKED.PREDICTION:
        r = tl.where(predicted, -others[:, None], exps) * (1.0 / total)[:, None]
        r = tl.where(counting[:, None], r, 0.0)

    if ASKED.IMAGE or ASKED.VECTOR:
        kept_at = row * TILE_P + tl.arange(0, TILE_P)
        tl.store(scratch[0] + kept_at[:, None] * TILE_K + class_[None, :], r)
        if ASKED.PREDICTION:
            tl.store(scratch[1] + kept_at, tl.where(counting, prediction, -1))
    scores = sums.scores + row * (K + 3 + 2 * K * ASKED.BY_CLASS)
    counts = sums.counts + row * (K + 1)
    later = segment > 0
    known = tl.minimum(segment, 1) * K  # classes with sums of earlier segments: none or all
    if ASKED.NORMS:
        norm = tl.sqrt(tl.sum(r * r, 1)) * tl.sqrt(squares)
        norm = tl.where(counting, norm, 0.0)
        if norm_map is not None:
            tl.store(norm_map + image * pixels + pixel, norm, mask=inside)
        if ASKED.SEMANTIC:
            before = tl.load(scores + class_, mask=class_ < known, other=0.0)
            tl.store(scores + class_, before + tl.sum(tl.where(own, norm[:, None], 0.0), 0), mask=class_ < K)
    if ASKED.UNCERTAINTY:
        entropy, margin, confidence = _uncertainty(softmax, counting)
        tl.store(scores + K, tl.where(later, tl.load(scores + K), 0) + tl.sum(entropy, 0))
        tl.store(scores + K + 1, tl.where(later, tl.load(scores + K + 1), 0) + tl.sum(margin, 0))
        tl.store(scores + K + 2, tl.where(later, tl.load(scores + K + 2), 0) + tl.sum(confidence, 0))
    if ASKED.BY_CLASS:
        p, p_entropy = _probability(softmax, counting)
        mass = scores + K + 3 + class_
        before = tl.load(mass, mask=class_ < known, other=0.0)
        tl.store(mass, before + tl.sum(p, 0), mask=class_ < K)
        before = tl.load(mass + K, mask=class_ < known, other=0.0)
        tl.store(mass + K, before + tl.sum(p_entropy, 0), mask=class_ < K)
    if ASKED.COUNTS:
        tl.store(counts + K, tl.where(later, tl.load(counts + K), 0) + tl.sum(counting.to(tl.int32), 0))
        if ASKED.PREDICTION:
            before = tl.load(counts + class_, mask=class_ < known, other=0)
            tl.store(counts + class_, before + tl.sum(own.to(tl.int32), 0), mask=class_ < K)


@triton.jit(do_not_specialize=["height", "width", "chunk_tiles", "segment", "tiles_in_flight"])
def _outer_sums(
    given, scratch, sums, height, width, pixels, chunk_tiles, segment, tiles_in_flight,
    HEAD: tl.constexpr, ASKED: tl.constexpr,
):  # fmt: skip
    """A segment's Σ r ⊗ z̃ and Σ z, added to its chunk's.

    Program (chunk * channel tiles + channel tile, class tile, image).
    """
    K: tl.constexpr = HEAD.K
    C: tl.constexpr = HEAD.C
    TILE_P: tl.constexpr = HEAD.TILE_P
    TILE_C: tl.constexpr = HEAD.TILE_C
    TILE_R: tl.constexpr = min(64, HEAD.TILE_K)
    SUM_PRODUCT: tl.constexpr = ASKED.SUM_PRODUCT
    TAPS: tl.constexpr = HEAD.KERNEL[0] * HEAD.KERNEL[1] * HEAD.KERNEL[2]
    N_TILES: tl.constexpr = (C + TILE_C - 1) // TILE_C
    chunk, image = (tl.program_id(0) // N_TILES).to(tl.int64), tl.program_id(2).to(tl.int64)
    row = image * (tl.num_programs(0) // N_TILES) + chunk
    channel = tl.program_id(0) % N_TILES * TILE_C + tl.arange(0, TILE_C)
    class_ = tl.program_id(1) * TILE_R + tl.arange(0, TILE_R)
    place = row * (K * C) + class_[:, None] * C + channel[None, :]
    kept = (class_ < K)[:, None] & (channel < C)[None, :]
    later = kept & (class_ < tl.minimum(segment, 1) * K)[:, None]
    if ASKED.IMAGE:
        image_sum = tl.load(sums.image + place, mask=later, other=0.0)
    if ASKED.VECTOR:
        vector_sum = tl.load(sums.vector + place, mask=later, other=0.0)
    if sums.features is not None:
        # Of a pixel's patch the middle is the pixel itself; one class tile adds it up.
        middle = (channel < C) & (channel % TAPS == TAPS // 2) & (tl.program_id(1) == 0)
        feature_place = sums.features + row * (C // TAPS) + channel // TAPS
        feature_sum = tl.load(feature_place, mask=middle & (segment > 0), other=0.0)

    chunk_pixels = chunk_tiles.to(tl.int64) * TILE_P
    segment_pixels = tiles_in_flight * TILE_P
    stop = tl.minimum((chunk + 1) * chunk_pixels, pixels)
    first = chunk * chunk_pixels + segment.to(tl.int64) * segment_pixels
    for start in range(0, segment_pixels, TILE_P):
        in_segment = start + tl.arange(0, TILE_P)
        pixel, z, y, x = _position(first + start, height, width, HEAD)
        at = (image, z, y, x)
        counting = _counting(given.valid, at, pixel < stop)
        patch = tl.trans(_patches(given.features, at, counting, channel, height, width, pixels, HEAD))
        kept_at = row * segment_pixels + in_segment
        if ASKED.IMAGE or ASKED.VECTOR:
            r = tl.load(scratch[0] + kept_at[:, None] * HEAD.TILE_K + class_[None, :])
        if sums.features is not None:
            feature_sum += tl.sum(patch.to(tl.float32), 1)
        if ASKED.IMAGE:
            image_sum += tl.trans(_product(patch, r, SUM_PRODUCT))  # transposed as in `_one_pass`
        if ASKED.VECTOR:
            own = class_[None, :] == tl.load(scratch[1] + kept_at)[:, None]
            vector_sum += tl.trans(_product(patch, tl.where(own, r, 0.0), SUM_PRODUCT))

    if ASKED.IMAGE:
        tl.store(sums.image + place, image_sum, mask=kept)
    if ASKED.VECTOR:
        tl.store(sums.vector + place, vector_sum, mask=kept)
    if sums.features is not None:
        tl.store(feature_place, feature_sum, mask=middle)


@triton.jit(do_not_specialize=["pixels", "n_sums", "n_scores"])
def _finish(
    sums, results, pixels, n_sums, n_scores, size, n_features,
    VALID_GIVEN: tl.constexpr, HEAD: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """An image's partial sums, added up: program (the scores, blocks of K * C, blocks of d; image)."""
    block, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    K: tl.constexpr = HEAD.K
    score_row, count_row = sums.scores + b * n_scores * COLUMNS, sums.counts + b * n_scores * (K + 1)
    first_of_features = 1 + tl.cdiv(size, TILE)
    if block == 0:
        class_, one = tl.arange(0, HEAD.TILE_K), tl.arange(0, 1)
        known, first = class_ < K, one == 0
        of_class, of_image = b * K + class_, b + one
        _add_up(results.semantic, of_class, score_row, class_, known, n_scores, COLUMNS, tl.float32)
        _add_up(results.class_pixels, of_class, count_row, class_, known, n_scores, K + 1, tl.int64)
        _add_up(results.entropy, of_image, score_row, one + K, first, n_scores, COLUMNS, tl.float32)
        _add_up(results.margin, of_image, score_row, one + K + 1, first, n_scores, COLUMNS, tl.float32)
        _add_up(results.confidence, of_image, score_row, one + K + 2, first, n_scores, COLUMNS, tl.float32)
        _add_up(results.class_mass, of_class, score_row, class_ + K + 3, known, n_scores, COLUMNS, tl.float32)
        _add_up(results.class_entropy, of_class, score_row, class_ + 2 * K + 3, known, n_scores, COLUMNS, tl.float32)
    elif block < first_of_features:
        element = (block - 1).to(tl.int64) * TILE + tl.arange(0, TILE)
        inside = element < size
        if results.image is not None:
            total = _total(sums.image + b * n_sums * size, element, inside, n_sums, size, tl.float32)
            n_valid = pixels
            if VALID_GIVEN:
                one = tl.arange(0, 1)
                n_valid = tl.maximum(tl.sum(_total(count_row, K + one, one == 0, n_scores, K + 1, tl.int64), 0), 1)
            tl.store(results.image + b * size + element, total / n_valid.to(tl.float32), mask=inside)
        if results.semantic_vector is not None:
            row = sums.vector + b * n_sums * size
            _add_up(results.semantic_vector, b * size + element, row, element, inside, n_sums, size, tl.float32)
    elif results.feature_sum is not None:
        feature = (block - first_of_features) * TILE + tl.arange(0, TILE)
        row = sums.features + b * n_sums * n_features
        counted = feature < n_features
        _add_up(results.feature_sum, b * n_features + feature, row, feature, counted, n_sums, n_features, tl.float32)


@triton.jit
def _add_up(result, place, parts, column, wanted, n_parts, columns, TYPE: tl.constexpr):
    """`_total`, written where the result is asked for."""
    if result is not None:
        tl.store(result + place, _total(parts, column, wanted, n_parts, columns, TYPE), mask=wanted)


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
