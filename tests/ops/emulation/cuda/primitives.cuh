// The kernels' primitives on the CPU: every CUDA thread is a fiber, and blocks run one after another. Barriers and warp
// collectives behave as on the device; which fiber runs between two of them is a shuffled order (`order_seed`), so that a
// missing barrier shows as a result that changes with the seed. Shared memory starts as NaN and ends in a guard.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define ALGES_DEVICE inline
#define ALGES_KERNEL(threads, blocks) inline void
#define ALGES_PARAMETER const

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline dim3 threadIdx, blockIdx;
using std::isinf;
using std::max;
using std::min;

namespace alges::emulation {

constexpr size_t kStack = 128 * 1024, kGuard = 4096;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf at;
  bool started = false, finished = false;
};

struct Warp {
  unsigned generation = 0, arrived = 0;
  alignas(16) unsigned char slot[2][32][64];
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  std::function<void()> body;
  jmp_buf scheduler;
  unsigned current = 0, generation = 0, arrived = 0, threads = 0;
  uint64_t progress = 0;
  uint32_t order_seed = 0;
  int shared_limit = 232448;
};
inline Machine machine;

inline void yield() {
  Fiber& self = machine.fibers[machine.current];
  if (_setjmp(self.at) == 0) _longjmp(machine.scheduler, 1);
}

inline void entry() {
  machine.body();
  machine.fibers[machine.current].finished = true;
  ++machine.progress;
  _longjmp(machine.scheduler, 1);
}

inline void resume(unsigned thread) {
  Fiber& fiber = machine.fibers[thread];
  machine.current = thread;
  threadIdx = dim3(thread);
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  makecontext(&fiber.start, entry, 0);
  setcontext(&fiber.start);
}

inline unsigned char* shared_base() {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(machine.shared.data()) + 1023) / 1024 * 1024);
}

inline void run_block(unsigned threads, int shared_bytes) {
  machine.threads = threads;
  machine.arrived = 0;
  if (machine.fibers.size() < threads) machine.fibers = std::vector<Fiber>(threads);
  machine.warps.assign((threads + 31) / 32, Warp{});
  machine.shared.assign(shared_bytes + kGuard + 1024, 0xff);
  for (Fiber& fiber : machine.fibers) fiber.started = fiber.finished = false;
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  std::mt19937 shuffle(machine.order_seed);
  for (;;) {
    if (machine.order_seed != 0) std::shuffle(order.begin(), order.end(), shuffle);
    bool alive = false;
    const uint64_t round = machine.progress;
    for (unsigned i = 0; i < threads; ++i) {
      if (machine.fibers[order[i]].finished) continue;
      alive = true;
      resume(order[i]);
    }
    if (!alive) break;
    if (machine.progress == round) throw std::runtime_error("emulation: threads wait for ever");
  }
  for (size_t i = 0; i < kGuard; ++i)
    if (shared_base()[shared_bytes + i] != 0xff) throw std::runtime_error("emulation: a write past shared memory");
}

// Every lane of the warp gives a value and sees all 32.
template <typename T>
const T* gather(const T& mine) {
  static_assert(sizeof(T) <= 64);
  Warp& warp = machine.warps[machine.current / 32];
  const unsigned generation = warp.generation;
  // Two buffers: a lane can be one collective ahead of the slowest, never two.
  auto& slots = warp.slot[generation % 2];
  static T seen[2][32];  // read before the caller's fiber next yields
  std::memcpy(slots[machine.current % 32], &mine, sizeof(T));
  ++machine.progress;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.generation;
  }
  while (warp.generation == generation) yield();
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&seen[generation % 2][lane], slots[lane], sizeof(T));
  return seen[generation % 2];
}

}  // namespace alges::emulation

inline void __syncthreads() {
  auto& machine = alges::emulation::machine;
  const unsigned generation = machine.generation;
  ++machine.progress;
  if (++machine.arrived == machine.threads) {
    machine.arrived = 0;
    ++machine.generation;
  }
  while (machine.generation == generation) alges::emulation::yield();
}
inline void __syncwarp() { alges::emulation::gather(0); }

namespace alges {

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float to_float(float value) { return value; }
inline float to_float(Bfloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }
inline float to_float(Half value) {
  _Float16 half;
  std::memcpy(&half, &value.bits, 2);
  return half;
}

inline unsigned char* dynamic_shared() { return emulation::shared_base(); }

inline float shuffle_xor(float value, int lanes) { return emulation::gather(value)[(threadIdx.x % 32) ^ lanes]; }
inline int shuffle_xor(int value, int lanes) { return emulation::gather(value)[(threadIdx.x % 32) ^ lanes]; }

template <typename T>
T broadcast(T value, int lane) {
  return emulation::gather(value)[lane];
}

inline void grid_barrier() { __syncthreads(); }  // launch_cooperative runs a single block

inline bool block_any(bool value) {
  static bool any;
  __syncthreads();
  any = false;
  __syncthreads();
  any |= value;
  __syncthreads();
  return any;
}
inline unsigned ballot(bool value) {
  const bool* all = emulation::gather(value);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane]) << lane;
  return bits;
}

// C + A B of this lane's elements, added exactly and then cut to float32: tensor cores do not round to nearest.
struct Operands {
  uint32_t a[4], b[2];
};
inline void mma(float (&c)[4], const Operands* all, int depth, float (*left)(const Operands*, int, int),
                float (*right)(const Operands*, int, int)) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + (i >= 2 ? 8 : 0), column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < depth; ++k) sum += static_cast<double>(left(all, row, k)) * right(all, k, column);
    float cut = static_cast<float>(sum);
    if (std::isfinite(cut) && std::fabs(static_cast<double>(cut)) > std::fabs(sum)) cut = std::nextafter(cut, 0.f);
    c[i] = cut;
  }
}
inline float half_of(uint32_t pair, int which) { return bits_to_float(which ? pair & 0xffff0000u : pair << 16); }
inline void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands* all = emulation::gather(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  mma(c, all, 16,
      [](const Operands* all, int row, int k) {
        return half_of(all[row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)], k % 2);
      },
      [](const Operands* all, int k, int column) { return half_of(all[column * 4 + k % 8 / 2].b[k / 8], k % 2); });
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands* all = emulation::gather(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  mma(c, all, 8,
      [](const Operands* all, int row, int k) {
        return bits_to_float(all[row % 8 * 4 + k % 4].a[row / 8 + 2 * (k / 4)] & 0xffffe000u);
      },
      [](const Operands* all, int k, int column) { return bits_to_float(all[column * 4 + k % 4].b[k / 4] & 0xffffe000u); });
}

inline uint32_t to_tf32(float value) {
  const uint32_t bits = float_to_bits(value);
  return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits;
}
inline uint32_t round_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) return 0x7fff;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bfloat16(float low, float high) { return round_bfloat16(low) | round_bfloat16(high) << 16; }

inline uint16_t element(const void* const* rows, int matrix, int row, int column) {
  uint16_t value;
  if (reinterpret_cast<uintptr_t>(rows[8 * matrix + row]) % 16 != 0) throw std::runtime_error("emulation: ldmatrix alignment");
  std::memcpy(&value, static_cast<const char*>(rows[8 * matrix + row]) + 2 * column, 2);
  return value;
}
inline void load_matrices(uint32_t (&a)[4], const void* row) {
  const void* const* rows = emulation::gather(row);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) a[i] = element(rows, i, g, 2 * t) | element(rows, i, g, 2 * t + 1) << 16;
}
inline void load_matrices_transposed(uint32_t (&a)[4], const void* row) {
  const void* const* rows = emulation::gather(row);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) a[i] = element(rows, i, 2 * t, g) | element(rows, i, 2 * t + 1, g) << 16;
}
inline uint32_t transpose(uint32_t value) {
  const uint32_t* all = emulation::gather(value);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const auto at = [&](int row, int column) { return all[4 * row + column / 2] >> 16 * (column % 2) & 0xffffu; };
  return at(2 * t, g) | at(2 * t + 1, g) << 16;
}
inline uint32_t low_halves(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
inline uint32_t high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

// A copy lands when it is waited for, not before: a read too early finds what was there.
struct Copy {
  void* to;
  unsigned char bytes[16];
};
inline std::vector<std::vector<std::vector<Copy>>> copies;  // [thread][group]; the last group is open
inline void copy_async(void* to, const void* from, bool read) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (read && reinterpret_cast<uintptr_t>(from) % 16 != 0))
    throw std::runtime_error("emulation: copy alignment");
  Copy copy{to, {}};
  if (read) std::memcpy(copy.bytes, from, 16);
  copies.resize(1024);
  if (copies[threadIdx.x].empty()) copies[threadIdx.x].emplace_back();
  copies[threadIdx.x].back().push_back(copy);
}
inline void copy_commit() {
  copies.resize(1024);
  if (copies[threadIdx.x].empty()) copies[threadIdx.x].emplace_back();
  copies[threadIdx.x].emplace_back();
}
template <int pending>
void copy_wait() {
  copies.resize(1024);
  auto& groups = copies[threadIdx.x];
  while (groups.size() > pending + 1) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.bytes, 16);
    groups.erase(groups.begin());
  }
}

inline int shared_memory_limit(int) { return emulation::machine.shared_limit; }
inline void use_device(int) {}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void*, Parameters... arguments) {
  emulation::machine.body = [&] { kernel(arguments...); };
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      copies.clear();
      emulation::run_block(threads, shared_bytes);
    }
}

template <typename... Parameters>
int resident_blocks(void (*)(Parameters...), int, int, int) {
  return 1;
}

template <typename... Parameters>
void launch_cooperative(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes, void* stream,
                        Parameters... arguments) {
  if (blocks != 1) throw std::runtime_error("emulation: blocks run one after another and cannot wait for each other");
  launch(kernel, dim3(1), threads, shared_bytes, stream, arguments...);
}

}  // namespace alges
