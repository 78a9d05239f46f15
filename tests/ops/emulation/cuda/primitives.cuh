// The kernels' primitives on the CPU: every CUDA thread is a fiber, and blocks run one after another, or together where they
// were launched cooperatively. Barriers and warp collectives behave as on the device; which fiber runs between two of them is
// a shuffled order (`order_seed`), and so is that of the blocks.
//
// Every access that a kernel makes is watched: the compiler's thread sanitizer calls `watch` (through hooks.cpp, in place of
// its own runtime). Two threads that touch the same shared memory, one of them writing, with no barrier between; shared
// memory that a copy in flight will fill; a vector access off its alignment; lanes that meet in different collectives; and
// launches past the device's limits are errors. Shared memory starts as NaN.
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
#define ALGES_UNWATCHED __attribute__((no_sanitize("thread")))

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

struct Copy {
  unsigned char* to;
  unsigned char bytes[16];
};

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf at;
  bool started = false, finished = false;
  std::vector<std::vector<Copy>> copies;  // by group; the last group is open
};

struct Warp {
  unsigned generation = 0, arrived = 0;
  unsigned barriers = 0;  // __syncwarp alone orders memory, shuffles and products do not
  const char* collective = nullptr;
  alignas(16) unsigned char slot[2][32][64];
};

// Who touched two bytes of shared memory last, and after how many barriers of the block and of its warp.
struct Access {
  static constexpr int kNobody = -1, kSeveral = -2;
  int writer = kNobody, reader = kNobody, reading_warp = kNobody;
  unsigned written_block = 0, written_warp = 0, read_block = 0, read_warp = 0;
  bool in_flight = false;
};

struct Block {
  dim3 index;
  std::vector<Warp> warps;
  std::vector<unsigned char> memory;
  std::vector<Access> accesses;
  unsigned arrived = 0, barriers = 0;
  bool any = false;

  Block(dim3 index, unsigned threads, int shared_bytes)
      : index(index), warps((threads + 31) / 32), memory(shared_bytes + kGuard + 1024, 0xff), accesses(shared_bytes / 2 + 1) {}
  unsigned char* shared() {
    return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + 1023) / 1024 * 1024);
  }
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  std::function<void()> body;
  jmp_buf scheduler;
  // Of the running thread; null on the host.
  Block* block = nullptr;
  Warp* warp = nullptr;
  Access* accesses = nullptr;
  unsigned char* shared = nullptr;
  unsigned shared_bytes = 0, threads = 0, current = 0;
  unsigned grid_generation = 0, grid_arrived = 0;
  uint64_t progress = 0;
  const char* fault = nullptr;
  uint32_t order_seed = 0;
  int shared_limit = 232448;
};
inline Machine machine;

// Ends the launch with an error: fibers have no frame to throw into.
[[noreturn]] inline void fail(const char* message) {
  machine.fault = message;
  _longjmp(machine.scheduler, 1);
}

ALGES_UNWATCHED inline void watch(const volatile void* address, size_t bytes, bool writes) {
  if (machine.block == nullptr) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(machine.shared);
  if (first >= machine.shared_bytes + kGuard) return;  // not shared memory
  if (first + bytes > machine.shared_bytes) fail("emulation: an access past shared memory");
  const int me = static_cast<int>(threadIdx.x), my_warp = me / 32;
  const unsigned block = machine.block->barriers, warp = machine.warp->barriers;
  for (uintptr_t at = first / 2; at < (first + bytes + 1) / 2; ++at) {
    Access& access = machine.accesses[at];
    if (access.in_flight) fail("emulation: shared memory touched while a copy to it is under way");
    if (access.writer != Access::kNobody && access.writer != me && access.written_block == block &&
        (access.writer / 32 != my_warp || access.written_warp == warp))
      fail(writes ? "emulation: two threads write the same shared memory with no barrier between"
                  : "emulation: shared memory read with no barrier since another thread wrote it");
    const bool read_now = access.reading_warp != Access::kNobody && access.read_block == block;
    if (writes) {
      if (read_now && (access.reading_warp != my_warp || (access.read_warp == warp && access.reader != me)))
        fail("emulation: shared memory written with no barrier since another thread read it");
      access.writer = me;
      access.written_block = block;
      access.written_warp = warp;
    } else {
      const bool same_warp = read_now && access.reading_warp == my_warp;
      access.reader = same_warp && access.read_warp == warp && access.reader != me ? int{Access::kSeveral} : me;
      access.reading_warp = read_now && !same_warp ? int{Access::kSeveral} : my_warp;
      access.read_block = block;
      access.read_warp = warp;
    }
  }
}

ALGES_UNWATCHED inline void set_in_flight(const unsigned char* to, bool in_flight) {
  const size_t first = (to - machine.shared) / 2;
  for (size_t at = first; at < first + 8; ++at) machine.accesses[at].in_flight = in_flight;
}

inline void yield() {
  Fiber& self = machine.fibers[machine.current];
  if (_setjmp(self.at) == 0) _longjmp(machine.scheduler, 1);
}

inline void entry() {
  machine.body();
  for (const auto& group : machine.fibers[machine.current].copies)
    if (!group.empty()) fail("emulation: a thread ends with a copy under way");
  machine.fibers[machine.current].finished = true;
  ++machine.progress;
  _longjmp(machine.scheduler, 1);
}

inline void resume(unsigned fiber_index) {
  Fiber& fiber = machine.fibers[fiber_index];
  Block& block = machine.blocks[fiber_index / machine.threads];
  machine.current = fiber_index;
  threadIdx = dim3(fiber_index % machine.threads);
  machine.warp = &block.warps[threadIdx.x / 32];
  machine.accesses = block.accesses.data();
  machine.shared = block.shared();
  blockIdx = block.index;
  if (_setjmp(machine.scheduler) == 0) {
    machine.block = &block;  // from here on `watch` looks, and may jump to the scheduler
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, entry, 0);
    setcontext(&fiber.start);
  }
  machine.block = nullptr;
}

// Runs these blocks at once.
inline void run_blocks(const std::vector<dim3>& indices, unsigned threads, int shared_bytes) {
  const unsigned count = threads * static_cast<unsigned>(indices.size());
  machine.threads = threads;
  machine.shared_bytes = shared_bytes;
  machine.grid_arrived = 0;
  machine.fault = nullptr;
  machine.blocks.clear();
  for (const dim3& index : indices) machine.blocks.emplace_back(index, threads, shared_bytes);
  if (machine.fibers.size() < count) machine.fibers = std::vector<Fiber>(count);
  for (Fiber& fiber : machine.fibers) {
    fiber.started = fiber.finished = false;
    fiber.copies.assign(1, {});
  }
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::mt19937 shuffle(machine.order_seed);
  for (;;) {
    if (machine.order_seed != 0) std::shuffle(order.begin(), order.end(), shuffle);
    bool alive = false;
    const uint64_t round = machine.progress;
    for (const unsigned thread : order) {
      if (machine.fibers[thread].finished) continue;
      alive = true;
      resume(thread);
      if (machine.fault != nullptr) throw std::runtime_error(machine.fault);
    }
    if (!alive) break;
    if (machine.progress == round) throw std::runtime_error("emulation: threads wait for ever");
  }
}

inline void check_launch(dim3 grid, int threads, int shared_bytes) {
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || threads > 1024 ||
      threads % 32 != 0 || shared_bytes > machine.shared_limit)
    throw std::runtime_error("emulation: a launch past the device's limits");
}

// Every lane of the warp gives a value and sees all 32.
template <typename T>
const T* gather(const T& mine, const char* collective) {
  static_assert(sizeof(T) <= 64);
  Warp& warp = *machine.warp;
  const unsigned generation = warp.generation, lane = threadIdx.x % 32;
  // Two buffers: a lane can be one collective ahead of the slowest, never two.
  auto& slots = warp.slot[generation % 2];
  static T seen[2][32];  // read before the caller's fiber next yields
  if (warp.arrived == 0) warp.collective = collective;
  if (std::strcmp(warp.collective, collective) != 0) fail("emulation: lanes of a warp meet in different collectives");
  std::memcpy(slots[lane], &mine, sizeof(T));
  ++machine.progress;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.generation;
    if (std::strcmp(collective, "__syncwarp") == 0) ++warp.barriers;
  }
  while (warp.generation == generation) yield();
  for (int other = 0; other < 32; ++other) std::memcpy(&seen[generation % 2][other], slots[other], sizeof(T));
  return seen[generation % 2];
}

}  // namespace alges::emulation

inline void __syncthreads() {
  auto& machine = alges::emulation::machine;
  auto& block = *machine.block;
  const unsigned generation = block.barriers;
  ++machine.progress;
  if (++block.arrived == machine.threads) {
    block.arrived = 0;
    ++block.barriers;
  }
  while (block.barriers == generation) alges::emulation::yield();
}
inline void __syncwarp() { alges::emulation::gather(0, "__syncwarp"); }

namespace alges {

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline void store_half(float* row, int half, uint32_t bits) {
  const uint16_t value = static_cast<uint16_t>(bits);
  std::memcpy(reinterpret_cast<char*>(row) + 2 * half, &value, 2);
}
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

inline unsigned char* dynamic_shared() { return emulation::machine.shared; }

inline float shuffle_xor(float value, int lanes) { return emulation::gather(value, "shuffle")[(threadIdx.x % 32) ^ lanes]; }
inline double shuffle_xor(double value, int lanes) { return emulation::gather(value, "shuffle")[(threadIdx.x % 32) ^ lanes]; }
inline int shuffle_xor(int value, int lanes) { return emulation::gather(value, "shuffle")[(threadIdx.x % 32) ^ lanes]; }

template <typename T>
T broadcast(T value, int lane) {
  return emulation::gather(value, "broadcast")[lane];
}

inline void grid_barrier() {
  auto& machine = emulation::machine;
  __syncthreads();
  const unsigned generation = machine.grid_generation;
  ++machine.progress;
  if (++machine.grid_arrived == machine.threads * machine.blocks.size()) {
    machine.grid_arrived = 0;
    ++machine.grid_generation;
  }
  while (machine.grid_generation == generation) emulation::yield();
}

inline bool block_any(bool value) {
  bool& any = emulation::machine.block->any;
  __syncthreads();
  any = false;
  __syncthreads();
  any |= value;
  __syncthreads();
  return any;
}
inline unsigned ballot(bool value) {
  const bool* all = emulation::gather(value, "ballot");
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
  const Operands* all = emulation::gather(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}}, "mma");
  mma(c, all, 16,
      [](const Operands* all, int row, int k) {
        return half_of(all[row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)], k % 2);
      },
      [](const Operands* all, int k, int column) { return half_of(all[column * 4 + k % 8 / 2].b[k / 8], k % 2); });
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands* all = emulation::gather(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}}, "mma");
  mma(c, all, 8,
      [](const Operands* all, int row, int k) {
        return bits_to_float(all[row % 8 * 4 + k % 4].a[row / 8 + 2 * (k / 4)] & 0xffffe000u);
      },
      [](const Operands* all, int k, int column) { return bits_to_float(all[column * 4 + k % 4].b[k / 4] & 0xffffe000u); });
}

inline uint32_t round_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) return 0x7fff;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bfloat16(float low, float high) { return round_bfloat16(low) | round_bfloat16(high) << 16; }

// Off by up to what PTX allows, by how much depends on the argument's bits.
inline float off(float value, double most, float x) {
  const double share = static_cast<int32_t>(float_to_bits(x) * 0x9E3779B9u) / 2147483648.0;
  return static_cast<float>(value * (1 + share * most));
}
inline float exp2_nearly(float x) { return x < -126 ? 0.f : x == 0 ? 1.f : off(std::exp2(x), 0x1.6ap-23, x); }
inline float reciprocal_nearly(float x) { return off(1 / x, 0x1p-23, x); }
inline float root_nearly(float x) { return off(std::sqrt(x), 0x1p-23, x); }

inline uint16_t element(const void* const* rows, int matrix, int row, int column) {
  uint16_t value;
  const char* from = static_cast<const char*>(rows[8 * matrix + row]);
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulation::fail("emulation: a row of ldmatrix off its 16 bytes");
  emulation::watch(from + 2 * column, 2, false);
  std::memcpy(&value, from + 2 * column, 2);
  return value;
}
inline void load_matrices(uint32_t (&a)[4], const void* row) {
  const void* const* rows = emulation::gather(row, "ldmatrix");
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) a[i] = element(rows, i, g, 2 * t) | element(rows, i, g, 2 * t + 1) << 16;
}
inline void load_matrices_transposed(uint32_t (&a)[4], const void* row) {
  const void* const* rows = emulation::gather(row, "ldmatrix");
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) a[i] = element(rows, i, 2 * t, g) | element(rows, i, 2 * t + 1, g) << 16;
}
inline uint32_t transpose(uint32_t value) {
  const uint32_t* all = emulation::gather(value, "movmatrix");
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const auto at = [&](int row, int column) { return all[4 * row + column / 2] >> 16 * (column % 2) & 0xffffu; };
  return at(2 * t, g) | at(2 * t + 1, g) << 16;
}
inline uint32_t low_halves(uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; }
inline uint32_t high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

// A copy lands when it is waited for, and then for the thread that waited; from its start until then nobody may touch where it
// lands.
inline void copy_async(void* to, const void* from, bool read) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emulation::fail("emulation: a copy off its 16 bytes");
  emulation::Copy copy{static_cast<unsigned char*>(to), {}};
  if (read) std::memcpy(copy.bytes, from, 16);
  emulation::watch(to, 16, true);
  emulation::set_in_flight(copy.to, true);
  std::memset(to, 0xff, 16);
  emulation::machine.fibers[emulation::machine.current].copies.back().push_back(copy);
}
inline void copy_commit() { emulation::machine.fibers[emulation::machine.current].copies.emplace_back(); }
template <int pending>
void copy_wait() {
  auto& groups = emulation::machine.fibers[emulation::machine.current].copies;
  while (groups.size() > pending + 1) {
    for (const emulation::Copy& copy : groups.front()) {
      emulation::set_in_flight(copy.to, false);
      emulation::watch(copy.to, 16, true);
      std::memcpy(copy.to, copy.bytes, 16);
    }
    groups.erase(groups.begin());
  }
}

inline int shared_memory_limit(int) { return emulation::machine.shared_limit; }
inline void use_device(int) {}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void*, Parameters... arguments) {
  emulation::check_launch(grid, threads, shared_bytes);
  emulation::machine.body = [&] { kernel(arguments...); };
  std::vector<dim3> blocks;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y, 0);
  if (emulation::machine.order_seed != 0)
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(emulation::machine.order_seed));
  for (const dim3& block : blocks) emulation::run_blocks({block}, threads, shared_bytes);
}

template <typename... Parameters>
int resident_blocks(void (*)(Parameters...), int, int, int) {
  return 3;
}

template <typename... Parameters>
void launch_cooperative(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes, void*,
                        Parameters... arguments) {
  emulation::check_launch(dim3(blocks), threads, shared_bytes);
  if (blocks > resident_blocks(kernel, threads, shared_bytes, 0))
    throw std::runtime_error("emulation: more cooperative blocks than the device holds");
  emulation::machine.body = [&] { kernel(arguments...); };
  std::vector<dim3> all;
  for (int block = 0; block < blocks; ++block) all.emplace_back(block, 0, 0);
  emulation::run_blocks(all, threads, shared_bytes);
}

}  // namespace alges
