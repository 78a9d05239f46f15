#include "cpu/fma.h"

namespace alges {

int64_t multiply_add(int64_t steps, int threads) {
  int64_t flops = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : flops) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    float sum = 0;
    int64_t done = 0;
    ALGES_DISPATCH(multiply_add(steps, &sum, &done));
    flops += done + (sum == 12345.0f);  // so that no compiler leaves the loop out
  }
  return flops;
}

}  // namespace alges
