// Vectors of float for the instruction set a file is compiled for: arithmetic, FMA, comparison and blending are written
// with the operators of GCC's and Clang's vector extension, so one source serves every set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace alges {
namespace ALGES_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;  // floats in a register
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRegisters = 32;
#else
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t Int __attribute__((vector_size(kLanes * 4)));  // also the result of comparing two Vec: -1 true, 0 false

#define ALGES_INLINE inline __attribute__((always_inline))

ALGES_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);  // any alignment
  return v;
}
ALGES_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
ALGES_INLINE Vec splat(float x) { return x - Vec{}; }  // x - 0: keeps -0 and NaN
ALGES_INLINE Int splat_int(int32_t x) { return x - Int{}; }

// Sum of the lanes: halves added, then quarters, and so on.
ALGES_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX2__)
  auto eight = v;
#endif
#if defined(__AVX2__)
  auto four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#else
  auto four = v;
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace ALGES_ISA
}  // namespace alges
