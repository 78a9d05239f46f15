// What the processor's multiply-adds do at best: a loop of nothing else, for the benchmarks to measure the kernels against.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace alges {

#define ALGES_DECLARE(isa)                                          \
  namespace isa {                                                   \
  void multiply_add(int64_t steps, float* sum, int64_t* flops);     \
  }
ALGES_FOR_EACH_ISA(ALGES_DECLARE)
#undef ALGES_DECLARE

// So many steps of the loop on each of so many threads; the flops they made, of all threads together.
int64_t multiply_add(int64_t steps, int threads);

}  // namespace alges
