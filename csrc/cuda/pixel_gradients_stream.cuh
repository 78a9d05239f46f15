// The kernel for the common case, bound by memory: a 1 x 1 head of up to 24 classes over planar or channels-last rows.
//
// A block of 4 warps takes a chunk of one image, tile by tile, z of the tiles ahead arriving in shared memory meanwhile.
// Each warp takes 32 pixels at a time, with 1, 2 or 4 warps sharing the channels of the same pixels:
//   1. logits S = Z W', 16 pixels x 8 classes a product, on tensor cores; ‖z‖² on the side; to shared memory, a row a pixel
//   2. softmax, a lane a pixel: S becomes R in its row. Of the warps that share pixels one does it, in turn.
//   3. gradient G += Z' R, 16 channels x 8 classes a product
// and G, a warp's channels x classes, stays in registers until the chunk ends. Scores add up in registers, norms and counts by
// class in shared memory, where a lane can pick its class. In the reading by class step 2 sums p and p
// times the entropy, and step 3 z.
//
// What a call does not ask for is skipped at run time, at a branch that all lanes take: with one lane a pixel that is a
// handful a step, and kernels compiled for every set of outputs would gain no more.
//
// float32: operands split into two TF32 parts, three products each (one where torch allows plain TF32). bfloat16: z as it is,
// R, and W unless it was given in bfloat16, split into three bfloat16 parts, 24 bits. Tensor cores do not round to nearest when they add, so sums of at most
// 64 channels or 32 pixels are made there and added in float32.
//
// Bytes: the features once. Flops: 4 K d per pixel, K rounded up to 8, times the parts.
// Order of reduction: 32 pixels, rounds of a tile, tiles of a chunk, pixel groups, then chunks (in `finish`): all fixed.
#pragma once

#include <cmath>

#include "cuda/pixel_gradients.h"
#include "cuda/pixel_gradients_pass.cuh"

namespace alges::cuda_pixel_gradients {

// How z lies in a stage of shared memory, rows padded against bank conflicts, and how it becomes fragments. Pixels and
// channels index the tile; T is float or Bfloat16.
template <typename T, bool channels_last>
struct Stage {
  T* data;
  int stride;

  ALGES_DEVICE T& at(int pixel, int channel) const {
    return channels_last ? data[pixel * stride + channel] : data[channel * stride + pixel];
  }
};

// A fragments of 16 pixels x 16 channels (bfloat16).
template <bool channels_last>
ALGES_DEVICE void pixels_by_channels(uint32_t (&a)[4], const Stage<Bfloat16, channels_last>& z, int pixel, int channel) {
  const int block = threadIdx.x % 32 / 8, row = threadIdx.x % 8;
  if (channels_last)
    load_matrices(a, &z.at(pixel + block % 2 * 8 + row, channel + block / 2 * 8));
  else
    load_matrices_transposed(a, &z.at(pixel + block % 2 * 8, channel + block / 2 * 8 + row));
}

// A fragments of 16 channels x 16 pixels (bfloat16).
template <bool channels_last>
ALGES_DEVICE void channels_by_pixels(uint32_t (&a)[4], const Stage<Bfloat16, channels_last>& z, int channel, int pixel) {
  const int block = threadIdx.x % 32 / 8, row = threadIdx.x % 8;
  if (channels_last)
    load_matrices_transposed(a, &z.at(pixel + block / 2 * 8 + row, channel + block % 2 * 8));
  else
    load_matrices(a, &z.at(pixel + block / 2 * 8, channel + block % 2 * 8 + row));
}

// 16 pixels x 8 channels (float32).
template <bool channels_last>
ALGES_DEVICE void pixels_by_channels(float (&a)[4], const Stage<float, channels_last>& z, int pixel, int channel) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = z.at(pixel + g + i % 2 * 8, channel + t + i / 2 * 4);
}

// 16 channels x 8 pixels (float32). The sum over pixels may take them in any order: k = t is pixel 2 t and k = t + 4 pixel
// 2 t + 1, at which the lanes that read R together meet in no bank.
template <bool channels_last>
ALGES_DEVICE void channels_by_pixels(float (&a)[4], const Stage<float, channels_last>& z, int channel, int pixel) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = z.at(pixel + 2 * t + i / 2, channel + g + i % 2 * 8);
}

// value = high + low, the high part in TF32; a product drops the bits of low beyond. Rounding up half a unit of the high
// part gives low a bit more, and loses a NaN of all ones, which low keeps: `round` is 0x1000 with both parts, 0 with high alone.
ALGES_DEVICE void split_tf32(float value, uint32_t round, uint32_t& high, uint32_t& low) {
  high = (float_to_bits(value) + round) & 0xffffe000u;
  low = float_to_bits(value - bits_to_float(high));
}

// Two values as three pairs of bfloat16 that add up to them.
ALGES_DEVICE void split_bfloat16(float first, float second, uint32_t (&parts)[3]) {
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    parts[part] = pack_bfloat16(first, second);
    first -= bits_to_float(parts[part] << 16);
    second -= bits_to_float(parts[part] & 0xffff0000u);
  }
}

ALGES_DEVICE void mma_split_tf32(float (&c)[4], const uint32_t (&high)[4], const uint32_t (&low)[4], float b0, float b1,
                                 uint32_t round) {
  uint32_t high0, high1, low0, low1;
  split_tf32(b0, round, high0, low0);
  split_tf32(b1, round, high1, low1);
  if (round != 0) {
    mma_tf32(c, low, high0, high1);
    mma_tf32(c, high, low0, low1);
  }
  mma_tf32(c, high, high0, high1);
}

// Sums of one class over the pixels of every `stream_columns`-th lane.
struct alignas(8) OfClass {
  float norms;
  int pixels;
};

struct StreamLayout {
  unsigned char* stages;
  float* weight;    // B fragments in order of use: [part][step][class tile][lane], two words each
  float* rows;      // [pixel group][32 pixels][stream_row_words]: logits and ‖z‖², then residuals
  float* shares;    // [4 warps][32 pixels][stream_logit_words], where warps share pixels: what each adds to the logits
  OfClass* totals;  // [pixel group][classes of the tiles][stream_columns]
  float* bias;      // [classes of the tiles]: -Inf past the last class
};

// In the order that plan_stream counts.
ALGES_DEVICE StreamLayout stream_layout(const StreamPlan& plan) {
  StreamLayout at;
  at.stages = dynamic_shared();
  at.weight = reinterpret_cast<float*>(at.stages + plan.stages * plan.stage_bytes);
  at.rows = at.weight + plan.weight_words;
  at.shares = at.rows + plan.row_words;
  at.totals = reinterpret_cast<OfClass*>(at.shares + plan.share_words);
  at.bias = reinterpret_cast<float*>(at.totals) + plan.total_words;
  return at;
}

// W in fragment order. float32: two words W[class g][channel t], W[class g][channel t + 4]; bfloat16: a part's two words are
// W[class g][channels 2t, 2t+1] and [2t+8, 2t+9].
template <typename T, int class_tiles>
ALGES_DEVICE void load_fragments(const Call& call, const StreamPlan& plan, float* weight) {
  constexpr bool is_float = sizeof(T) == 4;
  const int step_channels = is_float ? 8 : 16;
  const int fragments = plan.channel_tiles * 16 / step_channels * class_tiles * 32;
  for (int e = threadIdx.x; e < fragments; e += kStreamThreads) {
    const int g = e % 32 / 4, t = e % 4, k = e / 32 % class_tiles * 8 + g, channel = e / 32 / class_tiles * step_channels;
    const auto value = [&](int c) {
      return k < call.shape.classes && c < call.shape.channels ? call.weight[int64_t{k} * call.shape.channels + c] : 0.f;
    };
    if (is_float) {
      weight[2 * e] = value(channel + t);
      weight[2 * e + 1] = value(channel + t + 4);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t parts[3];
        split_bfloat16(value(channel + 2 * t + 8 * half), value(channel + 2 * t + 1 + 8 * half), parts);
#pragma unroll
        for (int part = 0; part < 3; ++part)
          if (part < plan.weight_parts) weight[2 * (part * fragments + e) + half] = bits_to_float(parts[part]);
      }
    }
  }
}

// Copies of 16 bytes: a thread has one piece of every `rows_at_once`-th row of a stage, the same in every tile.
template <typename T, bool channels_last>
struct Copier {
  static constexpr int piece = 16 / sizeof(T);
  int row, rows_at_once, rows, along;  // along: where in a row the thread's piece begins
  const T* from;                       // the thread's first piece in the next tile
  int64_t row_step, tile_step;

  ALGES_DEVICE Copier(const Call& call, const StreamPlan& plan, int64_t image, int64_t first_pixel) {
    const int pieces = (channels_last ? call.shape.channels : plan.pixels) / piece;  // at most kStreamThreads
    rows_at_once = kStreamThreads / pieces;
    rows = channels_last ? plan.pixels : call.shape.channels;
    row = static_cast<int>(threadIdx.x) / pieces;
    along = static_cast<int>(threadIdx.x) % pieces * piece;
    if (row >= rows_at_once) row = rows;  // left over
    const int64_t pixel_step = channels_last ? call.features.stride[4] : 1;
    const int64_t step = channels_last ? pixel_step : call.features.stride[1];
    from = static_cast<const T*>(call.features.data) + image * call.features.stride[0] + first_pixel * pixel_step + along +
           row * step;
    row_step = rows_at_once * step;
    tile_step = plan.pixels * pixel_step;
  }

  // Starts the copies of the next tile: zeros past the image's last pixel, of which `left` are left.
  ALGES_DEVICE void next(const Stage<T, channels_last>& stage, int left) {
    const T* piece_from = from;
    T* to = stage.data + along + row * stage.stride;
    const int to_step = rows_at_once * stage.stride;
#pragma unroll 4
    for (int r = row; r < rows; r += rows_at_once) {
      copy_async(to, piece_from, (channels_last ? r : along) < left);
      piece_from += row_step;
      to += to_step;
    }
    from += tile_step;
  }
};

ALGES_DEVICE void wait_for_stage(int stages) {
  if (stages == 2)
    copy_wait<0>();
  else if (stages == 3)
    copy_wait<1>();
  else
    copy_wait<2>();
}

// What a lane keeps over a chunk, of the pixels whose softmax it computed.
template <int class_tiles>
struct Sums {
  float entropy, margin, confidence;
  int valid;
  float mass[8 * class_tiles], class_entropy[8 * class_tiles];  // in the reading by class, instead of the others
};

// A pixel of this lane's.
struct Pixel {
  int64_t image, at;  // at: its place in the image
  bool inside;        // the image
  bool counts;
};

// Where a pixel lies.
struct Place {
  int x, y, depth;
  ALGES_DEVICE Place(const Shape& shape, int64_t at) {
    x = static_cast<int>(at % shape.size[2]);
    y = static_cast<int>(at / shape.size[2] % shape.size[1]);
    depth = static_cast<int>(at / shape.size[2] / shape.size[1]);
  }
};

template <int words>
ALGES_DEVICE void read_row(float (&to)[words], const float* row) {
#pragma unroll
  for (int i = 0; i < words; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(row + i);
    to[i] = four.x;
    to[i + 1] = four.y;
    to[i + 2] = four.z;
    to[i + 3] = four.w;
  }
}

template <int words>
ALGES_DEVICE void write_row(float* row, const float (&from)[words]) {
#pragma unroll
  for (int i = 0; i < words; i += 4) *reinterpret_cast<float4*>(row + i) = float4{from[i], from[i + 1], from[i + 2], from[i + 3]};
}

// One value for each class of a pixel, as step 3 reads it: float32 as it is; bfloat16 in three parts, [part][class].
template <int classes>
ALGES_DEVICE void write_residual(float* row, const float (&r)[classes], int best, float at_best, float) {
  write_row(row, r);
  row[best] = at_best;
}
template <int classes>
ALGES_DEVICE void write_residual(float* row, const float (&r)[classes], int best, float at_best, Bfloat16) {
  float words[3 * classes / 2];
#pragma unroll
  for (int k = 0; k < classes; k += 2) {
    uint32_t parts[3];
    split_bfloat16(r[k], r[k + 1], parts);
#pragma unroll
    for (int part = 0; part < 3; ++part) words[(part * classes + k) / 2] = bits_to_float(parts[part]);
  }
  write_row(row, words);
  uint32_t parts[3];
  split_bfloat16(at_best, 0, parts);
#pragma unroll
  for (int part = 0; part < 3; ++part) store_half(row, part * classes + best, parts[part]);
}

// Step 2, a lane a pixel. `row` holds the pixel's logits and then, in four addends, ‖z‖²; it is left with the residual.
template <typename T, int class_tiles, bool by_class>
ALGES_DEVICE void residual_of_pixel(const Pass& pass, const Pixel& pixel, float* row, OfClass* totals, Sums<class_tiles>& sums) {
  constexpr int classes = 8 * class_tiles, columns = stream_columns(class_tiles);
  const Call& call = pass.call;
  const int last_class = call.shape.classes - 1;
  if (call.logits.data != nullptr && pixel.inside) {
    const Place place(call.shape, pixel.at);
#pragma unroll 1
    for (int k = 0; k < classes; ++k)
      row[k] = k <= last_class ? load(call.logits, pixel.image, k, place.depth, place.y, place.x) : -INFINITY;
  }

  // The largest logit, of equal ones the lowest class: first its four classes, then which of them.
  float s[classes], of_four[classes / 4];
  read_row(s, row);
#pragma unroll
  for (int i = 0; i < classes / 4; ++i) of_four[i] = fmaxf(fmaxf(s[4 * i], s[4 * i + 1]), fmaxf(s[4 * i + 2], s[4 * i + 3]));
  float largest = of_four[0];
#pragma unroll
  for (int i = 1; i < classes / 4; ++i) largest = fmaxf(largest, of_four[i]);
  int best = 0;
#pragma unroll
  for (int i = classes / 4 - 1; i > 0; --i)
    if (of_four[i] == largest) best = 4 * i;
  if (of_four[0] == largest) best = 0;
  float four[4];
  read_row(four, row + best);
  best += four[0] == largest ? 0 : four[1] == largest ? 1 : four[2] == largest ? 2 : 3;

  // As in the tile kernel: e is 1 at the prediction, and r there is -others / (1 + others). So the prediction's own logit
  // is taken out of the row, and there is no class to look for in what follows.
  float squares[4];  // ‖z‖²
  read_row(squares, row + classes);
  row[best] = -INFINITY;
  read_row(s, row);
  float e[classes], sum[4] = {};
#pragma unroll
  for (int k = 0; k < classes; ++k) {
    s[k] -= largest;
    e[k] = exp2_nearly(s[k] * 1.44269504f);
    sum[k % 4] += e[k];
  }
  float others = (sum[0] + sum[1]) + (sum[2] + sum[3]);  // NaN where a logit is
  if (isinf(largest)) others = NAN;
  if (others != others) best = last_class;
  const float inverse = reciprocal_nearly(1 + others);
  float weighted = 0, entropy = 0;
  if (by_class || pass.confidences) {
#pragma unroll
    for (int k = 0; k < classes; ++k) weighted = fmaf(e[k], fmaxf(s[k], -1000.f), weighted);  // 0 x Inf is 0 here
    entropy = log1pf(others) - weighted * inverse;
  }
  if constexpr (by_class) {
    if (!pixel.counts) return;
#pragma unroll
    for (int k = 0; k < classes; ++k) {
      const float p = k == best ? inverse : e[k] * inverse;
      sums.mass[k] += p;
      sums.class_entropy[k] = fmaf(p, entropy, sums.class_entropy[k]);
    }
    return;
  }
  if (pixel.counts) {
    if (pass.confidences) {
      float runner_up = 0;
#pragma unroll
      for (int k = 0; k < classes; ++k) runner_up = fmaxf(runner_up, e[k]);
      sums.entropy += entropy;
      sums.margin += (1 - runner_up) * inverse;
      sums.confidence += inverse;
    }
    ++sums.valid;
  }

  float of_r = others * others, at_best = -others * inverse, scale = inverse;
  if (call.residual.data != nullptr) {
    of_r = 0;
#pragma unroll 1
    for (int k = 0; k < classes; ++k) {
      float r = 0;
      if (pixel.counts && k <= last_class) {
        const Place place(call.shape, pixel.at);
        r = load(call.residual, pixel.image, k, place.depth, place.y, place.x);
      }
      of_r = fmaf(r, r, of_r);
      row[k] = r;
    }
    read_row(e, row);
    at_best = row[best];
    scale = 1;
  } else if (pass.needs_norm) {
#pragma unroll
    for (int k = 0; k < classes; ++k) of_r = fmaf(e[k], e[k], of_r);
  }
  float norm = 0;
  if (pass.needs_norm) {
    norm = scale * root_nearly(of_r) * root_nearly((squares[0] + squares[1]) + (squares[2] + squares[3]));
    if (!pixel.counts) norm = 0;
    if (call.norm_map != nullptr && pixel.inside) call.norm_map[pixel.image * call.shape.pixels() + pixel.at] = norm;
  }
  if (pass.by_prediction) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int turn = 0; turn < 32 / columns; ++turn) {
      if (pixel.counts && lane / columns == turn) {
        OfClass& mine = totals[best * columns + lane % columns];
        mine = OfClass{mine.norms + norm, mine.pixels + 1};
      }
      __syncwarp();
    }
  }
  if (!pass.outer) return;
  if (pass.vector || !pixel.counts) {
#pragma unroll
    for (int k = 0; k < classes; ++k) e[k] = 0;
    if (!pixel.counts) at_best = 0;
  }
  if (!pixel.counts) scale = 0;  // it may be NaN
#pragma unroll
  for (int k = 0; k < classes; ++k) e[k] *= scale;
  write_residual(row, e, best, at_best, T{});
}

// Blocks a multiprocessor that registers must leave room for: as many as they can without spilling.
constexpr int stream_blocks(int class_tiles, int most_channel_tiles) {
  return class_tiles == 2 && most_channel_tiles == 2 ? 3 : 2;
}

// The sum over the lanes of a warp, the same in all of them.
template <typename V>
ALGES_DEVICE V sum_over_warp(V value) {
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) value += shuffle_xor(value, lanes);
  return value;
}

template <typename T, bool channels_last, int class_tiles, int most_channel_tiles, bool by_class>
ALGES_KERNEL(kStreamThreads, stream_blocks(class_tiles, most_channel_tiles))
stream_kernel(ALGES_PARAMETER Pass pass, ALGES_PARAMETER StreamPlan plan) {
  constexpr bool is_float = sizeof(T) == 4;
  constexpr int steps_a_tile = is_float ? 2 : 1;  // products that 16 channels take
  constexpr int flush = 64 / 16;                  // channel tiles that tensor cores add up
  constexpr int classes = 8 * class_tiles, columns = stream_columns(class_tiles);
  constexpr int row_words = stream_row_words(sizeof(T), class_tiles), logit_words = stream_logit_words(class_tiles);
  const Call& call = pass.call;
  const Shape& shape = call.shape;
  const StreamLayout at = stream_layout(plan);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int sharing = plan.sharing, groups = kStreamWarps / sharing;
  const int group = warp / sharing, share = warp % sharing;
  const int first_tile = share * plan.tiles_a_warp;  // this warp's channels, in tiles of 16
  const int my_tiles = max(0, min(plan.tiles_a_warp, plan.channel_tiles - first_tile));
  const int chunk = blockIdx.x % plan.cut.chunks;
  const int64_t image = pass.first_image + blockIdx.x / plan.cut.chunks, pixels = shape.pixels();
  const int64_t gradient_size = int64_t{shape.classes} * shape.channels;
  float* partial = pass.scratch + int64_t{blockIdx.x} * plan.cut.words;
  const int fragments = plan.channel_tiles * steps_a_tile * class_tiles * 32;
  const uint32_t round = call.allow_tf32 ? 0 : 0x1000;

  const auto stage = [&](int number) {
    return Stage<T, channels_last>{reinterpret_cast<T*>(at.stages + number * plan.stage_bytes), plan.stride};
  };
  // Channels past the last are zero in every stage, and no copy touches them.
  const int padding = plan.channel_tiles * 16 - shape.channels;
  for (int e = threadIdx.x; e < plan.stages * plan.pixels * padding; e += kStreamThreads)
    stage(e / (plan.pixels * padding)).at(e / padding % plan.pixels, shape.channels + e % padding) = T{};
  for (int k = threadIdx.x; k < classes; k += kStreamThreads)
    at.bias[k] = k >= shape.classes ? -INFINITY : call.bias != nullptr ? call.bias[k] : 0.f;
  for (int e = threadIdx.x; e < groups * classes * columns; e += kStreamThreads) at.totals[e] = OfClass{0, 0};

  const int64_t first_index = plan.cut.tiles * chunk / plan.cut.chunks;
  const int64_t last_index = plan.cut.tiles * (chunk + 1) / plan.cut.chunks;
  Copier<T, channels_last> copier(call, plan, image, first_index * plan.pixels);
  const auto left = [&](int64_t index) { return static_cast<int>(min(pixels - index * plan.pixels, int64_t{plan.pixels})); };
  int filled = 0, current = 0;  // stages
  const auto start_copy = [&](int64_t index) {
    if (index < last_index) copier.next(stage(filled), left(index));
    copy_commit();
    filled = filled + 1 == plan.stages ? 0 : filled + 1;
  };
  for (int ahead = 0; ahead < plan.stages - 1; ++ahead) start_copy(first_index + ahead);
  load_fragments<T, class_tiles>(call, plan, at.weight);
  __syncthreads();
  float bias[2 * class_tiles];  // of the first share, so that it is added once
#pragma unroll
  for (int i = 0; i < 2 * class_tiles; ++i) bias[i] = share == 0 ? at.bias[i / 2 * 8 + 2 * t + i % 2] : 0.f;

  float* const rows = at.rows + group * 32 * row_words;
  float* const own_row = rows + lane * row_words;
  Sums<class_tiles> sums{};
  float gradient[most_channel_tiles][class_tiles][4] = {};
  float features[stream_most_tiles(sizeof(T)) / 2] = {};  // of the warp's channels, a lane every 32nd
  int turn = 0;                                           // the share whose warp does step 2 for all
  for (int64_t index = first_index; index < last_index; ++index) {
    wait_for_stage(plan.stages);
    __syncthreads();  // this tile is here for all, and all are done with the stage that the next copy fills
    start_copy(index + plan.stages - 1);
    const Stage<T, channels_last> z = stage(current);
    current = current + 1 == plan.stages ? 0 : current + 1;
    const int here = left(index);  // pixels of the image in this tile

    for (int pixel = 32 * group; pixel < plan.pixels; pixel += 32 * groups) {
      // 1. Logits of 2 x 16 pixels over this warp's channels, the bias first.
      float logits[2][class_tiles][4], squares[2][2] = {}, products[2][2][4] = {};
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < class_tiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) logits[m][n][i] = bias[2 * n + i % 2];
      const auto add_products = [&] {  // of Z Z', whose diagonal is ‖z‖²
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            if (t == g / 2) squares[m][half] += g % 2 == 0 ? products[m][half][2 * half] : products[m][half][2 * half + 1];
      };
      const auto add_tile = [&](int tile) {
#pragma unroll
        for (int step = 0; step < steps_a_tile; ++step) {
          const int channel = (first_tile + tile) * 16 + 8 * step;
          const float2* w = reinterpret_cast<const float2*>(at.weight) +
                            ((first_tile + tile) * steps_a_tile + step) * class_tiles * 32 + lane;
          if constexpr (is_float) {
            uint32_t high[2][4], low[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              float a[4];
              pixels_by_channels(a, z, pixel + 16 * m, channel);
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                squares[m][i % 2] = fmaf(a[i], a[i], squares[m][i % 2]);
                split_tf32(a[i], round, high[m][i], low[m][i]);
              }
            }
#pragma unroll
            for (int n = 0; n < class_tiles; ++n) {
              const float2 b = w[n * 32];
#pragma unroll
              for (int m = 0; m < 2; ++m) mma_split_tf32(logits[m][n], high[m], low[m], b.x, b.y, round);
            }
          } else {
            uint32_t a[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) pixels_by_channels(a[m], z, pixel + 16 * m, channel);
            if (pass.needs_norm) {
              // Z Z', of 8 x 8 pixels each: its A fragment is its B fragment too.
#pragma unroll
              for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) mma_bfloat16(products[m][half], a[m], a[m][half], a[m][half + 2]);
            }
            const auto add_part = [&](int part) {
#pragma unroll
              for (int n = 0; n < class_tiles; ++n) {
                const float2 b = w[part * fragments + n * 32];
#pragma unroll
                for (int m = 0; m < 2; ++m) mma_bfloat16(logits[m][n], a[m], float_to_bits(b.x), float_to_bits(b.y));
              }
            };
            if (plan.weight_parts > 1) {
              add_part(2);
              add_part(1);
            }
            add_part(0);
          }
        }
      };
      if constexpr (!by_class && most_channel_tiles <= flush) {
#pragma unroll
        for (int tile = 0; tile < most_channel_tiles; ++tile)
          if (tile < my_tiles) add_tile(tile);
      } else {
        float total[2][class_tiles][4] = {};
        for (int from = 0; from < my_tiles; from += flush) {
          for (int tile = from; tile < min(from + flush, my_tiles); ++tile) add_tile(tile);
          if (from + flush >= my_tiles) break;
          if constexpr (!is_float) add_products();
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < class_tiles; ++n)
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                total[m][n][i] += logits[m][n][i];
                logits[m][n][i] = products[m][n % 2][i] = 0;
              }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) logits[m][n][i] += total[m][n][i];
      }
      if constexpr (!is_float) add_products();
      // To rows of pixels. The four lanes of a pixel have an addend of ‖z‖² each.
      float* const mine = sharing == 1 ? rows : at.shares + warp * 32 * logit_words;
      const int pitch = sharing == 1 ? row_words : logit_words;
      if (sharing == 1) __syncwarp();  // the last residuals have been read
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* const to = mine + (16 * m + 8 * half + g) * pitch;
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
            *reinterpret_cast<float2*>(to + 8 * n + 2 * t) = float2{logits[m][n][2 * half], logits[m][n][2 * half + 1]};
          to[classes + t] = squares[m][half];
        }
      if (sharing == 1)
        __syncwarp();
      else
        __syncthreads();

      // 2. Residuals.
      Pixel own{image, index * plan.pixels + pixel + lane, pixel + lane < here, pixel + lane < here};
      if (call.valid.data != nullptr) {
        if (own.inside) {
          const Place place(shape, own.at);
          own.counts = is_valid(call.valid, image, place.depth, place.y, place.x);
        }
        // 0 x NaN would count what a masked pixel holds: this warp's channels of it become 0.
        const unsigned masked = ballot(own.inside && !own.counts);
        for (int i = 0; i < 32; ++i)
          if (masked >> i & 1)
            for (int c = lane; c < 16 * my_tiles; c += 32) z.at(pixel + i, 16 * first_tile + c) = T{};
      }
      if (share == turn) {
        if (sharing > 1) {
          float row[logit_words], addend[logit_words];
          const float* from = at.shares + (group * sharing * 32 + lane) * logit_words;
          read_row(row, from);
          for (int other = 1; other < sharing; ++other) {
            read_row(addend, from + other * 32 * logit_words);
#pragma unroll
            for (int i = 0; i < logit_words; ++i) row[i] += addend[i];
          }
          write_row(own_row, row);
        }
        residual_of_pixel<T, class_tiles, by_class>(pass, own, own_row, at.totals + group * classes * columns, sums);
      }
      turn = turn + 1 == sharing ? 0 : turn + 1;
      if (sharing == 1)
        __syncwarp();
      else
        __syncthreads();
      if constexpr (by_class) {
        if (call.feature_sum == nullptr) continue;
        // Zero in the stage where a pixel does not count.
#pragma unroll
        for (int i = 0; i < stream_most_tiles(sizeof(T)) / 2; ++i)
          if (lane + 32 * i < 16 * my_tiles)
            for (int p = 0; p < 32; ++p) features[i] += to_float(z.at(pixel + p, 16 * first_tile + lane + 32 * i));
        continue;
      }
      if (!pass.outer) continue;

      // 3. Gradient.
      if constexpr (is_float) {
        float r[4][class_tiles][2];  // of 8 pixels each
#pragma unroll
        for (int block = 0; block < 4; ++block)
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) r[block][n][i] = rows[(8 * block + 2 * t + i) * row_words + 8 * n + g];
#pragma unroll
        for (int tile = 0; tile < most_channel_tiles; ++tile) {
          if (tile >= my_tiles) continue;
          float sum[class_tiles][4] = {};
#pragma unroll
          for (int block = 0; block < 4; ++block) {
            float a[4];
            uint32_t high[4], low[4];
            channels_by_pixels(a, z, (first_tile + tile) * 16, pixel + 8 * block);
#pragma unroll
            for (int i = 0; i < 4; ++i) split_tf32(a[i], round, high[i], low[i]);
#pragma unroll
            for (int n = 0; n < class_tiles; ++n)
              mma_split_tf32(sum[n], high, low, r[block][n][0], r[block][n][1], round);
          }
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) gradient[tile][n][i] += sum[n][i];
        }
      } else {
        uint32_t r[class_tiles][3][4];  // [classes][part][8 pixels]
#pragma unroll
        for (int n = 0; n < class_tiles; ++n)
#pragma unroll
          for (int part = 0; part < 3; ++part) load_matrices_transposed(r[n][part], own_row + (part * class_tiles + n) * 4);
#pragma unroll
        for (int tile = 0; tile < most_channel_tiles; ++tile) {
          if (tile >= my_tiles) continue;
          float sum[class_tiles][4] = {};
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            uint32_t a[4];
            channels_by_pixels(a, z, (first_tile + tile) * 16, pixel + 16 * m);
#pragma unroll
            for (int part = 2; part >= 0; --part)
#pragma unroll
              for (int n = 0; n < class_tiles; ++n) mma_bfloat16(sum[n], a, r[n][part][2 * m], r[n][part][2 * m + 1]);
          }
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) gradient[tile][n][i] += sum[n][i];
        }
      }
    }
  }
  __syncthreads();  // the stages become the place where warps add up

  if constexpr (by_class) {
    float* const by_warp = reinterpret_cast<float*>(at.stages);  // [warps][mass, then entropy of each class]
    float* const total = by_warp + kStreamWarps * 2 * classes;   // [channels of the tiles]
#pragma unroll
    for (int k = 0; k < classes; ++k) {
      const float mass = sum_over_warp(sums.mass[k]), entropy = sum_over_warp(sums.class_entropy[k]);
      if (lane == 0) {
        by_warp[warp * 2 * classes + k] = mass;
        by_warp[warp * 2 * classes + classes + k] = entropy;
      }
    }
    for (int turn = 0; turn < groups; ++turn) {
      if (turn == group) {
#pragma unroll
        for (int i = 0; i < stream_most_tiles(sizeof(T)) / 2; ++i) {
          float* to = total + 16 * first_tile + lane + 32 * i;
          if (lane + 32 * i < 16 * my_tiles) *to = features[i] + (turn == 0 ? 0.f : *to);
        }
      }
      __syncthreads();
    }
    float* const to = partial + gradient_size + words_of_scores(shape);
    for (int e = threadIdx.x; e < 2 * shape.classes; e += kStreamThreads) {
      const float* from = by_warp + e / shape.classes * classes + e % shape.classes;
      float sum = 0;
      for (int other = 0; other < kStreamWarps; ++other) sum += from[other * 2 * classes];
      to[e] = sum;
    }
    for (int c = threadIdx.x; c < shape.channels; c += kStreamThreads) to[2 * shape.classes + c] = total[c];
    return;
  }
  if (pass.outer) {
    float* total = reinterpret_cast<float*>(at.stages);  // [classes of the tiles][channels of the tiles]
    const int width = plan.channel_tiles * 16;
    for (int turn = 0; turn < groups; ++turn) {
      if (turn == group) {
#pragma unroll
        for (int tile = 0; tile < most_channel_tiles; ++tile) {
          if (tile >= my_tiles) continue;
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float* to = total + (8 * n + 2 * t + i % 2) * width + (first_tile + tile) * 16 + g + i / 2 * 8;
              *to = gradient[tile][n][i] + (turn == 0 ? 0.f : *to);
            }
        }
      }
      __syncthreads();
    }
    for (int64_t e = threadIdx.x; e < gradient_size; e += kStreamThreads)
      partial[e] = total[e / shape.channels * width + e % shape.channels];
    __syncthreads();
  }
  if (pass.scores) {
    float* const by_warp = reinterpret_cast<float*>(at.stages);  // [warps][entropy, margin, confidence]
    int* const valid = reinterpret_cast<int*>(by_warp + 3 * kStreamWarps);
    const float entropy = sum_over_warp(sums.entropy), margin = sum_over_warp(sums.margin);
    const float confidence = sum_over_warp(sums.confidence);
    const int counted = sum_over_warp(sums.valid);
    if (lane == 0) {
      by_warp[3 * warp] = entropy;
      by_warp[3 * warp + 1] = margin;
      by_warp[3 * warp + 2] = confidence;
      valid[warp] = counted;
    }
    __syncthreads();
    float* const to = partial + gradient_size;
    for (int k = threadIdx.x; k < shape.classes; k += kStreamThreads) {
      OfClass total{0, 0};
      for (int other = 0; other < groups; ++other)
        for (int column = 0; column < columns; ++column) {
          const OfClass& one = at.totals[(other * classes + k) * columns + column];
          total = OfClass{total.norms + one.norms, total.pixels + one.pixels};
        }
      to[k] = total.norms;
      reinterpret_cast<int*>(to)[shape.classes + k] = total.pixels;
    }
    for (int i = threadIdx.x; i < 4; i += kStreamThreads) {
      float sum = 0;
      int count = 0;
      for (int other = 0; other < kStreamWarps; ++other) {
        if (i < 3)
          sum += by_warp[3 * other + i];
        else
          count += valid[other];
      }
      if (i < 3)
        to[2 * shape.classes + i] = sum;
      else
        reinterpret_cast<int*>(to)[2 * shape.classes + 3] = count;
    }
  }
}

template <typename T, bool channels_last, int class_tiles>
void launch_stream(const Pass& pass, const StreamPlan& plan, int64_t images, void* stream) {
  const dim3 grid(static_cast<unsigned>(images * plan.cut.chunks));
  const auto run = [&](auto kernel) { launch(kernel, grid, kStreamThreads, plan.shared_bytes, stream, pass, plan); };
  if (pass.by_class)
    run(stream_kernel<T, channels_last, class_tiles, 1, true>);
  else if (plan.tiles_a_warp <= 2)
    run(stream_kernel<T, channels_last, class_tiles, 2, false>);
  else if (plan.tiles_a_warp <= 4)
    run(stream_kernel<T, channels_last, class_tiles, 4, false>);
  else
    run(stream_kernel<T, channels_last, class_tiles, stream_most_tiles(sizeof(T)), false>);
}

template <typename T, bool channels_last>
void launch_stream(const Pass& pass, const StreamPlan& plan, int64_t images, void* stream) {
  if (plan.class_tiles == 2) launch_stream<T, channels_last, 2>(pass, plan, images, stream);
  if (plan.class_tiles == 3) launch_stream<T, channels_last, 3>(pass, plan, images, stream);
}

template <typename T>
void launch_stream(const Pass& pass, const StreamPlan& plan, int64_t images, void* stream) {
  if (plan.channels_last)
    launch_stream<T, true>(pass, plan, images, stream);
  else
    launch_stream<T, false>(pass, plan, images, stream);
}

}  // namespace alges::cuda_pixel_gradients
