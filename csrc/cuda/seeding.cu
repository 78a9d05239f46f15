// Kernels of csrc/cuda/seeding.h.
//
// A warp takes a tile of rows. Sixteen lanes (eight in double) measure a row, so two (four) rows at a time: lane l sums
// columns l, l + 16, ... and a butterfly adds the lanes, which is the order of the CPU kernel's sums. The distance then
// belongs to the lane of the row's place in the tile, and all lanes update minima and draw at once. Bytes moved: the points
// once, and 4 (minimum in) + 4 (out) a row. Flops: 3 a coordinate. Blocks leave their best candidate in `partials`; whoever
// comes next reduces those. Nothing is added with atomics, so results repeat bit for bit.
#include "cuda/seeding.h"

#include <cmath>

#include "cuda/primitives.cuh"

namespace alges::cuda_seeding {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

ALGES_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
ALGES_DEVICE double fused(double a, double b, double c) { return fma(a, b, c); }

ALGES_DEVICE double shuffle_xor(double value, int lanes) {
  int halves[2];
  memcpy(halves, &value, 8);
  halves[0] = alges::shuffle_xor(halves[0], lanes);
  halves[1] = alges::shuffle_xor(halves[1], lanes);
  memcpy(&value, halves, 8);
  return value;
}
ALGES_DEVICE int64_t shuffle_xor(int64_t value, int lanes) {
  int halves[2];
  memcpy(halves, &value, 8);
  halves[0] = alges::shuffle_xor(halves[0], lanes);
  halves[1] = alges::shuffle_xor(halves[1], lanes);
  memcpy(&value, halves, 8);
  return value;
}
ALGES_DEVICE float shuffle_xor(float value, int lanes) { return alges::shuffle_xor(value, lanes); }

template <typename A, typename T>
ALGES_DEVICE A wide(T value) {
  if constexpr (sizeof(T) == 8)
    return value;
  else
    return static_cast<A>(to_float(value));
}

ALGES_DEVICE bool better(const Candidate& a, const Candidate& b) {
  return a.key < b.key || (a.key == b.key && a.index >= 0 && (b.index < 0 || a.index < b.index));
}

ALGES_DEVICE Candidate nobody() { return {INFINITY, -1, -1}; }

// The best of a warp's candidates, on every lane.
ALGES_DEVICE Candidate best_of_warp(Candidate best) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const Candidate other{shuffle_xor(best.key, lanes), shuffle_xor(best.index, lanes), shuffle_xor(best.position, lanes)};
    if (better(other, best)) best = other;
  }
  return best;
}

// The best of a block's candidates, on every thread.
ALGES_DEVICE Candidate best_of_block(Candidate best) {
  Candidate* shared = reinterpret_cast<Candidate*>(dynamic_shared());
  best = best_of_warp(best);
  __syncthreads();  // what was read of `shared` before has been read by all
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  best = shared[0];
  for (int warp = 1; warp < kWarps; ++warp)
    if (better(shared[warp], best)) best = shared[warp];
  return best;
}

// What the blocks of the last step found, on every thread.
ALGES_DEVICE Candidate winner(const Candidate* partials, int blocks) {
  Candidate best = nobody();
  for (int block = threadIdx.x; block < blocks; block += kThreads)
    if (better(partials[block], best)) best = partials[block];
  return best_of_block(best);
}

// Philox4x32-10 of the counter (index / 2, round, stream); alges_fast/seeding/race.py is the definition. 64 bits: the half
// that belongs to `index`.
ALGES_DEVICE uint64_t random_bits(int64_t index, uint32_t round, uint32_t stream, uint64_t seed) {
  const uint64_t pair = static_cast<uint64_t>(index) >> 1;
  uint32_t c0 = static_cast<uint32_t>(pair), c1 = static_cast<uint32_t>(pair >> 32), c2 = round, c3 = stream;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int i = 0; i < 10; ++i) {
    const uint64_t product0 = uint64_t{c0} * 0xD2511F53u, product1 = uint64_t{c2} * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return index & 1 ? uint64_t{c2} << 32 | c3 : uint64_t{c0} << 32 | c1;
}

template <typename A>
ALGES_DEVICE void compete(const Seeding& s, uint32_t round, int trial, int64_t row, A minimum, Candidate& best) {
  const int64_t index = s.index ? s.index[row] : s.first_index + row;
  if (s.rule == DrawRule::farthest) {
    const Candidate candidate{-static_cast<double>(minimum), index, row};
    if (minimum > 0 && better(candidate, best)) best = candidate;
    return;
  }
  double weight = 1;
  if (s.rule == DrawRule::race)  // the product rounded as on the CPU
    weight = s.weights ? static_cast<double>(minimum * static_cast<const A*>(s.weights)[row]) : static_cast<double>(minimum);
  const uint64_t bits = random_bits(index, round, static_cast<uint32_t>(trial), s.seed) >> 12;
  const double uniform = (static_cast<double>(bits) + 0.5) * 0x1p-52;
  // -ln(1 - v) > v: without the logarithm where the point cannot win.
  if (!(weight > 0) || !(uniform < best.key * (1 + 1e-12) * weight)) return;
  const Candidate candidate{-log1p(-uniform) / weight, index, row};
  if (better(candidate, best)) best = candidate;
}

// |row - centre|^2 on every lane of the group of lanes that shares the row.
template <typename T, typename C, typename A, int Lanes>
ALGES_DEVICE A measure(const T* row, const C* centre, int64_t columns) {
  A sum = 0;
#pragma unroll 8
  for (int64_t k = threadIdx.x % Lanes; k < columns; k += Lanes) {
    const A difference = wide<A>(row[k]) - wide<A>(centre[k]);
    sum = fused(difference, difference, sum);
  }
  for (int lanes = Lanes / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  return sum;
}

// One pass over share `block` of the rows; its candidate, on every thread. C: the type centres are given in.
template <typename T, typename C, typename A>
ALGES_DEVICE Candidate share(const Seeding& s, int block, const C* centres, int count, int first_number, uint32_t round,
                             int trial, bool draws) {
  constexpr int kLanes = sizeof(A) == 8 ? 8 : 16, kAtOnce = 32 / kLanes;
  const int lane = threadIdx.x % 32, group = lane / kLanes;
  const int64_t warps = int64_t{s.blocks} * kWarps, warp = int64_t{block} * kWarps + threadIdx.x / 32;
  A* minima = static_cast<A*>(s.min_sq_distance);
  Candidate best = nobody();
  for (int64_t first = warp * s.tile; first < s.rows; first += warps * s.tile) {
    const int64_t own = first + lane;
    const bool mine = lane < s.tile && own < s.rows;
    A minimum = mine ? minima[own] : A{0};
    const A before = minimum;
    for (int c = 0; c < count; ++c) {
      A distance = 0;
      for (int r = 0; r < s.tile; r += kAtOnce) {
        const int64_t row = first + r + group;
        const T* x = static_cast<const T*>(s.points) + (row < s.rows ? row : s.rows - 1) * s.stride;
        const A measured = measure<T, C, A, kLanes>(x, centres + c * s.columns, s.columns);
        // Each lane takes the distance of its own row: that of row r + g is on the lanes of group g.
        for (int g = 0; g < kAtOnce; ++g) {
          const A theirs = broadcast(measured, g * kLanes);
          if (lane == r + g) distance = theirs;
        }
      }
      if (s.tried) {
        if (mine) static_cast<A*>(s.tried)[c * s.rows + own] = distance >= minimum ? minimum : distance;
      } else if (mine && !(distance >= minimum)) {  // a NaN stays
        minimum = distance;
        if (s.nearest) s.nearest[own] = first_number + c;
      }
    }
    if (mine && !(minimum == before)) minima[own] = minimum;
    if (mine && draws) compete<A>(s, round, trial, own, minimum, best);
  }
  return best_of_block(best);
}

template <typename T, typename A>
ALGES_KERNEL(kThreads, 4) pass_kernel(ALGES_PARAMETER Seeding s) {
  const int trial = static_cast<int>(blockIdx.x / s.blocks), block = static_cast<int>(blockIdx.x % s.blocks);
  const Candidate best = share<T, A, A>(s, block, static_cast<const A*>(s.centres), s.count, s.first_number, s.round, trial,
                                        s.rule != DrawRule::none);
  if (threadIdx.x == 0 && !s.tried) s.partials[int64_t{block} * s.trials + trial] = best;
}

// Step t of a chain: take what step t - 1 drew, measure it, draw the next.
template <typename T, typename A>
ALGES_DEVICE void step(const Seeding& s, int64_t* indices, int picks, int t) {
  const Candidate picked = winner(s.partials + int64_t{t % 2} * s.blocks, s.blocks);
  if (blockIdx.x == 0 && threadIdx.x == 0) indices[t] = picked.index;
  Candidate next = nobody();
  if (picked.position >= 0) {
    const T* centre = static_cast<const T*>(s.points) + picked.position * s.stride;
    next = share<T, T, A>(s, static_cast<int>(blockIdx.x), centre, 1, s.first_number + t, s.round + t + 1, 0, t + 1 < picks);
  }
  if (threadIdx.x == 0) s.partials[int64_t{(t + 1) % 2} * s.blocks + blockIdx.x] = next;
}

template <typename T, typename A>
ALGES_KERNEL(kThreads, 4) step_kernel(ALGES_PARAMETER Seeding s, int64_t* indices, int picks, int t) {
  step<T, A>(s, indices, picks, t);
}

template <typename T, typename A>
ALGES_KERNEL(kThreads, 4) chain_kernel(ALGES_PARAMETER Seeding s, int64_t* indices, int picks) {
  for (int t = 0; t < picks; ++t) {
    step<T, A>(s, indices, picks, t);
    grid_barrier();
  }
}

constexpr int kShared = kWarps * sizeof(Candidate);

template <typename T, typename A>
struct Kernels {
  static int resident(int device) { return alges::resident_blocks(chain_kernel<T, A>, kThreads, kShared, device); }
  static void pass(const Seeding& s, void* stream) {
    const unsigned draws = s.rule == DrawRule::none ? 1 : s.trials;
    if (s.count == 0 || draws == 1) {
      launch(pass_kernel<T, A>, dim3(s.blocks * draws), kThreads, kShared, stream, s);
      return;
    }
    Seeding measures = s, trials = s;  // the trials' draws read the minima that the first launch leaves
    measures.rule = DrawRule::none;
    trials.count = 0;
    launch(pass_kernel<T, A>, dim3(s.blocks), kThreads, kShared, stream, measures);
    launch(pass_kernel<T, A>, dim3(s.blocks * draws), kThreads, kShared, stream, trials);
  }
  static void chain(const Seeding& s, int64_t* indices, int picks, bool one_launch, void* stream) {
    if (one_launch) {
      launch_cooperative(chain_kernel<T, A>, s.blocks, kThreads, kShared, stream, s, indices, picks);
      return;
    }
    for (int t = 0; t < picks; ++t) launch(step_kernel<T, A>, dim3(s.blocks), kThreads, kShared, stream, s, indices, picks, t);
  }
};

template <typename Call>
auto by_type(PointType type, Call call) {
  switch (type) {
    case PointType::float16: return call(Kernels<Half, float>{});
    case PointType::bfloat16: return call(Kernels<Bfloat16, float>{});
    case PointType::float64: return call(Kernels<double, double>{});
    case PointType::float32: break;
  }
  return call(Kernels<float, float>{});
}

}  // namespace

int resident_blocks(PointType type, int device) {
  use_device(device);
  return by_type(type, [&](auto kernels) { return kernels.resident(device); });
}

void pass(const Seeding& seeding, int device, void* stream) {
  use_device(device);
  by_type(seeding.type, [&](auto kernels) { kernels.pass(seeding, stream); });
}

void chain(const Seeding& seeding, int64_t* indices, int picks, bool one_launch, int device, void* stream) {
  use_device(device);
  by_type(seeding.type, [&](auto kernels) { kernels.chain(seeding, indices, picks, one_launch, stream); });
}

}  // namespace alges::cuda_seeding
