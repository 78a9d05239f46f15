// Pure functions that decide: tile sizes, shared memory, chunks. tests/ops/test_cuda.py tables them.
#include <algorithm>

#include "cuda/pixel_gradients.h"

namespace alges::cuda_pixel_gradients {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int power_of_two_at_least(int value) {
  int power = 1;
  while (power < value) power *= 2;
  return power;
}

int64_t gradient_words(const Shape& shape) { return shape.classes * shape.columns(); }
int64_t partial_words(const Shape& shape) { return gradient_words(shape) + words_of_scores(shape) + words_by_class(shape); }

// Shared memory is laid out in this order by both the planner and the kernel (tile_layout in pixel_gradients_tile.cuh).
int64_t tile_shared_bytes(const Shape& shape, const TilePlan& plan) {
  const int64_t taps = shape.taps(), columns = plan.channel_block * taps;
  const int64_t words = 2 * ceil_div(plan.halo_positions, 2) * 2        // 64-bit offsets of the patch
                        + columns * plan.class_stride                    // weight
                        + int64_t{plan.pixels} * plan.class_stride       // logits, then residual
                        + 6 * int64_t{plan.pixels}                       // patch position, prediction, norm, three scores
                        + kTileWarps * words_of_scores(shape)            // sums per warp
                        + ceil_div(columns, 4) * 4                       // patch offset of each column
                        + plan.halo_positions                            // ‖z‖²
                        + int64_t{plan.channel_block} * plan.halo_stride // z
                        + (plan.accumulate_in_shared ? plan.splits * gradient_words(shape) : 0);
  return 4 * words;
}

// Chunks of an image, at most, unless one would have more pixels than float32 sums keep their digits over: each costs the
// kernel that adds them up a step, and beyond two blocks a multiprocessor they make no image faster.
constexpr int64_t kMostChunks = 256, kChunkPixels = 1 << 16;

// Chunks of `chunk_tiles` tiles where scratch holds that many: few enough that partial results stay a small share of the
// traffic, many enough that one image alone spreads over a GPU.
Cut cut(const Shape& shape, int64_t tiles, int64_t chunk_tiles) {
  Cut result;
  result.tiles = tiles;
  result.words = partial_words(shape);
  const int64_t in_scratch = kScratchBytes / (4 * result.words);
  const int64_t most = std::max(kMostChunks, std::min(ceil_div(shape.pixels(), kChunkPixels), tiles));
  result.chunks = static_cast<int>(std::max<int64_t>(1, std::min({ceil_div(tiles, chunk_tiles), in_scratch, most})));
  result.images_a_launch = std::min<int64_t>({in_scratch / result.chunks, shape.batch, 65535});  // a grid's y axis
  return result;
}

// The tile of so many sharing warps, and bytes of shared memory beside the stages.
int share_out(const Shape& shape, int element, StreamPlan& plan) {
  plan.tiles_a_warp = static_cast<int>(ceil_div(plan.channel_tiles, plan.sharing));
  const int channels = plan.channel_tiles * 16, classes = 8 * plan.class_tiles, groups = kStreamWarps / plan.sharing;
  // A warp takes 32 pixels at a time; narrow layers take more a tile, for fewer barriers.
  plan.pixels = 32 * groups;
  while (plan.pixels * channels * element < 8 * 1024 && plan.pixels < 512) plan.pixels *= 2;
  // Row strides that spread a fragment's rows over the banks: an odd number of 16 bytes for ldmatrix; for float32, 8 words
  // beyond a multiple of 32 where lanes step over channels, 4 where they step over pixels.
  plan.stride = plan.channels_last ? channels + (element == 4 ? 4 : 8) : plan.pixels + 8;
  plan.stage_bytes = (plan.channels_last ? plan.pixels : channels) * plan.stride * element;
  plan.weight_words = channels * classes * plan.weight_parts * element / 4;
  plan.row_words = groups * 32 * stream_row_words(element, plan.class_tiles);
  plan.share_words = plan.sharing > 1 ? kStreamWarps * 32 * stream_logit_words(plan.class_tiles) : 0;
  plan.total_words = groups * classes * stream_columns(plan.class_tiles) * 2;
  return 4 * (plan.weight_words + plan.row_words + plan.share_words + plan.total_words + classes);
}

}  // namespace

std::string plan_tile(const Shape& shape, int shared_limit, TilePlan& plan) {
  const int taps = shape.taps();
  for (int size : shape.size)
    if (size > (1 << 30)) return "a spatial axis of " + std::to_string(size) + " is past 2^30";
  if (4 * partial_words(shape) > kScratchBytes)
    return "one gradient of K x d x kernel = " + std::to_string(gradient_words(shape)) +
           " floats is past the 16 MB of scratch";
  // Odd multiples of 4: eight pixels' rows then start in eight different 16-byte banks.
  plan.class_stride = (static_cast<int>(ceil_div(shape.classes, 4)) | 1) * 4;

  // About 8 K logits a tile, so that 256 threads hold 2 pixels x 16 classes each; smaller where shared memory is short.
  const int class_groups = static_cast<int>(ceil_div(shape.classes, 16));
  for (int pixels = std::max(32, 512 / power_of_two_at_least(class_groups)); pixels >= 32; pixels /= 2) {
    plan.pixels = pixels;
    const int width = std::min(power_of_two_at_least(shape.size[2]), taps == 1 ? pixels : 32);
    plan.tile[2] = std::min(width, pixels);
    plan.tile[1] = std::min(power_of_two_at_least(shape.size[1]), pixels / plan.tile[2]);
    plan.tile[0] = std::min(power_of_two_at_least(shape.size[0]), pixels / (plan.tile[2] * plan.tile[1]));
    // What a small image leaves over goes to the width, where it costs least.
    plan.tile[2] = pixels / (plan.tile[0] * plan.tile[1]);
    plan.halo_positions = 1;
    int64_t positions = 1, tiles = 1;
    for (int axis = 0; axis < 3; ++axis) {
      plan.halo[axis] = plan.tile[axis] + shape.kernel[axis] - 1;
      positions *= plan.halo[axis];
      tiles *= ceil_div(shape.size[axis], plan.tile[axis]);
    }
    if (positions > (1 << 16)) continue;
    plan.halo_positions = static_cast<int>(positions);
    plan.halo_stride = plan.halo_positions | 1;
    for (int block = std::min(power_of_two_at_least(shape.channels), 32); block >= 1; block /= 2) {
      plan.channel_block = block;
      plan.channel_blocks = static_cast<int>(ceil_div(shape.channels, block));
      // Threads share a block's columns two by two and its classes 16 by 16; what is left splits the pixels.
      const int64_t jobs = ceil_div(int64_t{block} * taps, 2) * class_groups;
      plan.splits = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(8, kTileThreads / jobs)));
      plan.accumulate_in_shared = false;
      const int64_t gradient = 4 * gradient_words(shape);
      while (plan.splits > 1 && plan.splits * gradient > 32 * 1024) --plan.splits;
      if (plan.splits * gradient <= 32 * 1024)
        plan.accumulate_in_shared = true;
      const int64_t bytes = tile_shared_bytes(shape, plan);
      if (bytes > shared_limit) continue;
      plan.shared_bytes = static_cast<int>(bytes);
      plan.cut = cut(shape, tiles, 4);
      // Where few chunks fit in scratch, channel groups keep a GPU busy at the price of computing the logits again.
      plan.groups = static_cast<int>(std::min<int64_t>({plan.channel_blocks, 8, std::max(1, 64 / plan.cut.chunks)}));
      if (plan.cut.tiles <= 4) plan.groups = 1;
      return "";
    }
  }
  return "K = " + std::to_string(shape.classes) + " with a kernel of " + std::to_string(taps) +
         " elements needs more shared memory than the " + std::to_string(shared_limit / 1024) + " KB of this GPU";
}

std::string plan_stream(const Call& call, int shared_limit, StreamPlan& plan) {
  const Shape& shape = call.shape;
  const Operand& features = call.features;
  const int element = features.type == Type::float32 ? 4 : 2, piece = 16 / element;
  if (features.type == Type::float16) return "float16: its range does not hold a confident pixel's residual";
  if (shape.taps() != 1) return "a kernel larger than 1 x 1";
  if (shape.classes > 24) return "more classes than registers hold";
  plan.channel_tiles = static_cast<int>(ceil_div(shape.channels, 16));
  if (plan.channel_tiles > kStreamWarps * stream_most_tiles(element)) return "too many channels for registers";

  // One run of pixels, whatever the spatial axes, and copies of 16 bytes.
  const int64_t* stride = features.stride;
  const int64_t step = stride[4];
  if ((shape.size[1] > 1 && stride[3] != step * shape.size[2]) ||
      (shape.size[0] > 1 && stride[2] != step * shape.size[2] * shape.size[1]))
    return "rows that do not follow one another";
  const bool aligned = reinterpret_cast<uintptr_t>(features.data) % 16 == 0 &&
                       (shape.batch == 1 || stride[0] % piece == 0);
  if (aligned && step == 1 && (shape.channels == 1 || stride[1] % piece == 0) && shape.pixels() % piece == 0)
    plan.channels_last = false;
  else if (aligned && stride[1] == 1 && step > 0 && step % piece == 0 && shape.channels % piece == 0)
    plan.channels_last = true;
  else
    return "neither planar nor channels-last rows of 16 bytes";

  plan.class_tiles = std::max(2, static_cast<int>(ceil_div(shape.classes, 8)));
  plan.weight_parts = element == 4 || call.weight_is_bfloat16 ? 1 : 3;
  // Two blocks a multiprocessor if they fit (1 KB of each is the system's), else one. Where warps share the channels of the
  // same pixels a tile can be smaller.
  for (int budget : {shared_limit / 2 - 1024, shared_limit}) {
    for (plan.sharing = 1; plan.sharing <= kStreamWarps; plan.sharing *= 2) {
      if (plan.channel_tiles > plan.sharing * stream_most_tiles(element)) continue;
      const int fixed = share_out(shape, element, plan);
      for (plan.stages = 4; plan.stages >= 2; --plan.stages) {
        plan.shared_bytes = plan.stages * plan.stage_bytes + fixed;
        if (plan.shared_bytes > budget) continue;
        plan.cut = cut(shape, ceil_div(shape.pixels(), plan.pixels), 16);
        return "";
      }
    }
  }
  return "too little shared memory";
}

}  // namespace alges::cuda_pixel_gradients
