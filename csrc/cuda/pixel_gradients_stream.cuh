// The kernel for the common case, bound by memory: a 1 x 1 head of up to 24 classes over planar or channels-last rows.
//
// A block of 4 warps takes a chunk of one image, tile by tile, z of the tiles ahead arriving in shared memory meanwhile.
// Each warp takes 32 pixels at a time, with 1, 2 or 4 warps sharing the channels of the same pixels:
//   1. logits S = Z W', 16 pixels x 8 classes a product, on tensor cores; ‖z‖² on the side
//   2. softmax in registers, four lanes a pixel: S becomes R; norms, counts and scores add up in registers
//   3. gradient G += Z' R, 16 channels x 8 classes a product: R goes from step 1's layout to step 3's by transposing 8 x 8
//      blocks within the warp
// and G, a warp's channels x classes, stays in registers until the chunk ends. In the reading by class step 2 sums p and p
// times the entropy, and step 3 z.
//
// float32: operands split into two TF32 parts, three products each (one where torch allows plain TF32). bfloat16: z as it is,
// W and R split into three bfloat16 parts, 24 bits. Tensor cores do not round to nearest when they add, so sums of at most
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
// 2 t + 1, as `transposed_block` leaves R.
template <bool channels_last>
ALGES_DEVICE void channels_by_pixels(float (&a)[4], const Stage<float, channels_last>& z, int channel, int pixel) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = z.at(pixel + 2 * t + i / 2, channel + g + i % 2 * 8);
}

// An 8 x 8 block of float32, [g][2t..2t+1] in and [2t..2t+1][g] out.
ALGES_DEVICE void transposed_block(float (&out)[2], float first, float second) {
  const uint32_t a = float_to_bits(first), b = float_to_bits(second);
  const uint32_t low = transpose(low_halves(a, b)), high = transpose(high_halves(a, b));
  out[0] = bits_to_float(low_halves(low, high));
  out[1] = bits_to_float(high_halves(low, high));
}

// value = high + low, the high part in TF32.
ALGES_DEVICE void split_tf32(float value, uint32_t& high, uint32_t& low) {
  high = to_tf32(value);
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
                                 bool split) {
  uint32_t high0, high1, low0, low1;
  split_tf32(b0, high0, low0);
  split_tf32(b1, high1, low1);
  if (split) {
    mma_tf32(c, low, high0, high1);
    mma_tf32(c, high, low0, low1);
  }
  mma_tf32(c, high, high0, high1);
}

struct StreamLayout {
  unsigned char* stages;
  float* weight;    // B fragments in order of use: [step][class tile][lane], two words each, for each part
  float* exchange;  // [4 warps][floats of a lane][32], where warps share pixels
  float* bias;      // [classes of the tiles]: -Inf past the last class
};

// In the order that plan_stream counts.
ALGES_DEVICE StreamLayout stream_layout(const StreamPlan& plan) {
  StreamLayout at;
  at.stages = dynamic_shared();
  at.weight = reinterpret_cast<float*>(at.stages + plan.stages * plan.stage_bytes);
  at.exchange = at.weight + plan.weight_words;
  at.bias = at.exchange + plan.exchange_words;
  return at;
}

// W in fragment order. float32: two words W[class g][channel t], W[class g][channel t + 4]; bfloat16: a part's two words are
// W[class g][channels 2t, 2t+1] and [2t+8, 2t+9]. Says whether any part past the first is not zero.
template <typename T, int class_tiles>
ALGES_DEVICE bool load_fragments(const Call& call, const StreamPlan& plan, float* weight) {
  constexpr bool is_float = sizeof(T) == 4;
  const int step_channels = is_float ? 8 : 16;
  const int fragments = plan.channel_tiles * 16 / step_channels * class_tiles * 32;
  bool wide = false;
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
        for (int part = 0; part < 3; ++part) weight[2 * (part * fragments + e) + half] = bits_to_float(parts[part]);
        wide |= ((parts[1] | parts[2]) & 0x7fff7fffu) != 0;
      }
    }
  }
  return wide;
}

// Starts the copies of a tile: pixels [first, first + plan.pixels) of the image, zeros past the image's last pixel.
template <typename T, bool channels_last>
ALGES_DEVICE void copy_tile(const Call& call, const StreamPlan& plan, const Stage<T, channels_last>& stage, int64_t image,
                            int64_t first) {
  constexpr int piece = 16 / sizeof(T);
  const T* base = static_cast<const T*>(call.features.data) + image * call.features.stride[0];
  const int64_t pixels = call.shape.pixels() - first;
  if (channels_last) {
    const int pieces = call.shape.channels / piece;
    for (int e = threadIdx.x; e < plan.pixels * pieces; e += kStreamThreads) {
      const int p = e / pieces, c = e % pieces * piece;
      copy_async(&stage.at(p, c), p < pixels ? base + (first + p) * call.features.stride[4] + c : base, p < pixels);
    }
  } else {
    const int pieces = plan.pixels / piece;  // a power of two
    for (int e = threadIdx.x; e < call.shape.channels * pieces; e += kStreamThreads) {
      const int p = e % pieces * piece, c = e / pieces;
      copy_async(&stage.at(p, c), p < pixels ? base + c * call.features.stride[1] + first + p : base, p < pixels);
    }
  }
}

ALGES_DEVICE void wait_for_stage(int stages) {
  if (stages == 2)
    copy_wait<0>();
  else if (stages == 3)
    copy_wait<1>();
  else
    copy_wait<2>();
}

// What a lane keeps over a chunk: of its classes 8 n + 2 t + j the sums of norms and counts, and the scores.
template <int class_tiles>
struct Sums {
  float semantic[2 * class_tiles];
  int count[2 * class_tiles];
  float entropy, margin, confidence;
  int valid;
  float mass[2 * class_tiles], class_entropy[2 * class_tiles];  // in the reading by class, instead of the others
};

// Step 2 for one pixel, by the four lanes that hold its classes: s is the logits, then r. `square` is ‖z‖². Lane t has
// s[i] of class 8 (i / 2) + 2 t + i % 2. Returns the pixel's norm.
template <int class_tiles, bool by_class>
ALGES_DEVICE float residual_of_pixel(const Pass& pass, float (&s)[2 * class_tiles], const float (&given)[2 * class_tiles],
                                     float square, bool counts, Sums<class_tiles>& sums) {
  const int first = 2 * (threadIdx.x % 4);
  const bool given_residual = pass.call.residual.data != nullptr;
  float largest = -INFINITY;
  int best = 8 * class_tiles, has_nan = 0;
#pragma unroll
  for (int i = 0; i < 2 * class_tiles; ++i) {
    const int k = i / 2 * 8 + first + i % 2;
    has_nan |= s[i] != s[i];
    if (s[i] > largest || (s[i] == largest && k < best)) {
      largest = s[i];
      best = k;
    }
  }
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    const float other = shuffle_xor(largest, lanes);
    const int other_best = shuffle_xor(best, lanes);
    has_nan |= shuffle_xor(has_nan, lanes);
    if (other > largest || (other == largest && other_best < best)) {
      largest = other;
      best = other_best;
    }
  }
  if (has_nan || best >= pass.call.shape.classes) best = pass.call.shape.classes - 1;

  // As in the tile kernel: e is 1 at the prediction, and r there is -others / (1 + others).
  float others = 0, weighted = 0, runner_up = 0;
#pragma unroll
  for (int i = 0; i < 2 * class_tiles; ++i) {
    const float shifted = s[i] - largest;
    const bool is_best = i / 2 * 8 + first + i % 2 == best;
    const float e = is_best ? 0.f : expf(shifted);
    others += e;
    weighted += e > 0 ? e * shifted : e;
    runner_up = fmaxf(runner_up, e);
    s[i] = e;
  }
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    others += shuffle_xor(others, lanes);
    weighted += shuffle_xor(weighted, lanes);
    runner_up = fmaxf(runner_up, shuffle_xor(runner_up, lanes));
  }
  if (has_nan || isinf(largest)) others = NAN;
  const float inverse = 1 / (1 + others);
  if constexpr (by_class) {
    if (!counts) return 0;
    const float entropy = log1pf(others) - weighted * inverse;
#pragma unroll
    for (int i = 0; i < 2 * class_tiles; ++i) {
      const float p = i / 2 * 8 + first + i % 2 == best ? inverse : s[i] * inverse;
      sums.mass[i] += p;
      sums.class_entropy[i] = fmaf(p, entropy, sums.class_entropy[i]);
    }
    return 0;
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 2 * class_tiles; ++i) {
    const int k = i / 2 * 8 + first + i % 2;
    float r = given_residual ? given[i] : k == best ? -others * inverse : s[i] * inverse;
    if (!counts || k >= pass.call.shape.classes) r = 0;
    squares = fmaf(r, r, squares);
    s[i] = pass.vector && k != best ? 0.f : r;
  }
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) squares += shuffle_xor(squares, lanes);
  const float norm = counts ? sqrtf(squares) * sqrtf(square) : 0.f;
  if (counts) {
#pragma unroll
    for (int i = 0; i < 2 * class_tiles; ++i) {
      if (i / 2 * 8 + first + i % 2 == best) {
        sums.semantic[i] += norm;
        ++sums.count[i];
      }
    }
    sums.entropy += log1pf(others) - weighted * inverse;
    sums.margin += (1 - runner_up) * inverse;
    sums.confidence += inverse;
    ++sums.valid;
  }
  return norm;
}

// The sum over the eight lanes with this lane's t, the same in all of them.
template <typename V>
ALGES_DEVICE V sum_over_rows(V value) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) value += shuffle_xor(value, lanes);
  return value;
}

template <typename T, bool channels_last, int class_tiles, int most_channel_tiles, bool by_class>
ALGES_KERNEL(kStreamThreads, 2)
stream_kernel(ALGES_PARAMETER Pass pass, ALGES_PARAMETER StreamPlan plan) {
  constexpr bool is_float = sizeof(T) == 4;
  constexpr int steps_a_tile = is_float ? 2 : 1;  // products that 16 channels take
  constexpr int flush = 64 / 16;                  // channel tiles that tensor cores add up
  const Call& call = pass.call;
  const Shape& shape = call.shape;
  const StreamLayout at = stream_layout(plan);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int sharing = plan.sharing, groups = kStreamWarps / sharing;
  const int group = warp / sharing, share = warp % sharing;
  const int first_tile = share * plan.tiles_a_warp;  // this warp's channels, in tiles of 16
  const int my_tiles = max(0, min(plan.tiles_a_warp, plan.channel_tiles - first_tile));
  const int chunk = blockIdx.x % plan.cut.chunks;
  const int64_t image = pass.first_image + blockIdx.x / plan.cut.chunks;
  const int64_t gradient_size = int64_t{shape.classes} * shape.channels;
  float* partial = pass.scratch + int64_t{blockIdx.x} * plan.cut.words;
  const int fragments = plan.channel_tiles * steps_a_tile * class_tiles * 32;

  const auto stage = [&](int64_t index) {
    return Stage<T, channels_last>{reinterpret_cast<T*>(at.stages + index % plan.stages * plan.stage_bytes), plan.stride};
  };
  // Channels past the last are zero in every stage, and no copy touches them.
  const int padding = plan.channel_tiles * 16 - shape.channels;
  for (int e = threadIdx.x; e < plan.stages * plan.pixels * padding; e += kStreamThreads)
    stage(e / (plan.pixels * padding)).at(e / padding % plan.pixels, shape.channels + e % padding) = T{};
  for (int k = threadIdx.x; k < class_tiles * 8; k += kStreamThreads)
    at.bias[k] = k >= shape.classes ? -INFINITY : call.bias != nullptr ? call.bias[k] : 0.f;

  const int64_t first_index = plan.cut.tiles * chunk / plan.cut.chunks;
  const int64_t last_index = plan.cut.tiles * (chunk + 1) / plan.cut.chunks;
  const auto start_copy = [&](int64_t index) {
    if (index < last_index) copy_tile(call, plan, stage(index), image, index * plan.pixels);
    copy_commit();
  };
  for (int ahead = 0; ahead < plan.stages - 1; ++ahead) start_copy(first_index + ahead);
  const bool wide = block_any(load_fragments<T, class_tiles>(call, plan, at.weight));

  Sums<class_tiles> sums{};
  float gradient[most_channel_tiles][class_tiles][4] = {};
  float features[stream_most_tiles(sizeof(T)) / 2] = {};  // of the warp's channels, a lane every 32nd
  for (int64_t index = first_index; index < last_index; ++index) {
    wait_for_stage(plan.stages);
    __syncthreads();  // this tile is here for all, and all are done with the stage that the next copy fills
    start_copy(index + plan.stages - 1);
    const Stage<T, channels_last> z = stage(index);

    for (int pixel = 32 * group; pixel < plan.pixels; pixel += 32 * groups) {
      const int64_t first_pixel = index * plan.pixels + pixel;

      // 1. Logits of 2 x 16 pixels over this warp's channels.
      float logits[2][class_tiles][4] = {}, squares[2][2] = {};
      for (int from = 0; from < my_tiles; from += flush) {
        float sum[2][class_tiles][4] = {};
        for (int tile = from; tile < min(from + flush, my_tiles); ++tile) {
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
                  split_tf32(a[i], high[m][i], low[m][i]);
                }
              }
#pragma unroll
              for (int n = 0; n < class_tiles; ++n) {
                const float2 b = w[n * 32];
#pragma unroll
                for (int m = 0; m < 2; ++m) mma_split_tf32(sum[m][n], high[m], low[m], b.x, b.y, !call.allow_tf32);
              }
            } else {
              uint32_t a[2][4];
#pragma unroll
              for (int m = 0; m < 2; ++m) {
                pixels_by_channels(a[m], z, pixel + 16 * m, channel);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  const float even = bits_to_float(a[m][i] << 16), odd = bits_to_float(a[m][i] & 0xffff0000u);
                  squares[m][i % 2] = fmaf(even, even, fmaf(odd, odd, squares[m][i % 2]));
                }
              }
#pragma unroll
              for (int n = 0; n < class_tiles; ++n) {
#pragma unroll
                for (int part = 2; part >= 0; --part) {
                  if (part > 0 && !wide) continue;
                  const float2 b = w[part * fragments + n * 32];
#pragma unroll
                  for (int m = 0; m < 2; ++m) mma_bfloat16(sum[m][n], a[m], float_to_bits(b.x), float_to_bits(b.y));
                }
              }
            }
          }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) logits[m][n][i] += sum[m][n][i];
      }
      // A lane has ‖z‖² of a quarter of the channels.
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int lanes = 1; lanes < 4; lanes *= 2) squares[m][half] += shuffle_xor(squares[m][half], lanes);
      if (sharing > 1) {
        // Every warp adds the shares up in the same order, so all agree on the prediction.
        constexpr int floats = 2 * (4 * class_tiles + 2);
        __syncthreads();  // the last exchange has been read
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          float* mine = at.exchange + ((warp * 2 + m) * (floats / 2)) * 32 + lane;
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) mine[(4 * n + i) * 32] = logits[m][n][i];
          mine[4 * class_tiles * 32] = squares[m][0];
          mine[(4 * class_tiles + 1) * 32] = squares[m][1];
        }
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) logits[m][n][i] = 0;
          squares[m][0] = squares[m][1] = 0;
          for (int other = 0; other < sharing; ++other) {
            const float* theirs = at.exchange + (((group * sharing + other) * 2 + m) * (floats / 2)) * 32 + lane;
#pragma unroll
            for (int n = 0; n < class_tiles; ++n)
#pragma unroll
              for (int i = 0; i < 4; ++i) logits[m][n][i] += theirs[(4 * n + i) * 32];
            squares[m][0] += theirs[4 * class_tiles * 32];
            squares[m][1] += theirs[(4 * class_tiles + 1) * 32];
          }
        }
      }

      // 2. Residuals: a lane has pixels g and g + 8 of each 16.
      if (call.valid.data != nullptr) __syncwarp();  // step 1 has read what is masked below
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t p = first_pixel + 16 * m + 8 * half + g;
          const bool inside = p < shape.pixels();
          float s[2 * class_tiles], given[2 * class_tiles] = {};
          bool counts = inside;
          if (inside && (call.valid.data != nullptr || call.logits.data != nullptr || call.residual.data != nullptr)) {
            const int x = static_cast<int>(p % shape.size[2]), y = static_cast<int>(p / shape.size[2] % shape.size[1]);
            const int depth = static_cast<int>(p / shape.size[2] / shape.size[1]);
            counts = is_valid(call.valid, image, depth, y, x);
#pragma unroll
            for (int i = 0; i < 2 * class_tiles; ++i) {
              const int k = i / 2 * 8 + 2 * t + i % 2;
              if (call.logits.data != nullptr)
                logits[m][i / 2][2 * half + i % 2] =
                    k < shape.classes ? load(call.logits, image, k, depth, y, x) : -INFINITY;
              if (!by_class && call.residual.data != nullptr && k < shape.classes)
                given[i] = load(call.residual, image, k, depth, y, x);
            }
          }
#pragma unroll
          for (int i = 0; i < 2 * class_tiles; ++i) {
            s[i] = logits[m][i / 2][2 * half + i % 2];
            if (call.logits.data == nullptr) s[i] += at.bias[i / 2 * 8 + 2 * t + i % 2];
          }
          const float norm = residual_of_pixel<class_tiles, by_class>(pass, s, given, squares[m][half], counts, sums);
          if (call.norm_map != nullptr && inside && share == 0 && t == 0) call.norm_map[image * shape.pixels() + p] = norm;
#pragma unroll
          for (int i = 0; i < 2 * class_tiles; ++i) logits[m][i / 2][2 * half + i % 2] = s[i];
          if (call.valid.data != nullptr) {
            // 0 x NaN would count what a masked pixel holds: its channels become 0. Lane 4 i speaks for pixel i of the 8.
            const unsigned masked = ballot(inside && !counts);
            for (int i = 0; i < 8; ++i)
              if (masked >> 4 * i & 1)
                for (int c = lane; c < 16 * my_tiles; c += 32) z.at(pixel + 16 * m + 8 * half + i, 16 * first_tile + c) = T{};
          }
        }
      }
      if constexpr (by_class) {
        if (call.feature_sum == nullptr) continue;
        if (call.valid.data != nullptr) __syncwarp();
        // Zero in the stage where a pixel does not count.
#pragma unroll
        for (int i = 0; i < stream_most_tiles(sizeof(T)) / 2; ++i)
          if (lane + 32 * i < 16 * my_tiles)
            for (int p = 0; p < 32; ++p) features[i] += to_float(z.at(pixel + p, 16 * first_tile + lane + 32 * i));
        continue;
      }
      if (!pass.outer) continue;
      if (call.valid.data != nullptr) __syncwarp();

      // 3. Gradient.
      if constexpr (is_float) {
        float r[4][class_tiles][2];  // of 8 pixels each
#pragma unroll
        for (int block = 0; block < 4; ++block)
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
            transposed_block(r[block][n], logits[block / 2][n][block % 2 * 2], logits[block / 2][n][block % 2 * 2 + 1]);
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
            for (int i = 0; i < 4; ++i) split_tf32(a[i], high[i], low[i]);
#pragma unroll
            for (int n = 0; n < class_tiles; ++n)
              mma_split_tf32(sum[n], high, low, r[block][n][0], r[block][n][1], !call.allow_tf32);
          }
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) gradient[tile][n][i] += sum[n][i];
        }
      } else {
        uint32_t r[2][class_tiles][2][3];  // [16 pixels][classes][8 pixels][part]
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              split_bfloat16(logits[m][n][2 * half], logits[m][n][2 * half + 1], r[m][n][half]);
#pragma unroll
              for (int part = 0; part < 3; ++part) r[m][n][half][part] = transpose(r[m][n][half][part]);
            }
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
              for (int n = 0; n < class_tiles; ++n) mma_bfloat16(sum[n], a, r[m][n][0][part], r[m][n][1][part]);
          }
#pragma unroll
          for (int n = 0; n < class_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) gradient[tile][n][i] += sum[n][i];
        }
      }
    }
  }
  __syncthreads();  // the stages become the place where pixel groups add up

  if constexpr (by_class) {
    constexpr int width = 16 * class_tiles;
    float* const by_warp = reinterpret_cast<float*>(at.stages);  // [warps][width]
    float* const total = by_warp + kStreamWarps * width;         // [channels of the tiles]
#pragma unroll
    for (int i = 0; i < 2 * class_tiles; ++i) {
      const float mass = sum_over_rows(sums.mass[i]), entropy = sum_over_rows(sums.class_entropy[i]);
      if (g == 0) {
        by_warp[warp * width + i / 2 * 8 + 2 * t + i % 2] = mass;
        by_warp[warp * width + 8 * class_tiles + i / 2 * 8 + 2 * t + i % 2] = entropy;
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
      const float* from = by_warp + e / shape.classes * 8 * class_tiles + e % shape.classes;
      float sum = 0;
      for (int other = 0; other < groups; ++other) sum += from[other * sharing * width];
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
    // Lanes with the same t hold the same classes: add over g, then over the pixel groups.
    constexpr int width = 16 * class_tiles + 4;
    float* totals = reinterpret_cast<float*>(at.stages) + warp * width;
    int* counts = reinterpret_cast<int*>(totals);
#pragma unroll
    for (int i = 0; i < 2 * class_tiles; ++i) {
      const float semantic = sum_over_rows(sums.semantic[i]);
      const int count = sum_over_rows(sums.count[i]);
      if (g == 0) {
        totals[i / 2 * 8 + 2 * t + i % 2] = semantic;
        counts[8 * class_tiles + i / 2 * 8 + 2 * t + i % 2] = count;
      }
    }
    const float entropy = sum_over_rows(sums.entropy), margin = sum_over_rows(sums.margin);
    const float confidence = sum_over_rows(sums.confidence);
    const int valid = sum_over_rows(sums.valid);
    if (lane == 0) {
      totals[width - 4] = entropy;
      totals[width - 3] = margin;
      totals[width - 2] = confidence;
      counts[width - 1] = valid;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < words_of_scores(shape); e += kStreamThreads) {
      const int kind = e < 2 * shape.classes ? e / shape.classes : 2;
      const int column = kind * 8 * class_tiles + e - kind * shape.classes;
      const float* from = reinterpret_cast<const float*>(at.stages) + column;
      if (kind == 1 || column == width - 1) {
        int total = 0;
        for (int other = 0; other < groups; ++other) total += reinterpret_cast<const int*>(from)[other * sharing * width];
        reinterpret_cast<int*>(partial)[gradient_size + e] = total;
      } else {
        float total = 0;
        for (int other = 0; other < groups; ++other) total += from[other * sharing * width];
        partial[gradient_size + e] = total;
      }
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
