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

inline int shared_memory_limit(int) { return emulation::machine.shared_limit; }
inline void use_device(int) {}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void*, Parameters... arguments) {
  emulation::machine.body = [&] { kernel(arguments...); };
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
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
