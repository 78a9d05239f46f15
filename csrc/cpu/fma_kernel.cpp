// The loop of csrc/cpu/fma.h, compiled once per instruction set.
#include <stdint.h>

#include "cpu/fma.h"
#include "cpu/vec.h"

namespace alges {
namespace ALGES_ISA {

// Chains that do not wait for each other: more than latency times ports, fewer than registers.
constexpr int kChains = kRegisters == 32 ? 20 : 12;

void multiply_add(int64_t steps, float* to, int64_t* flops) {
  Vec sum[kChains], factor = Vec{} + 0.999f, addend = Vec{} + 1e-3f;
  for (int chain = 0; chain < kChains; ++chain) sum[chain] = Vec{} + static_cast<float>(chain);
  for (int64_t step = 0; step < steps; ++step)
#pragma GCC unroll 20
    for (int chain = 0; chain < kChains; ++chain) sum[chain] = sum[chain] * factor + addend;
  for (int chain = 1; chain < kChains; ++chain) sum[0] += sum[chain];
  *to = sum[0][0];
  *flops = steps * kChains * kLanes * 2;
}

}  // namespace ALGES_ISA
}  // namespace alges
