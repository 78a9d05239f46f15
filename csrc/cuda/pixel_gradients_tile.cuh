// The kernel that runs every head and every layout: float32 FMA over tiles in shared memory.
//
// A block takes a chunk of one image, tile by tile:
//   1. offsets of the tile's patch (the tile and the kernel's margin) into the features, -1 outside the image
//   2. logits: for each block of channels, load z of the patch and W, add W z to S (pixels x classes)
//   3. residual: softmax and argmax of S, four lanes a pixel; S becomes r, and the pixel's norm and scores are kept
//   4. sums of norms, counts and scores, by class, a warp per 1/8 of the tile
//   5. gradient: for each block of channels, z again (from shared memory where one block is all), add r ⊗ z̃
// In the reading by class S becomes p in step 3, step 4 sums p and p times the entropy, and step 5 z.
//
// Bytes: the features once from memory where the chunk's tile fits in L2, twice from L2 (once with one channel block).
// Flops: 4 K d (kernel elements) per pixel, plus 2 K d of logits again for every further channel group.
// Order of reduction: pixels of a tile within a split, tiles of a chunk, splits, then chunks (in `finish`): all fixed.
#pragma once

#include <cmath>

#include "cuda/pixel_gradients.h"
#include "cuda/pixel_gradients_pass.cuh"

namespace alges::cuda_pixel_gradients {

struct TileLayout {
  int64_t* offset;     // [halo_positions] of z in its channel's plane, or -1
  float* weight;       // [channel_block x taps][class_stride]
  float* logits;       // [pixels][class_stride], later the residual
  int* position;       // [pixels]: of the pixel's first tap in the patch
  int* prediction;     // [pixels]: -1 where the pixel does not count
  float* norm;         // [pixels]
  float* score;        // [3][pixels]: entropy, margin, confidence
  float* sums;         // [warps][2 K + 4]: norms and counts by class, three scores, valid pixels
  int* column_offset;  // [channel_block x taps]: of a column's tap from `position`
  float* square;       // [halo_positions]: ‖z‖²
  float* z;            // [channel_block][halo_stride]
  float* gradient;     // [splits][K][columns], where it fits
};

// In the order that tile_shared_bytes counts.
ALGES_DEVICE TileLayout tile_layout(const Shape& shape, const TilePlan& plan) {
  const int columns = plan.channel_block * shape.taps();
  TileLayout at;
  at.offset = reinterpret_cast<int64_t*>(dynamic_shared());
  at.weight = reinterpret_cast<float*>(at.offset + (plan.halo_positions + 1) / 2 * 2);
  at.logits = at.weight + columns * plan.class_stride;
  at.position = reinterpret_cast<int*>(at.logits + plan.pixels * plan.class_stride);
  at.prediction = at.position + plan.pixels;
  at.norm = reinterpret_cast<float*>(at.prediction + plan.pixels);
  at.score = at.norm + plan.pixels;
  at.sums = at.score + 3 * plan.pixels;
  at.column_offset = reinterpret_cast<int*>(at.sums + kTileWarps * words_of_scores(shape));
  at.square = reinterpret_cast<float*>(at.column_offset + (columns + 3) / 4 * 4);
  at.z = at.square + plan.halo_positions;
  at.gradient = at.z + plan.channel_block * plan.halo_stride;
  return at;
}

struct Tile {
  int64_t image;
  int first[3];  // coordinates of its first pixel
};

// z of channels [channel, channel + channel_block) over the patch, 0 outside the image and past the last channel.
template <typename T>
ALGES_DEVICE void load_features(const Call& call, const TilePlan& plan, const TileLayout& at, const Tile& tile, int channel) {
  const Operand& features = call.features;
  const T* base = static_cast<const T*>(features.data) + tile.image * features.stride[0] + channel * features.stride[1];
  const int64_t stride = features.stride[1];
  const int channels = min(plan.channel_block, call.shape.channels - channel);
  if (stride == 1) {
    // Channels-last: neighbouring lanes take neighbouring channels. channel_block is a power of two, at most 32.
    const int c = threadIdx.x % plan.channel_block;
    for (int h = threadIdx.x / plan.channel_block; h < plan.halo_positions; h += kTileThreads / plan.channel_block) {
      const int64_t offset = at.offset[h];
      at.z[c * plan.halo_stride + h] = offset >= 0 && c < channels ? to_float(base[offset + c]) : 0.f;
    }
  } else {
    for (int h = threadIdx.x; h < plan.halo_positions; h += kTileThreads) {
      const int64_t offset = at.offset[h];
      const T* source = base + max(offset, int64_t{0});
#pragma unroll 4
      for (int c = 0; c < plan.channel_block; ++c)
        at.z[c * plan.halo_stride + h] = offset >= 0 && c < channels ? to_float(source[c * stride]) : 0.f;
    }
  }
}

// W of channels [channel, channel + channel_block) as [column][class], 0 past the last class and channel.
ALGES_DEVICE void load_weight(const Call& call, const TilePlan& plan, const TileLayout& at, int channel) {
  const int taps = call.shape.taps(), columns = plan.channel_block * taps;
  const int present = min(plan.channel_block, call.shape.channels - channel) * taps;
  const float* base = call.weight + int64_t{channel} * taps;
  for (int e = threadIdx.x; e < columns * plan.class_stride; e += kTileThreads) {
    const int k = e / columns, j = e % columns;
    at.weight[j * plan.class_stride + k] =
        k < call.shape.classes && j < present ? base[k * call.shape.columns() + j] : 0.f;
  }
}

// Adds W z of the channels in shared memory to the logits; the first block of channels sets them, bias included.
// A thread owns pixels p and p + pixels / 2 and 16 classes.
ALGES_DEVICE void add_logits(const Call& call, const TilePlan& plan, const TileLayout& at, bool first) {
  const int half = plan.pixels / 2, columns = plan.channel_block * call.shape.taps();
  const int quads = (call.shape.classes + 3) / 4, groups = (quads + 3) / 4;
  for (int job = threadIdx.x; job < half * groups; job += kTileThreads) {
    const int p = job % half, group = job / half, group_quads = min(4, quads - 4 * group);
    const float* z0 = at.z + at.position[p];
    const float* z1 = at.z + at.position[p + half];
    float sum0[16] = {}, sum1[16] = {};
#pragma unroll 2
    for (int j = 0; j < columns; ++j) {
      const float a = z0[at.column_offset[j]], b = z1[at.column_offset[j]];
      const float4* w = reinterpret_cast<const float4*>(at.weight + j * plan.class_stride) + 4 * group;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if (q < group_quads) {
          const float4 v = w[q];
          const float classes[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sum0[4 * q + i] = fmaf(classes[i], a, sum0[4 * q + i]);
            sum1[4 * q + i] = fmaf(classes[i], b, sum1[4 * q + i]);
          }
        }
      }
    }
    float* s0 = at.logits + p * plan.class_stride + 16 * group;
    float* s1 = s0 + half * plan.class_stride;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int k = 16 * group + i;
      if (k >= call.shape.classes) continue;
      const float bias = call.bias != nullptr ? call.bias[k] : 0.f;
      s0[i] = (first ? bias : s0[i]) + sum0[i];
      s1[i] = (first ? bias : s1[i]) + sum1[i];
    }
  }
}

ALGES_DEVICE void add_squares(const TilePlan& plan, const TileLayout& at, bool first) {
  for (int h = threadIdx.x; h < plan.halo_positions; h += kTileThreads) {
    float sum = first ? 0.f : at.square[h];
    for (int c = 0; c < plan.channel_block; ++c) {
      const float z = at.z[c * plan.halo_stride + h];
      sum = fmaf(z, z, sum);
    }
    at.square[h] = sum;
  }
}

// Step 3. Lanes 4 i to 4 i + 3 of a warp work on one pixel, on classes k = lane mod 4.
ALGES_DEVICE void residuals(const Pass& pass, const TilePlan& plan, const TileLayout& at, const Tile& tile, bool writes) {
  const Call& call = pass.call;
  const int n_classes = call.shape.classes, lane = threadIdx.x % 4;
  for (int p = threadIdx.x / 4; p < plan.pixels; p += kTileThreads / 4) {
    const int x = tile.first[2] + p % plan.tile[2];
    const int y = tile.first[1] + p / plan.tile[2] % plan.tile[1];
    const int z = tile.first[0] + p / plan.tile[2] / plan.tile[1];
    const bool inside = x < call.shape.size[2] && y < call.shape.size[1] && z < call.shape.size[0];
    const bool counts = inside && is_valid(call.valid, tile.image, z, y, x);
    float* row = at.logits + p * plan.class_stride;
    if (call.logits.data != nullptr)
      for (int k = lane; k < n_classes; k += 4) row[k] = inside ? load(call.logits, tile.image, k, z, y, x) : 0.f;

    // The largest logit, the lowest class among equals. A NaN compares false everywhere, so it is looked for apart.
    float largest = -INFINITY;
    int best = n_classes;
    int has_nan = 0;
    if (pass.needs_prediction) {
      for (int k = lane; k < n_classes; k += 4) {
        const float s = row[k];
        has_nan |= s != s;
        if (s > largest || (s == largest && k < best)) {
          largest = s;
          best = k;
        }
      }
    }
    for (int lanes = 1; lanes < 4; lanes *= 2) {
      const float other = shuffle_xor(largest, lanes);
      const int other_best = shuffle_xor(best, lanes);
      has_nan |= shuffle_xor(has_nan, lanes);
      if (other > largest || (other == largest && other_best < best)) {
        largest = other;
        best = other_best;
      }
    }
    if (has_nan || best == n_classes) best = n_classes - 1;

    // e = exp(s - max s) is 1 at the prediction: softmax = e / (1 + others), and r there is -others / (1 + others),
    // because p - 1 cancels near p = 1.
    float others = 0, weighted = 0, runner_up = 0;
    if (pass.needs_prediction) {
      for (int k = lane; k < n_classes; k += 4) {
        if (k == best) continue;
        const float shifted = row[k] - largest;
        const float e = expf(shifted);
        row[k] = e;
        others += e;
        weighted += e > 0 ? e * shifted : e;
        runner_up = fmaxf(runner_up, e);
      }
    }
    for (int lanes = 1; lanes < 4; lanes *= 2) {
      others += shuffle_xor(others, lanes);
      weighted += shuffle_xor(weighted, lanes);
      runner_up = fmaxf(runner_up, shuffle_xor(runner_up, lanes));
    }
    // The softmax of a NaN, of +Inf, or of -Inf alone is NaN, whichever classes' e show it.
    if (pass.needs_prediction && (has_nan || isinf(largest))) others = NAN;
    const float inverse = 1 / (1 + others);

    float squares = 0;
    for (int k = lane; k < n_classes && (pass.needs_prediction || !pass.by_class); k += 4) {
      float r;
      if (pass.by_class)
        r = k == best ? inverse : row[k] * inverse;
      else if (call.residual.data != nullptr)
        r = counts ? load(call.residual, tile.image, k, z, y, x) : 0.f;
      else
        r = k == best ? -others * inverse : row[k] * inverse;
      if (!counts) r = 0;
      squares = fmaf(r, r, squares);
      row[k] = pass.vector && k != best ? 0.f : r;
    }
    float patch = 0;
    if (pass.needs_norm && writes) {
      const int taps = call.shape.taps();
      for (int tap = lane; tap < taps; tap += 4) patch += at.square[at.position[p] + at.column_offset[tap]];
    }
    for (int lanes = 1; lanes < 4; lanes *= 2) {
      squares += shuffle_xor(squares, lanes);
      patch += shuffle_xor(patch, lanes);
    }
    if (lane == 0) at.prediction[p] = counts ? best : -1;
    if (lane == 0 && writes) {
      const float norm = counts ? sqrtf(squares) * sqrtf(patch) : 0.f;
      at.norm[p] = norm;
      at.score[p] = log1pf(others) - weighted * inverse;
      at.score[p + plan.pixels] = (1 - runner_up) * inverse;
      at.score[p + 2 * plan.pixels] = inverse;
      if (call.norm_map != nullptr && inside)
        call.norm_map[((tile.image * call.shape.size[0] + z) * call.shape.size[1] + y) * call.shape.size[2] + x] = norm;
    }
  }
}

// Step 4. Warp w sums pixels [w, w + 1) / 8 of the tile; a lane owns a class, and the one after the classes the scores.
ALGES_DEVICE void add_sums(const Call& call, const TilePlan& plan, const TileLayout& at) {
  const int n_classes = call.shape.classes, warp = threadIdx.x / 32, share = plan.pixels / kTileWarps;
  float* sums = at.sums + warp * words_of_scores(call.shape);
  for (int k = threadIdx.x % 32; k <= n_classes; k += 32) {
    float norm = 0, entropy = 0, margin = 0, confidence = 0;
    int count = 0;
    for (int p = warp * share; p < (warp + 1) * share; ++p) {
      const int prediction = at.prediction[p];
      if (prediction == k) {
        norm += at.norm[p];
        ++count;
      } else if (k == n_classes && prediction >= 0) {
        entropy += at.score[p];
        margin += at.score[p + plan.pixels];
        confidence += at.score[p + 2 * plan.pixels];
        ++count;
      }
    }
    int* counts = reinterpret_cast<int*>(sums + n_classes);
    if (k < n_classes) {
      sums[k] += norm;
      counts[k] += count;
    } else {
      sums[2 * n_classes] += entropy;
      sums[2 * n_classes + 1] += margin;
      sums[2 * n_classes + 2] += confidence;
      counts[n_classes + 3] += count;
    }
  }
}

// Step 4 of the reading by class: a lane owns a class, and adds up p and p times the pixel's entropy.
ALGES_DEVICE void add_probabilities(const Call& call, const TilePlan& plan, const TileLayout& at) {
  const int n_classes = call.shape.classes, warp = threadIdx.x / 32, share = plan.pixels / kTileWarps;
  float* sums = at.sums + warp * words_of_scores(call.shape);
  for (int k = threadIdx.x % 32; k < n_classes; k += 32) {
    float mass = 0, entropy = 0;
    for (int i = warp * share; i < (warp + 1) * share; ++i) {
      if (at.prediction[i] < 0) continue;
      const float p = at.logits[i * plan.class_stride + k];
      mass += p;
      entropy = fmaf(p, at.score[i], entropy);
    }
    sums[k] += mass;
    sums[n_classes + k] += entropy;
  }
}

// Step 5 of the reading by class for the channels in shared memory: four lanes a channel, every fourth pixel each.
ALGES_DEVICE void add_features(const Call& call, const TilePlan& plan, const TileLayout& at, int channel, float* total) {
  const int taps = call.shape.taps(), lane = threadIdx.x % 4;
  const int channels = min(plan.channel_block, call.shape.channels - channel);
  const int c = threadIdx.x / 4;  // a block of channels is at most 32
  float sum = 0;
  if (c < channels) {
    const float* z = at.z + at.column_offset[c * taps + taps / 2];  // the middle of a patch is the pixel itself
    for (int p = lane; p < plan.pixels; p += 4)
      if (at.prediction[p] >= 0) sum += z[at.position[p]];
  }
  for (int lanes = 1; lanes < 4; lanes *= 2) sum += shuffle_xor(sum, lanes);
  if (lane == 0 && c < channels) total[channel + c] += sum;
}

// Step 5 for the channels in shared memory. A thread owns two columns (a channel's tap each), 16 classes and every
// splits-th pixel, and adds the tile's sum to its own copy of the gradient.
ALGES_DEVICE void add_gradient(const Call& call, const TilePlan& plan, const TileLayout& at, int channel, float* gradient) {
  const int taps = call.shape.taps(), n_classes = call.shape.classes;
  const int columns = min(plan.channel_block, call.shape.channels - channel) * taps, pairs = (columns + 1) / 2;
  const int quads = (n_classes + 3) / 4, groups = (quads + 3) / 4;
  const int64_t all_columns = call.shape.columns();
  for (int job = threadIdx.x; job < pairs * groups * plan.splits; job += kTileThreads) {
    const int j0 = job % pairs, group = job / pairs % groups, split = job / pairs / groups;
    const int j1 = min(j0 + pairs, columns - 1), group_quads = min(4, quads - 4 * group);
    const float* z0 = at.z + at.column_offset[j0];
    const float* z1 = at.z + at.column_offset[j1];
    float sum0[16] = {}, sum1[16] = {};
#pragma unroll 2
    for (int p = split; p < plan.pixels; p += plan.splits) {
      if (at.prediction[p] < 0) continue;  // 0 x NaN would count what a masked pixel holds
      const float a = z0[at.position[p]], b = z1[at.position[p]];
      const float4* r = reinterpret_cast<const float4*>(at.logits + p * plan.class_stride) + 4 * group;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if (q < group_quads) {
          const float4 v = r[q];
          const float classes[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sum0[4 * q + i] = fmaf(classes[i], a, sum0[4 * q + i]);
            sum1[4 * q + i] = fmaf(classes[i], b, sum1[4 * q + i]);
          }
        }
      }
    }
    float* to = gradient + (int64_t{split} * n_classes + 16 * group) * all_columns + int64_t{channel} * taps;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (16 * group + i >= n_classes) continue;
      to[i * all_columns + j0] += sum0[i];
      if (j0 + pairs < columns) to[i * all_columns + j1] += sum1[i];
    }
  }
}

template <typename T>
ALGES_KERNEL(kTileThreads, 2)
tile_kernel(ALGES_PARAMETER Pass pass, ALGES_PARAMETER TilePlan plan) {
  const Call& call = pass.call;
  const Shape& shape = call.shape;
  const TileLayout at = tile_layout(shape, plan);
  const int n_classes = shape.classes, taps = shape.taps(), tid = threadIdx.x;
  const int sums_width = static_cast<int>(words_of_scores(shape));
  const int64_t gradient_size = n_classes * shape.columns();
  const bool writes = blockIdx.y == 0;  // of the channel groups, one writes what does not depend on channels

  // This group's channel blocks.
  const int first_block = static_cast<int>(int64_t{plan.channel_blocks} * blockIdx.y / plan.groups);
  const int last_block = static_cast<int>(int64_t{plan.channel_blocks} * (blockIdx.y + 1) / plan.groups);

  const int chunk = blockIdx.x % plan.cut.chunks;
  const int64_t image_in_launch = blockIdx.x / plan.cut.chunks;
  float* partial = pass.scratch + int64_t{blockIdx.x} * plan.cut.words;
  float* gradient = plan.accumulate_in_shared ? at.gradient : partial;

  for (int p = tid; p < plan.pixels; p += kTileThreads) {
    const int x = p % plan.tile[2], y = p / plan.tile[2] % plan.tile[1], z = p / plan.tile[2] / plan.tile[1];
    at.position[p] = (z * plan.halo[1] + y) * plan.halo[2] + x;
  }
  for (int j = tid; j < plan.channel_block * taps; j += kTileThreads) {
    const int tap = j % taps, x = tap % shape.kernel[2], y = tap / shape.kernel[2] % shape.kernel[1];
    const int z = tap / shape.kernel[2] / shape.kernel[1];
    at.column_offset[j] = j / taps * plan.halo_stride + (z * plan.halo[1] + y) * plan.halo[2] + x;
  }
  for (int e = tid; e < kTileWarps * sums_width; e += kTileThreads) at.sums[e] = 0;
  float* const by_class = partial + gradient_size + sums_width;  // [2 K + d]
  float* const features = by_class + 2 * n_classes;
  if (pass.by_class) {
    const int to = min(last_block * plan.channel_block, shape.channels);
    for (int c = first_block * plan.channel_block + tid; c < to; c += kTileThreads) features[c] = 0;
  }
  if (pass.outer) {
    if (plan.accumulate_in_shared) {
      for (int e = tid; e < plan.splits * gradient_size; e += kTileThreads) gradient[e] = 0;
    } else {
      const int64_t from = int64_t{first_block} * plan.channel_block * taps;
      const int64_t to = min(int64_t{last_block} * plan.channel_block * taps, shape.columns());
      for (int k = 0; k < n_classes; ++k)
        for (int64_t j = from + tid; j < to; j += kTileThreads) gradient[k * shape.columns() + j] = 0;
    }
  }
  const bool one_block = plan.channel_blocks == 1;
  const bool makes_logits = pass.needs_prediction && call.logits.data == nullptr;
  if (one_block && makes_logits) load_weight(call, plan, at, 0);

  int64_t per_axis[3];
  for (int axis = 0; axis < 3; ++axis) per_axis[axis] = (int64_t{shape.size[axis]} + plan.tile[axis] - 1) / plan.tile[axis];
  Tile tile;
  tile.image = pass.first_image + image_in_launch;
  for (int64_t index = plan.cut.tiles * chunk / plan.cut.chunks; index < plan.cut.tiles * (chunk + 1) / plan.cut.chunks;
       ++index) {
    tile.first[2] = static_cast<int>(index % per_axis[2]) * plan.tile[2];
    tile.first[1] = static_cast<int>(index / per_axis[2] % per_axis[1]) * plan.tile[1];
    tile.first[0] = static_cast<int>(index / per_axis[2] / per_axis[1]) * plan.tile[0];
    __syncthreads();  // the tile before is done with everything

    for (int h = tid; h < plan.halo_positions; h += kTileThreads) {
      const int64_t x = int64_t{tile.first[2]} + h % plan.halo[2] - shape.kernel[2] / 2;
      const int64_t y = int64_t{tile.first[1]} + h / plan.halo[2] % plan.halo[1] - shape.kernel[1] / 2;
      const int64_t z = int64_t{tile.first[0]} + h / plan.halo[2] / plan.halo[1] - shape.kernel[0] / 2;
      const bool inside = x >= 0 && x < shape.size[2] && y >= 0 && y < shape.size[1] && z >= 0 && z < shape.size[0];
      at.offset[h] =
          inside ? z * call.features.stride[2] + y * call.features.stride[3] + x * call.features.stride[4] : -1;
    }
    __syncthreads();

    // Without logits to make or norms to take, the channels are needed for the gradient alone.
    const bool reads_again = pass.outer || (pass.by_class && call.feature_sum != nullptr);
    const bool first_reading = makes_logits || (pass.needs_norm && writes) || (one_block && reads_again);
    for (int block = 0; first_reading && block < plan.channel_blocks; ++block) {
      if (block > 0) __syncthreads();
      load_features<T>(call, plan, at, tile, block * plan.channel_block);
      if (!one_block && makes_logits) load_weight(call, plan, at, block * plan.channel_block);
      __syncthreads();
      if (makes_logits) add_logits(call, plan, at, block == 0);
      if (pass.needs_norm && writes) add_squares(plan, at, block == 0);
    }
    __syncthreads();
    residuals(pass, plan, at, tile, writes);
    __syncthreads();
    if (writes && pass.scores) add_sums(call, plan, at);
    if (writes && pass.by_class && pass.needs_prediction) add_probabilities(call, plan, at);
    if (!reads_again) continue;
    for (int block = first_block; block < last_block; ++block) {
      if (!one_block) {
        __syncthreads();
        load_features<T>(call, plan, at, tile, block * plan.channel_block);
        __syncthreads();
      }
      if (pass.by_class)
        add_features(call, plan, at, block * plan.channel_block, features);
      else
        add_gradient(call, plan, at, block * plan.channel_block, gradient);
    }
  }
  __syncthreads();

  if (pass.outer && plan.accumulate_in_shared) {
    const int64_t from = int64_t{first_block} * plan.channel_block * taps;
    const int64_t to = min(int64_t{last_block} * plan.channel_block * taps, shape.columns());
    for (int k = 0; k < n_classes; ++k) {
      for (int64_t j = from + tid; j < to; j += kTileThreads) {
        float sum = 0;
        for (int split = 0; split < plan.splits; ++split) sum += gradient[split * gradient_size + k * shape.columns() + j];
        partial[k * shape.columns() + j] = sum;
      }
    }
  }
  if (writes && pass.by_class) {
    for (int e = tid; e < 2 * n_classes; e += kTileThreads) {
      float sum = 0;
      for (int warp = 0; warp < kTileWarps; ++warp) sum += at.sums[warp * sums_width + e];
      by_class[e] = sum;
    }
  }
  if (writes && pass.scores) {
    for (int e = tid; e < sums_width; e += kTileThreads) {
      const bool count = (e >= n_classes && e < 2 * n_classes) || e == 2 * n_classes + 3;
      float sum = 0;
      int total = 0;
      for (int warp = 0; warp < kTileWarps; ++warp) {
        const float* value = at.sums + warp * sums_width + e;
        if (count)
          total += *reinterpret_cast<const int*>(value);
        else
          sum += *value;
      }
      if (count)
        reinterpret_cast<int*>(partial)[gradient_size + e] = total;
      else
        partial[gradient_size + e] = sum;
    }
  }
}

}  // namespace alges::cuda_pixel_gradients
