// What the kernels need of the machine, under names of their own: tests/ops/emulation/cuda/primitives.cuh gives the same
// names on the CPU, so that the kernels themselves, barriers included, run in tests where there is no GPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#define ALGES_DEVICE __device__ __forceinline__
#define ALGES_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define ALGES_PARAMETER const __grid_constant__

namespace alges {

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

ALGES_DEVICE float to_float(float value) { return value; }
ALGES_DEVICE float to_float(Bfloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
ALGES_DEVICE float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

ALGES_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

ALGES_DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
ALGES_DEVICE int shuffle_xor(int value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }

// Lane `lane`'s value, on every lane; the same lane on all of them.
template <typename T>
ALGES_DEVICE T broadcast(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// Of all blocks of a cooperative launch.
ALGES_DEVICE void grid_barrier() { cooperative_groups::this_grid().sync(); }

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("pixel_gradients: ") + what + ": " + cudaGetErrorString(error));
}

// What one block may take of shared memory on this device.
inline int shared_memory_limit(int device) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device attribute");
  return bytes;
}

// This module has a runtime of its own (static cudart), so torch's choice of device is made known to it before a launch.
inline void use_device(int device) { check(cudaSetDevice(device), "device"); }

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void* stream, Parameters... arguments) {
  // Up to 48 KB needs no leave.
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), "launch");
}

// Blocks of this kernel that the device holds at once: the most that can wait for each other.
template <typename... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, int shared_bytes, int device) {
  int processors = 0, blocks = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device attribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes), "occupancy");
  return blocks * processors;
}

// A launch whose blocks may meet at grid_barrier; no more of them than are resident.
template <typename... Parameters>
void launch_cooperative(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes, void* stream,
                        Parameters... arguments) {
  void* addresses[] = {&arguments...};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads), addresses,
                                    shared_bytes, static_cast<cudaStream_t>(stream)),
        "cooperative launch");
}

}  // namespace alges
