// Vectors of float for the instruction set a file is compiled for: arithmetic, FMA, comparison and blending are written
// with the operators of GCC's and Clang's vector extension, so one source serves every set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
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
typedef uint16_t Half __attribute__((vector_size(kLanes * 2)));

#define ALGES_INLINE inline __attribute__((always_inline))

ALGES_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);  // any alignment
  return v;
}
ALGES_INLINE Int load(const int32_t* p) {
  Int v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
ALGES_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
ALGES_INLINE void store(int32_t* p, Int v) { std::memcpy(p, &v, sizeof v); }
ALGES_INLINE Vec splat(float x) { return x - Vec{}; }  // x - 0 keeps -0 and NaN
ALGES_INLINE Int splat(int32_t x) { return x - Int{}; }
ALGES_INLINE Int bits(Vec v) { return reinterpret_cast<Int>(v); }
ALGES_INLINE Vec from_bits(Int v) { return reinterpret_cast<Vec>(v); }

// a > b ? a : b, so b where either is NaN.
ALGES_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// Loaded once: GCC would rather load again for every use that can take an operand from memory.
ALGES_INLINE void keep_in_register(Vec& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

ALGES_INLINE Vec sqrt(Vec v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(v);
#elif defined(__aarch64__)
  return vsqrtq_f32(v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// Lanes where a condition holds: a mask register with AVX-512, whole lanes elsewhere.
#if defined(__AVX512F__)
typedef __mmask16 Mask;
ALGES_INLINE Mask equal(Int a, Int b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
ALGES_INLINE Mask unequal(Int a, Int b) { return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b); }
ALGES_INLINE Mask greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
ALGES_INLINE Int select(Mask mask, Int yes, Int no) { return (Int)_mm512_mask_blend_epi32(mask, (__m512i)no, (__m512i)yes); }
ALGES_INLINE Vec select(Mask mask, Vec yes, Vec no) { return _mm512_mask_blend_ps(mask, no, yes); }
ALGES_INLINE Vec add_where(Mask mask, Vec sum, Vec term) { return _mm512_mask_add_ps(sum, mask, sum, term); }
#else
typedef Int Mask;
ALGES_INLINE Mask equal(Int a, Int b) { return a == b; }
ALGES_INLINE Mask unequal(Int a, Int b) { return a != b; }
ALGES_INLINE Mask greater(Vec a, Vec b) { return a > b; }
ALGES_INLINE Int select(Mask mask, Int yes, Int no) { return mask ? yes : no; }
ALGES_INLINE Vec select(Mask mask, Vec yes, Vec no) { return mask ? yes : no; }
ALGES_INLINE Vec add_where(Mask mask, Vec sum, Vec term) { return sum + (mask ? term : Vec{}); }
#endif

// Sum of the lanes: halves added, then quarters, and so on.
ALGES_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
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

// a0 b0 a1 b1 ..., from the lower or the upper halves.
ALGES_INLINE Vec interleave_low(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
ALGES_INLINE Vec interleave_high(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Transposes a square of kLanes x kLanes: each round interleaves row i with row i + kLanes / 2.
ALGES_INLINE void transpose(Vec (&row)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave_low(row[i], row[i + kLanes / 2]);
      next[2 * i + 1] = interleave_high(row[i], row[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) row[i] = next[i];
  }
}

// Rows of positions that a vector of products holds side by side, each so many positions of another channel: twice the
// positions to a sum before it is stored, and half the sums.
constexpr int kParts = kLanes >= 8 ? 2 : 1;
constexpr int kPart = kLanes / kParts;

// kPart floats of each of kParts rows; kPart floats, once for each row.
ALGES_INLINE Vec load_parts(const float* (&row)[kParts], int64_t i) {
#if defined(__AVX512F__)
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(row[0] + i)), _mm256_loadu_ps(row[1] + i), 1);
#elif defined(__AVX2__)
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row[0] + i)), _mm_loadu_ps(row[1] + i), 1);
#else
  return load(row[0] + i);
#endif
}
ALGES_INLINE Vec load_repeated(const float* p) {
#if defined(__AVX512F__)
  return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  return load(p);
#endif
}

// A vector's halves, interleaved.
ALGES_INLINE Vec interleave_halves(Vec v) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(v, v, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(__AVX2__)
  return __builtin_shufflevector(v, v, 0, 4, 1, 5, 2, 6, 3, 7);
#else
  return v;
#endif
}

// Lane i is the sum of the lanes of part i: part i % kParts of vector i / kParts.
ALGES_INLINE Vec sums_of_parts(Vec (&vector)[kPart]) {
  // With halves interleaved, each is as after a first round of that which follows, from vectors of one part alone: vector i is
  // interleaved with vector i + vectors / 2, and the halves are added.
#pragma GCC unroll 8
  for (int i = 0; i < kPart; ++i) vector[i] = interleave_halves(vector[i]);
#pragma GCC unroll 4
  for (int vectors = kPart; vectors > 1; vectors /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < vectors / 2; ++i)
      vector[i] = interleave_low(vector[i], vector[i + vectors / 2]) + interleave_high(vector[i], vector[i + vectors / 2]);
  return interleave_halves(vector[0]);
}

// Column i of a square whose rows are `pitch` floats apart, as column[i].
ALGES_INLINE void load_transposed(const float* from, int64_t pitch, Vec (&column)[kLanes]) {
#if defined(__AVX512F__)
  // Quarters of rows j, 4 + j, 8 + j, 12 + j are loaded straight into the quarters of a register, by masks rather than
  // shuffles; what is left are sixteen 4 x 4 transposes that stay within quarters: 32 shuffles instead of 64.
#pragma GCC unroll 4
  for (int quad = 0; quad < 4; ++quad) {
    __m512 row[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float* p = from + j * pitch + 4 * quad;
      row[j] = _mm512_castps128_ps512(_mm_loadu_ps(p));
      row[j] = _mm512_mask_broadcast_f32x4(row[j], 0x00f0, _mm_loadu_ps(p + 4 * pitch));
      row[j] = _mm512_mask_broadcast_f32x4(row[j], 0x0f00, _mm_loadu_ps(p + 8 * pitch));
      row[j] = _mm512_mask_broadcast_f32x4(row[j], 0xf000, _mm_loadu_ps(p + 12 * pitch));
    }
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(row[2], row[3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(row[2], row[3]));
    column[4 * quad] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    column[4 * quad + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    column[4 * quad + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    column[4 * quad + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
#else
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) column[i] = load(from + i * pitch);
  transpose(column);
#endif
}

// e^x for x <= 0, within 1.5 ulp near 0; exactly 0 below -87.3 (where float would be subnormal) and in lanes
// that are not `wanted`; NaN stays.
ALGES_INLINE Vec exp_nonpositive(Vec x, Mask wanted) {
  // 2^t = 2^n 2^f with n an integer and |f| <= 1/2: adding 1.5 * 2^23 rounds t to an integer and leaves it in the low bits.
  const Vec shifter = splat(12582912.0f), log2_e = splat(1.44269504f), least = splat(-87.3f);
  const Vec shifted = x * log2_e + shifter, n = shifted - shifter;
  const Vec f = x * log2_e - n;
  Vec p = splat(0.00132647273f);  // minimax polynomial of 2^f, relative error 9.1e-08
  p = p * f + splat(0.00967151299f);
  p = p * f + splat(0.0555073358f);
  p = p * f + splat(0.240222424f);
  p = p * f + splat(0.693147004f);
  p = p * f + splat(1.0f);
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(_mm512_mask_cmp_ps_mask(wanted, x, least, _CMP_NLT_UQ), p, n);
#else
  const Vec scaled = from_bits(bits(p) + (bits(shifted) << 23));
  return (x < least) | ~wanted ? Vec{} : scaled;
#endif
}

// ln(1 + x) for x >= 0, within 2 ulp, small x included; NaN stays.
ALGES_INLINE Vec log1p_nonnegative(Vec x) {
  const Vec one = splat(1.0f), u = one + x;
  // u = 2^n (1 + g) with 1 + g in [2/3, 4/3); what 1 + x rounded away, (x - (u - 1)) / u, is added at the end.
  const Int n = (bits(u) - splat(0x3f2aaaab)) >> 23;
  const Vec g = from_bits(bits(u) - (n << 23)) - one;
  Vec p = splat(-0.128916889f);  // ln(1 + g) = g - g^2 / 2 + g^3 p(g), minimax on [-1/3, 1/3]
  p = p * g + splat(0.139844403f);
  p = p * g + splat(-0.1218426f);
  p = p * g + splat(0.140058681f);
  p = p * g + splat(-0.16680488f);
  p = p * g + splat(0.200104058f);
  p = p * g + splat(-0.249997973f);
  p = p * g + splat(0.333332151f);
  const Vec lost = (x - (u - one)) / u;
  const Vec small = g - g * g * splat(0.5f) + g * g * g * p + lost;
  const Vec result = __builtin_convertvector(n, Vec) * splat(0.693147182f) + small;
  return x == x ? result : x;
}

}  // namespace ALGES_ISA
}  // namespace alges
