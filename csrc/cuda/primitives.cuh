// What the kernels need of the machine, under names of their own: tests/ops/emulation/cuda/primitives.cuh gives the same
// names on the CPU, so that the kernels themselves, barriers included, run in tests where there is no GPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

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

ALGES_DEVICE bool block_any(bool value) { return __syncthreads_or(value); }
ALGES_DEVICE unsigned ballot(bool value) { return __ballot_sync(0xffffffffu, value); }
ALGES_DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
ALGES_DEVICE int shuffle_xor(int value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
ALGES_DEVICE double shuffle_xor(double value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }

// Lane `lane`'s value, on every lane; the same lane on all of them.
template <typename T>
ALGES_DEVICE T broadcast(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// Of all blocks of a cooperative launch.
ALGES_DEVICE void grid_barrier() { cooperative_groups::this_grid().sync(); }

// Warp-wide products, C += A B, in PTX's fragment layouts: with g = lane / 4 and t = lane % 4,
//   C 16 x 8: c[0..1] = C[g][2t..2t+1], c[2..3] = C[g+8][2t..2t+1]
//   bfloat16, k 16: a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..];
//                   b[0] = B[2t..2t+1][g], b[1] = B[2t+8..2t+9][g]
//   TF32, k 8: a[0] = A[g][t], a[1] = A[g+8][t], a[2] = A[g][t+4], a[3] = A[g+8][t+4]; b[0] = B[t][g], b[1] = B[t+4][g]
ALGES_DEVICE void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
ALGES_DEVICE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

ALGES_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
ALGES_DEVICE uint32_t float_to_bits(float value) { return __float_as_uint(value); }
ALGES_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 2^x, 1 / x and √x to within 2 units of the last place or so; 2^x is 0 below -126.
ALGES_DEVICE float exp2_nearly(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
ALGES_DEVICE float reciprocal_nearly(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
ALGES_DEVICE float root_nearly(float x) {
  float result;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Four 8 x 8 matrices of 16-bit elements: lane 8 i + r points at row r of matrix i, whose element [g][2t..2t+1] comes back
// in a[i], or [2t..2t+1][g] of it when transposed.
ALGES_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
ALGES_DEVICE void load_matrices(uint32_t (&a)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(row)) : "memory");
}
ALGES_DEVICE void load_matrices_transposed(uint32_t (&a)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(row)) : "memory");
}
// An 8 x 8 matrix of 16-bit elements, [g][2t..2t+1] in and [2t..2t+1][g] out.
ALGES_DEVICE uint32_t transpose(uint32_t value) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
}
ALGES_DEVICE uint32_t low_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
ALGES_DEVICE uint32_t high_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// Two bytes into what other code takes for floats, in shared memory: no store of one type may be moved past the other's.
ALGES_DEVICE void store_half(float* row, int half, uint32_t bits) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared_address(row) + 2 * half), "h"(static_cast<uint16_t>(bits)) : "memory");
}

// 16 bytes to shared memory in the background, or zeros without reading, wherever `from` points; both aligned to 16.
ALGES_DEVICE void copy_async(void* to, const void* from, bool read) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(read ? 16 : 0)
               : "memory");
}
ALGES_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of this thread's committed groups are under way.
template <int pending>
ALGES_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

// What one block may take of shared memory on this device.
inline int shared_memory_limit(int device) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device attribute");
  return bytes;
}

// This module has a runtime of its own (static cudart), so torch's choice of device is made known to it before a launch.
inline void use_device(int device) { check(cudaSetDevice(device), "device"); }

// Leave for a kernel to take so much shared memory: asked for once a device, and again for more. Up to 48 KB needs none.
inline void allow_shared(const void* kernel, int bytes) {
  if (bytes <= 48 * 1024) return;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> allowed;
  int device = 0;
  check(cudaGetDevice(&device), "device");
  const std::lock_guard<std::mutex> lock(mutex);
  int& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
  most = bytes;
}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void* stream, Parameters... arguments) {
  allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
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
