// Launches of more and less shared memory, from deeper and less deep in the stack: none may be judged, or end, by what the
// one before left behind.
#include <alloca.h>

#include <cstdio>

#include "cuda/primitives.cuh"

namespace {

ALGES_KERNEL(32, 1) fill(int words) {
  float* shared = reinterpret_cast<float*>(alges::dynamic_shared());
  for (int i = threadIdx.x; i < words; i += 32) shared[i] = 1;
}

__attribute__((noinline)) void launch_from(int depth, int bytes) {
  volatile char* room = static_cast<volatile char*>(alloca(depth));
  for (int i = 0; i < depth; ++i) room[i] = 1;
  alges::launch(fill, dim3(1), 32, bytes, nullptr, bytes / 4);
}

}  // namespace

int main() try {
  alges::launch_cooperative(fill, 3, 32, 0, nullptr, 0);  // the list of blocks moves behind what a block allocates
  for (int bytes : {64, 1024, 4096, 8192, 16384, 65536}) {
    launch_from(5000, 0);
    launch_from(1000, bytes);
  }
} catch (const std::exception& error) {
  std::puts(error.what());
  return 1;
}
