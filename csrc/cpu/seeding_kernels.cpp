// The pass of csrc/cpu/seeding.h, compiled once per instruction set.
//
// Rows are taken in blocks that stay in cache. Per block and centre:
//   1. rows whose distance from the origin alone shows them too far are dropped;
//   2. of the rest, those the 8-bit sketch shows too far: one byte a coordinate is read instead of two to eight;
//   3. the rest is measured in full, sum (x - c)^2 in 16 (double: 8) running sums whatever the instruction set.
// Without a sketch there is only step 3: it reads each point once and is bound by memory (2 flops per 4 bytes).
// Then the draw: a point's key is at least v / D^2 for its random number v, so the logarithm and the division are only
// taken where that bound beats the best key so far, about ln(rows) times a pass.
//
// Every number that decides is the same for any split into threads, blocks and shards: a row's distance depends on the
// row and the centre alone, minima are exact, and the sums of trials are of whole numbers below 2^53.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/seeding.h"
#include "cpu/vec.h"

namespace alges {
namespace ALGES_ISA {
namespace {

constexpr int kBlock = 256;             // rows
constexpr int kAhead = 12;              // rows of codes on their way from memory
constexpr int kStep = 16;               // columns that float rows are padded to
constexpr int kParts = kStep / kLanes;  // vectors per step

typedef double DoubleVec __attribute__((vector_size(kLanes * 4)));
typedef int64_t LongVec __attribute__((vector_size(kLanes * 4)));
typedef float HalfFloats __attribute__((vector_size(kLanes * 2)));
typedef uint16_t HalfInts __attribute__((vector_size(kLanes * 2)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <class A>
struct Wide;
template <>
struct Wide<float> {
  typedef Vec V;
  typedef Int Mask;
};
template <>
struct Wide<double> {
  typedef DoubleVec V;
  typedef LongVec Mask;
};

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

ALGES_INLINE Vec widen(const float* p) { return load(p); }
ALGES_INLINE DoubleVec widen(const double* p) {
  DoubleVec v;
  memcpy(&v, p, sizeof v);
  return v;
}
ALGES_INLINE Vec widen(const Bfloat16* p) {
  HalfInts bits;
  memcpy(&bits, p, sizeof bits);
  return (Vec)(__builtin_convertvector(bits, Int) << 16);
}
ALGES_INLINE Vec widen(const Float16* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  // Exponent and fraction moved to their places and the exponent's bias mended by a product, exact for subnormals too;
  // above 65504 they are Inf and NaN.
  HalfInts half;
  memcpy(&half, p, sizeof half);
  const Int bits = __builtin_convertvector(half, Int), size = (bits & 0x7FFF) << 13;
  const Vec scaled = (Vec)size * 0x1p112f;
  const Int finite = (bits & 0x7C00) != 0x7C00;
  return (Vec)((((Int)scaled & finite) | ((size | 0x7F800000) & ~finite)) | (bits & 0x8000) << 16);
#endif
}

ALGES_INLINE void narrow(float* p, Vec v) { store(p, v); }
ALGES_INLINE void narrow(float* p, DoubleVec v) {
  const auto narrowed = __builtin_convertvector(v, HalfFloats);
  memcpy(p, &narrowed, sizeof narrowed);
}

ALGES_INLINE Vec larger_size(Vec most, Vec v) {
  const Vec size = v < 0 ? -v : v;
  return most >= size ? most : size;
}
ALGES_INLINE float largest_lane(Vec v) {
  typedef float Four __attribute__((vector_size(16)));
  Four four[kLanes / 4];
  memcpy(four, &v, sizeof v);
  for (int i = 1; i < kLanes / 4; ++i) four[0] = four[0] >= four[i] ? four[0] : four[i];
  const float a = four[0][0] >= four[0][1] ? four[0][0] : four[0][1], b = four[0][2] >= four[0][3] ? four[0][2] : four[0][3];
  return a >= b ? a : b;
}

ALGES_INLINE float sum_lanes(const Vec* part) {  // the same tree for every width
  typedef float Four __attribute__((vector_size(16)));
  float lanes[kStep];
  memcpy(lanes, part, sizeof lanes);
  Four a, b, c, d;
  memcpy(&a, lanes, 16), memcpy(&b, lanes + 4, 16), memcpy(&c, lanes + 8, 16), memcpy(&d, lanes + 12, 16);
  const Four four = (a + c) + (b + d);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
ALGES_INLINE double sum_lanes(const DoubleVec* part) {
  double lanes[kStep / 2];
  memcpy(lanes, part, sizeof lanes);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// The columns left over after whole steps. Lanes past the end are zero, as the padded centre's are.
template <class T, class A>
ALGES_INLINE void widen_tail(const T* p, int columns, typename Wide<A>::V* out) {
  constexpr int step = sizeof(A) == 8 ? kStep / 2 : kStep;
  T padded[step];
  memset(padded, 0, sizeof padded);
  for (int k = 0; k < columns; ++k) padded[k] = p[k];
  for (int part = 0; part < kParts; ++part) out[part] = widen(padded + part * (step / kParts));
}

// |x - centre|^2. One row at a time: the processor runs into the next row while the sums of this one settle, and a single
// stream through memory is what the prefetchers follow best (four rows side by side took 2.7 times as long).
template <class T, class A>
ALGES_INLINE A measure(const T* x, const A* centre, int64_t columns) {
  typedef typename Wide<A>::V V;
  constexpr int step = sizeof(A) == 8 ? kStep / 2 : kStep, lanes = step / kParts;
  V sums[kParts] = {};
  int64_t k = 0;
  for (; k + step <= columns; k += step)
    for (int part = 0; part < kParts; ++part) {
      const V difference = widen(x + k + part * lanes) - widen(centre + k + part * lanes);
      sums[part] += difference * difference;
    }
  if (k < columns) {
    V tail[kParts];
    widen_tail<T, A>(x + k, static_cast<int>(columns - k), tail);
    for (int part = 0; part < kParts; ++part) {
      const V difference = tail[part] - widen(centre + k + part * lanes);
      sums[part] += difference * difference;
    }
  }
  return sum_lanes(sums);
}

// Sum of row[k] * centre[k]; columns a multiple of 16; the caller keeps it below 2^31.
ALGES_INLINE int32_t dot_codes(const int8_t* row, const int16_t* centre, int64_t columns) {
#if defined(__AVX512BW__)
  __m512i sums = _mm512_setzero_si512();
  int64_t k = 0;
  for (; k + 32 <= columns; k += 32) {
    const __m512i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + k)));
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(x, _mm512_loadu_si512(centre + k)));
  }
  __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
  if (k < columns) {
    const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + k)));
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(centre + k));
    half = _mm256_add_epi32(half, _mm256_madd_epi16(x, c));
  }
#elif defined(__AVX2__)
  __m256i half = _mm256_setzero_si256();
  for (int64_t k = 0; k < columns; k += 16) {
    const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + k)));
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(centre + k));
    half = _mm256_add_epi32(half, _mm256_madd_epi16(x, c));
  }
#else
  int32_t total = 0;
  for (int64_t k = 0; k < columns; ++k) total += int32_t{row[k]} * int32_t{centre[k]};
  return total;
#endif
#if defined(__AVX2__)
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
#endif
}

template <class T, class A>
struct Worker {
  const Pass& pass;
  const Shard& shard = *pass.shard;
  const Sketch& sketch = *pass.sketch;
  const Centres& centres = *pass.centres;
  int64_t measured = 0;
  // Relative error of a measured distance, twice over: a row is only dropped if measuring it could not lower the minimum.
  const float margin = 1.0f + 2e-7f * (static_cast<float>(shard.columns) / kStep + 16);
  // Relative error, generously, of the sums that make and compare sketches.
  const float rounding = 1e-6f + 2.5e-8f * static_cast<float>(sketch.width);

  const T* row(int64_t i) const { return static_cast<const T*>(shard.points) + i * shard.stride; }
  const A* centre(int c) const { return static_cast<const A*>(centres.values) + c * centres.padded; }

  void lower(int64_t at, int c, A& minimum) {
    const A distance = measure<T, A>(row(at), centre(c), shard.columns);
    if (distance >= minimum) return;  // a NaN is not
    minimum = distance;
    if (shard.nearest && !pass.tried) shard.nearest[at] = centres.first_number + c;
  }

  // In all of these `minimum` is that of rows first .. first + count of the shard, and c the number of a centre.
  void measure_all(int64_t first, int count, int c, A* minimum) {
    measured += count;
    for (int i = 0; i < count; ++i) lower(first + i, c, minimum[i]);
  }

  void measure_some(int64_t first, const int* list, int count, int c, A* minimum) {
    measured += count;
    for (int i = 0; i < count; ++i) {
      if (i + 1 < count) {
        const char* next = reinterpret_cast<const char*>(row(first + list[i + 1]));
        for (int64_t byte = 0; byte < shard.columns * int64_t{sizeof(T)}; byte += 64) __builtin_prefetch(next + byte);
      }
      lower(first + list[i], c, minimum[list[i]]);
    }
  }

  void measure_where_needed(int64_t first, int count, int c, A* minimum) {
    const float error = centres.error[c], sq_norm = centres.sq_norm[c], twice_scale = 2 * centres.scale[c];
    const float norm = sqrtf(sq_norm);
    const float* row_sq_norm = sketch.sq_norm + first;
    const float* row_error = sketch.error + first;
    // |x - c| >= |x' - c'| - e, where x' and c' are the sketched rows and e the two errors together; so a row keeps its
    // minimum m if |x' - c'|^2 > (sqrt(m) + e)^2. `slack` covers the rounding of the left side.
    float needed[kBlock], far[kBlock];
    for (int i = 0; i < count; ++i) {
      const float reach = sqrtf(static_cast<float>(minimum[i]) * margin) + row_error[i] + error;
      const float slack = rounding * (row_sq_norm[i] + sq_norm) + 1e-30f;
      const float apart = sqrtf(row_sq_norm[i]) - norm;
      needed[i] = reach * reach * 1.000001f + slack;
      far[i] = apart * apart;
    }
    int list[kBlock], left = 0;
    for (int i = 0; i < count; ++i) {
      list[left] = i;
      left += !(far[i] > needed[i]);
    }
    int near[kBlock], close = 0;
    for (int i = 0; i < left; ++i) {
      const int k = list[i];
      const int32_t dot = dot_codes(sketch.codes + (first + k) * sketch.width, centres.codes + c * sketch.width, sketch.width);
      const float apart = row_sq_norm[k] + sq_norm - twice_scale * sketch.scale[first + k] * static_cast<float>(dot);
      near[close] = k;
      close += !(apart > needed[k]);
    }
    measure_some(first, near, close, c, minimum);
  }

  void lower_block(int64_t first, int count, int c, A* minimum) {
    const bool build = pass.build_sketch && c == 0;
    if (sketch.width && !build)
      measure_where_needed(first, count, c, minimum);
    else
      measure_all(first, count, c, minimum);
    if (build) build_sketch(first, count);
  }

  // 8-bit codes of x - origin, each row with the scale that its largest coordinate asks for.
  void build_sketch(int64_t first, int count) {
    const A* origin = static_cast<const A*>(centres.origin);
    float* shifted = static_cast<float*>(__builtin_alloca((sketch.width + kStep) * sizeof(float)));
    for (int i = 0; i < count; ++i) {
      const T* x = row(first + i);
      constexpr int lanes = kLanes * 4 / sizeof(A);
      int64_t k = 0;
      Vec most = {};
      for (; k + kLanes <= shard.columns; k += kLanes) {
        for (int part = 0; part < kLanes; part += lanes) narrow(shifted + k + part, widen(x + k + part) - widen(origin + k + part));
        most = larger_size(most, load(shifted + k));
      }
      if (k < sketch.width) {
        memset(shifted + k, 0, (sketch.width - k) * sizeof(float));
        for (; k < shard.columns; ++k) {
          T one[lanes] = {};
          one[0] = x[k];
          shifted[k] = static_cast<float>(widen(one)[0] - origin[k]);
        }
        for (k = sketch.width - kStep; k < sketch.width; k += kLanes) most = larger_size(most, load(shifted + k));
      }
      const float largest = largest_lane(most);
      const float scale = largest * (1.0f / 127.0f);
      const bool usable = largest > 1e-18f && largest < 1e18f;  // squares neither vanish nor overflow
      const float inverse = usable ? 1.0f / scale : 0.0f;

      Vec rest_sq = {}, code_sq = {};
      int8_t* codes = sketch.codes + (first + i) * sketch.width;
      for (k = 0; k < sketch.width; k += kLanes) {
        const Vec v = load(shifted + k);
        const Vec scaled = usable ? v * inverse : Vec{};
        const Vec rounded = (scaled + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: to the nearest whole number
        const Bytes bytes = __builtin_convertvector(__builtin_convertvector(rounded, Int), Bytes);
        memcpy(codes + k, &bytes, sizeof bytes);
        const Vec rest = v - rounded * scale;
        rest_sq += rest * rest;
        code_sq += rounded * rounded;
      }
      const float norm = scale * sqrtf(sum(code_sq)), rest = sqrtf(sum(rest_sq));
      sketch.scale[first + i] = usable ? scale : 0.0f;
      sketch.sq_norm[first + i] = usable ? norm * norm : 0.0f;
      // On top, some bits of float32 for the rounding of row - origin.
      sketch.error[first + i] = usable ? (1 + rounding) * rest + 1e-6f * (norm + rest) : __builtin_inff();
    }
  }
};

// Philox4x32-10 (Salmon et al. 2011), one counter in each 64-bit lane; alges_fast/seeding/race.py is the definition.
typedef uint64_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint32_t HalfWords __attribute__((vector_size(kLanes * 2)));
constexpr int kCounters = kLanes / 2;
constexpr uint64_t kWord = 0xFFFFFFFFu;

// The product of the lower halves of each lane.
ALGES_INLINE Words multiply(Words a, uint32_t b) {
#if defined(__AVX512F__)
  return (Words)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#else
  return (a & kWord) * b;
#endif
}

// words[0..3] in the lower halves; what the upper halves hold is of no account.
ALGES_INLINE void philox(Words pair, const Draw& draw, uint32_t stream, Words* words) {
  Words c0 = pair, c1 = pair >> 32, c2 = Words{} + draw.round, c3 = Words{} + stream;
  uint32_t key0 = static_cast<uint32_t>(draw.seed), key1 = static_cast<uint32_t>(draw.seed >> 32);
#pragma GCC unroll 10
  for (int i = 0; i < 10; ++i) {
    const Words product0 = multiply(c0, 0xD2511F53u), product1 = multiply(c2, 0xCD9E8D57u);
    c0 = (product1 >> 32) ^ c1 ^ key0;
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ key1;
    c3 = product0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

struct Randoms {
  uint32_t high[kBlock + 2 * kLanes], low[kBlock + 2 * kLanes];
};

ALGES_INLINE bool consecutive(const int64_t* index, int count) {
  LongVec off = {};
  LongVec expected;
  for (int l = 0; l < kCounters; ++l) expected[l] = index[0] + l;
  int i = 0;
  for (; i + kCounters <= count; i += kCounters, expected += kCounters) {
    LongVec at;
    memcpy(&at, index + i, sizeof at);
    off |= at ^ expected;
  }
  int64_t any = 0;
  for (int l = 0; l < kCounters; ++l) any |= off[l];
  for (; i < count; ++i) any |= index[i] ^ (index[0] + i);
  return any == 0;
}

// Two random words for each of `count` rows; the returned offset is where those of the first row lie. A counter gives those
// of two indices, so that rows of consecutive ones take half the time.
int fill(Randoms& randoms, const Shard& shard, int64_t first, int count, const Draw& draw, uint32_t stream) {
  Words words[4];
  if (shard.index && !consecutive(shard.index + first, count)) {
    for (int i = 0; i < count; i += kCounters) {
      int64_t index[kCounters] = {};
      for (int l = 0; l < kCounters && i + l < count; ++l) index[l] = shard.index[first + i + l];
      Words at;
      memcpy(&at, index, sizeof at);
      philox(at >> 1, draw, stream, words);
      const Words odd = -(at & 1);
      const auto high = __builtin_convertvector((words[2] & odd) | (words[0] & ~odd), HalfWords);
      const auto low = __builtin_convertvector((words[3] & odd) | (words[1] & ~odd), HalfWords);
      memcpy(randoms.high + i, &high, sizeof high);
      memcpy(randoms.low + i, &low, sizeof low);
    }
    return 0;
  }
  const uint64_t start = static_cast<uint64_t>(shard.index ? shard.index[first] : shard.first_index + first);
  Words pair;
  for (int l = 0; l < kCounters; ++l) pair[l] = (start >> 1) + l;
  const int offset = static_cast<int>(start & 1);
  for (int i = 0; i < count + offset; i += kLanes, pair += kCounters) {
    philox(pair, draw, stream, words);
    // Side by side in memory, least significant half first: words 0 and 2 of a counter are the high words of its pair of rows.
    const Words high = (words[0] & kWord) | words[2] << 32, low = (words[1] & kWord) | words[3] << 32;
    memcpy(randoms.high + i, &high, sizeof high);
    memcpy(randoms.low + i, &low, sizeof low);
  }
  return offset;
}

bool better(const Candidate& a, const Candidate& b) {
  return a.key < b.key || (a.key == b.key && a.index >= 0 && (b.index < 0 || a.index < b.index));
}

ALGES_INLINE DoubleVec doubles(const double* p) { return widen(p); }
ALGES_INLINE DoubleVec doubles(const float* p) {
  HalfFloats v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, DoubleVec);
}

// Whether a row's key may lie below `bound`. v > u / 2^31 for the upper 31 bits u of its random number, E = -ln(1 - v) > v,
// and the factor outweighs the rounding here.
ALGES_INLINE bool may_win(uint32_t high, double bound, double weight) {
  return (high >> 1) * 0x1p-31 < bound * (1 + 1e-12) * weight;
}

template <class A>
bool any_may_win(const uint32_t* high, int count, double bound, const A* weights) {
  typedef int32_t HalfSigned __attribute__((vector_size(kLanes * 2)));
  const DoubleVec scaled = DoubleVec{} + bound * (1 + 1e-12);
  LongVec hits = {};
  int i = 0;
  for (; i + kCounters <= count; i += kCounters) {
    HalfWords bits;
    memcpy(&bits, high + i, sizeof bits);
    const DoubleVec least = __builtin_convertvector((HalfSigned)(bits >> 1), DoubleVec) * 0x1p-31;
    hits |= least < (weights ? scaled * doubles(weights + i) : scaled);
  }
  int64_t any = 0;
  for (int l = 0; l < kCounters; ++l) any |= hits[l];
  for (; i < count; ++i) any |= may_win(high[i], bound, weights ? static_cast<double>(weights[i]) : 1.0);
  return any != 0;
}

// Let the rows of a block compete with `best`. The weights are D^2, or null where all rows count alike.
template <class A>
void race(const Shard& shard, const Draw& draw, int stream, int64_t first, int count, const A* weights, Candidate& best) {
  Randoms randoms;
  const int offset = fill(randoms, shard, first, count, draw, static_cast<uint32_t>(stream));
  const uint32_t *high = randoms.high + offset, *low = randoms.low + offset;
  if (best.position >= 0 && !any_may_win(high, count, best.key, weights)) return;
  for (int i = 0; i < count; ++i) {
    const double weight = weights ? static_cast<double>(weights[i]) : 1.0;
    if (!(weight > 0) || !may_win(high[i], best.key, weight)) continue;
    const uint64_t bits = uint64_t{high[i]} << 20 | low[i] >> 12;
    const double exponential = -log1p(-((static_cast<double>(bits) + 0.5) * 0x1p-52));
    const int64_t position = first + i;
    const Candidate candidate{exponential / weight, shard.index ? shard.index[position] : shard.first_index + position,
                              position};
    if (better(candidate, best)) best = candidate;
  }
}

template <class A>
void farthest(const Shard& shard, int64_t first, int count, const A* weights, double block_largest, Candidate& best) {
  if (!(block_largest > 0) || -block_largest > best.key) return;
  for (int i = 0; i < count; ++i) {
    const int64_t position = first + i;
    const Candidate candidate{-static_cast<double>(weights[i]), shard.index ? shard.index[position] : shard.first_index + position, position};
    if (weights[i] > 0 && better(candidate, best)) best = candidate;
  }
}

// The largest value; NaN if one is not finite.
template <class A>
double largest_of(const A* values, int count) {
  typedef typename Wide<A>::V V;
  typedef typename Wide<A>::Mask Mask;
  constexpr int lanes = kLanes * 4 / sizeof(A);
  V most = {};
  Mask odd = {};
  int i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V v = widen(values + i);
    odd |= ~(v < static_cast<A>(__builtin_inf()));
    most = v > most ? v : most;
  }
  A largest = 0;
  bool finite = true;
  for (int l = 0; l < lanes; ++l) {
    finite &= odd[l] == 0;
    largest = most[l] > largest ? most[l] : largest;
  }
  for (; i < count; ++i) {
    finite &= values[i] < static_cast<A>(__builtin_inf());
    largest = values[i] > largest ? values[i] : largest;
  }
  return finite ? static_cast<double>(largest) : __builtin_nan("");
}

template <class A>
double whole_sum(const A* values, int count, double scale) {
  constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2^52: adding and subtracting it rounds to the nearest whole number
  double lanes[8] = {};
  int i = 0;
  for (; i + 8 <= count; i += 8)
    for (int l = 0; l < 8; ++l) lanes[l] += (static_cast<double>(values[i + l]) * scale + kWhole) - kWhole;
  for (; i < count; ++i) lanes[0] += (static_cast<double>(values[i]) * scale + kWhole) - kWhole;
  double total = 0;
  for (int l = 0; l < 8; ++l) total += lanes[l];
  return total;
}

ALGES_INLINE double larger(double a, double b) { return a != a || b <= a ? a : b; }  // a NaN stays

// What the rows of a block weigh in a draw or a sum: D^2, times how often each counts where that is given.
template <class A>
const A* weigh(const Shard& shard, int64_t first, int count, const A* minimum, A* weighed) {
  if (!shard.weights) return minimum;
  const A* weights = static_cast<const A*>(shard.weights) + first;
  for (int i = 0; i < count; ++i) weighed[i] = minimum[i] * weights[i];
  return weighed;
}

template <class T, class A>
void run(Pass& pass) {
  const Shard& shard = *pass.shard;
  const int64_t blocks = (shard.rows + kBlock - 1) / kBlock;
  const int trials = pass.draw.rule == DrawRule::none ? 0 : pass.draw.trials;
  for (int t = 0; t < trials; ++t) pass.candidates[t] = {__builtin_inf(), -1, -1};
  for (int c = 0; pass.tried && c < pass.centres->count; ++c) pass.sums[c] = 0;
  double largest = 0;
  int64_t measured = 0;
#pragma omp parallel num_threads(pass.threads) if (pass.threads > 1 && blocks > 1)
  {
    Worker<T, A> worker{pass};
    Candidate* best = new Candidate[trials];
    double* sums = new double[pass.centres->count]();
    for (int t = 0; t < trials; ++t) best[t] = {__builtin_inf(), -1, -1};
    double own_largest = 0;
    // Blocks dealt out in turn: the same thread meets the same rows in every pass, and rows that are hard to drop, which
    // lie together in a pool ordered by video, are shared out.
#pragma omp for schedule(static, 1) nowait
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kBlock;
      const int count = static_cast<int>(shard.rows - first < kBlock ? shard.rows - first : kBlock);
      A* minimum = static_cast<A*>(shard.min_sq_distance) + first;
      A weighed[kBlock];
      if (pass.tried) {
        for (int c = 0; c < pass.centres->count; ++c) {
          A* tried = static_cast<A*>(pass.tried) + c * shard.rows + first;
          memcpy(tried, minimum, count * sizeof(A));
          worker.lower_block(first, count, c, tried);
          sums[c] += whole_sum(weigh(shard, first, count, tried, weighed), count, pass.sum_scale);
        }
        continue;
      }
      if (pass.accepted) memcpy(minimum, static_cast<const A*>(pass.accepted) + first, count * sizeof(A));
      for (int c = 0; c < pass.centres->count; ++c) worker.lower_block(first, count, c, minimum);
      const double block_largest = largest_of(minimum, count);
      own_largest = larger(own_largest, block_largest);
      if (pass.draw.rule == DrawRule::farthest) {
        for (int t = 0; t < trials; ++t) farthest(shard, first, count, minimum, block_largest, best[t]);
      } else if (trials) {
        const A* weights = pass.draw.rule == DrawRule::race ? weigh(shard, first, count, minimum, weighed) : nullptr;
        for (int t = 0; t < trials; ++t) race(shard, pass.draw, t, first, count, weights, best[t]);
      }
    }
#pragma omp critical(alges_seeding)
    {
      measured += worker.measured;
      largest = larger(largest, own_largest);
      for (int t = 0; t < trials; ++t)
        if (better(best[t], pass.candidates[t])) pass.candidates[t] = best[t];
      for (int c = 0; pass.tried && c < pass.centres->count; ++c) pass.sums[c] += sums[c];
    }
    delete[] best;
    delete[] sums;
  }
  pass.largest = largest;
  pass.measured = measured;
}

// A growing list without the standard library, whose inlined functions must not be compiled for one instruction set and
// linked for all.
struct Contenders {
  Contender* items = nullptr;
  int64_t count = 0, room = 0;

  void add(Contender contender) {
    if (count == room) {
      room = room ? 2 * room : 256;
      Contender* larger = new Contender[room];
      for (int64_t i = 0; i < count; ++i) larger[i] = items[i];
      delete[] items;
      items = larger;
    }
    items[count++] = contender;
  }
  void keep_up_to(double key) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i)
      if (items[i].key <= key) items[kept++] = items[i];
    count = kept;
  }
};

// Lower the bounds of a block's rows by one centre.
//   1. a row is passed over if the centre is so far from its own nearest centre, or its norm so different, that its distance
//      cannot lie below the upper bound: what is lower bounded so far stays right;
//   2. of the others the codes are read.
// Bounds are widened by 1e-5, some fifty times what float32 rounds in them and in the measured distances of exact rows.
int64_t lower_sketched(const SketchedPass& pass, const float* enough, int64_t first, int count, int c) {
  const SketchedRows& rows = pass.rows;
  const SketchedCentres& centres = pass.centres;
  const float *norms = rows.norm + first, *errors = rows.error + first, *rests = rows.rest + first;
  float *upper = rows.upper + first, *lower = rows.lower + first;
  int32_t* nearest = rows.nearest + first;
  const float norm = centres.norm[c], error = centres.error[c], rest = centres.rest[c];
  const float* passed_over = enough + c * (centres.apart_stride + 1) + 1;
  float gaps[kBlock];  // at least how far the rests are apart
  char near[kBlock];
  for (int i = 0; i < count; ++i) {
    const float below = rows.rest_share * rests[i] - rows.rest_slop * (norms[i] + errors[i] + rests[i]) - rest;
    const float above = rest - rests[i];
    const float gap = below > above ? below : above, between = gap > 0 ? gap : 0.0f;
    const float difference = norms[i] - norm;
    const float least = (difference < 0 ? -difference : difference) - errors[i] - error - 1e-6f * (norms[i] + norm);
    const float inside = least > 0 ? least : 0.0f;
    gaps[i] = between;
    near[i] = !((inside * inside + between * between) * 0.99999f >= upper[i]);
  }
  int list[kBlock], left = 0;
  for (int i = 0; i < count; ++i) {
    list[left] = i;
    left += near[i] & !(passed_over[nearest[i]] >= upper[i]);
  }
  // Rows that are read lie too irregularly for the processor to fetch them ahead by itself: one would wait for memory at each.
  const int8_t* codes = rows.codes + first * rows.width;
  const int16_t* centre = centres.codes + c * rows.width;
  auto fetch = [&](int n) {
    for (int64_t byte = 0; byte < rows.width; byte += 64) __builtin_prefetch(codes + list[n] * rows.width + byte);
    __builtin_prefetch(codes + (list[n] + 1) * rows.width - 1);
  };
  for (int n = 0; n < left && n < kAhead; ++n) fetch(n);
  // Side by side, so that what follows has no branches: whether a bound is lowered cannot be foretold.
  float dots[kBlock], row_norm[kBlock], off[kBlock], outside[kBlock], gap[kBlock], low[kBlock], high[kBlock];
  int32_t number[kBlock];
  for (int n = 0; n < left; ++n) {
    if (n + kAhead < left) fetch(n + kAhead);
    const int i = list[n];
    dots[n] = rows.scale[first + i] * static_cast<float>(dot_codes(codes + i * rows.width, centre, rows.width));
    row_norm[n] = norms[i];
    off[n] = errors[i] + error;
    outside[n] = rests[i] + rest;
    gap[n] = gaps[i];
    low[n] = lower[i];
    high[n] = upper[i];
    number[n] = nearest[i];
  }
  const Vec none = {};
  const Vec twice_step = splat(2 * centres.step[c]), of_dot = splat(2 * centres.dot_error[c] / rows.code_norm_share);
  for (int n = 0; n < left; n += kLanes) {  // what is beyond the last is never written back
    const Vec size = load(row_norm + n), squares = size * size + norm * norm;
    const Vec apart_sq = squares - twice_step * load(dots + n), slack = 1e-6f * squares + of_dot * size;
    const Vec at_least = ALGES_ISA::larger(sqrt(ALGES_ISA::larger(apart_sq - slack, none)) - load(off + n), none);
    const Vec up_to = sqrt(ALGES_ISA::larger(apart_sq + slack, none)) + load(off + n), beyond = load(outside + n), between = load(gap + n);
    const Vec below = (at_least * at_least + between * between) * 0.99999f, above = (up_to * up_to + beyond * beyond) * 1.00001f;
    const Vec was_low = load(low + n), was_high = load(high + n);
    const Mask nearer = greater(was_high, above);
    store(low + n, select(greater(was_low, below), below, was_low));
    store(high + n, select(nearer, above, was_high));
    store(number + n, select(nearer, splat(int32_t{centres.first_number + c}), load(number + n)));
  }
  for (int n = 0; n < left; ++n) {
    lower[list[n]] = low[n];
    upper[list[n]] = high[n];
    nearest[list[n]] = number[n];
  }
  return left;
}

// Which rows of a block may have the smallest key: E / upper is at most the smallest E / lower so far. Where the centres are
// deferred, an upper bound still holds, if too high, and a lower one need not: rows that may win by it are lowered first.
// Returns how often codes were read.
int64_t race_sketched(const SketchedPass& pass, const float* enough, int64_t first, int count, double& least,
                      Contenders& contenders) {
  const Shard& shard = *pass.shard;
  const float *upper = pass.rows.upper + first, *lower = pass.rows.lower + first;
  Randoms randoms;
  const int offset = fill(randoms, shard, first, count, pass.draw, 0);
  const uint32_t *high = randoms.high + offset, *low = randoms.low + offset;
  int64_t read = 0;
  if (least < __builtin_inf() && !any_may_win(high, count, least, upper)) return read;
  for (int i = 0; i < count; ++i) {
    if (!(upper[i] > 0) || !may_win(high[i], least, upper[i])) continue;
    if (pass.deferred) {
      for (int c = 0; c < pass.centres.count; ++c) read += lower_sketched(pass, enough, first + i, 1, c);
      if (!(upper[i] > 0) || !may_win(high[i], least, upper[i])) continue;
    }
    const uint64_t bits = uint64_t{high[i]} << 20 | low[i] >> 12;
    const double exponential = -log1p(-((static_cast<double>(bits) + 0.5) * 0x1p-52));
    const double key = exponential / static_cast<double>(upper[i]);
    if (key > least) continue;
    contenders.add({key, first + i});
    const double surely = exponential / static_cast<double>(lower[i]);
    least = surely < least ? surely : least;
  }
  if (contenders.count > 4096) contenders.keep_up_to(least);
  return read;
}

}  // namespace

void sketched_pass(SketchedPass& pass) {
  const int64_t total = pass.shard->rows, blocks = (total + kBlock - 1) / kBlock;
  const bool draws = pass.draw.rule == DrawRule::race;
  Contenders all;
  double least = __builtin_inf(), largest = 0;
  int64_t read = 0;
  // By centre and number of a row's nearest + 1, 0 for none: an upper bound of D² up to which the centre is no nearer.
  const int64_t known = pass.centres.apart_stride;
  float* enough = new float[pass.centres.count * (known + 1)];
  for (int c = 0; c < pass.centres.count; ++c) {
    enough[c * (known + 1)] = -1;
    for (int64_t k = 0; k < known; ++k) {
      const float half = pass.centres.apart[c * known + k] / 2.00002f;
      enough[c * (known + 1) + k + 1] = half * half;
    }
  }
#pragma omp parallel num_threads(pass.threads) if (pass.threads > 1 && blocks > 1)
  {
    Contenders own;
    double own_least = __builtin_inf(), own_largest = 0;
    int64_t own_read = 0;
#pragma omp for schedule(static, 1) nowait
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kBlock;
      const int count = static_cast<int>(total - first < kBlock ? total - first : kBlock);
      for (int c = 0; c < pass.centres.count && !pass.deferred; ++c) own_read += lower_sketched(pass, enough, first, count, c);
      own_largest = larger(own_largest, largest_of(pass.rows.upper + first, count));
      if (draws) own_read += race_sketched(pass, enough, first, count, own_least, own);
    }
#pragma omp critical(alges_seeding)
    {
      read += own_read;
      largest = larger(largest, own_largest);
      least = own_least < least ? own_least : least;
      for (int64_t i = 0; i < own.count; ++i) all.add(own.items[i]);
    }
    delete[] own.items;
  }
  delete[] enough;
  all.keep_up_to(least);
  pass.contenders = all.items;
  pass.n_contenders = all.count;
  pass.largest = largest;
  pass.read = read;
}

namespace {

typedef float Eight __attribute__((vector_size(32)));
typedef double FourDoubles __attribute__((vector_size(32)));

ALGES_INLINE Eight eight(const float* p) {
  Eight v;
  memcpy(&v, p, sizeof v);
  return v;
}

// Sums of squares in double, eight side by side. Two halves: a compiler keeps a vector wider than the registers in memory,
// and every sum then waits for the last one to be stored.
struct Squares {
  FourDoubles low = {}, high = {};

  ALGES_INLINE void add(Eight v) {
    typedef float Four __attribute__((vector_size(16)));
    Four half[2];
    memcpy(half, &v, sizeof v);
    const FourDoubles a = __builtin_convertvector(half[0], FourDoubles), b = __builtin_convertvector(half[1], FourDoubles);
    low += a * a;
    high += b * b;
  }
  ALGES_INLINE double total() const {
    const FourDoubles four = low + high;
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
};

// `kept` has room for `width` coordinates; those beyond the blocks' stay zero.
void sketch_row(const Sketching& s, int64_t i, float* kept) {
  double rest_sq = 0, all_sq = 0;
  Eight largest = {};
  for (int64_t b = 0; b < s.blocks; ++b) {
    const float* x = s.points + (i * s.blocks + b) * s.columns;
    Squares squares, kept_squares;
    int64_t k = 0;
    for (; k + 8 <= s.columns; k += 8) squares.add(eight(x + k));
    for (; k < s.columns; ++k) squares.low[0] += static_cast<double>(x[k]) * static_cast<double>(x[k]);
    for (int64_t at = 0; at < s.kept; at += 8) {
      Eight sums[4] = {};  // four, since each waits for its last product
      const float* basis = s.basis + at;
      for (k = 0; k + 4 <= s.columns; k += 4)
        for (int l = 0; l < 4; ++l) sums[l] += x[k + l] * eight(basis + (k + l) * s.kept);
      for (; k < s.columns; ++k) sums[0] += x[k] * eight(basis + k * s.kept);
      const Eight coordinates = (sums[0] + sums[2]) + (sums[1] + sums[3]);
      kept_squares.add(coordinates);
      const Eight scaled = coordinates * s.factors[b], size = scaled < 0 ? -scaled : scaled;
      memcpy(kept + b * s.kept + at, &scaled, sizeof scaled);
      largest = size > largest ? size : largest;
    }
    const double norm_sq = squares.total(), lost = norm_sq - kept_squares.total();
    const double factor_sq = static_cast<double>(s.factors[b]) * s.factors[b];
    rest_sq += factor_sq * (lost > 0 ? lost : 0);
    all_sq += factor_sq * norm_sq;
    if (s.norms) s.norms[i * s.blocks + b] = ::sqrt(norm_sq);
  }
  float most = 0;
  for (int l = 0; l < 8; ++l) most = largest[l] > most ? largest[l] : most;
  const float scale = most * (1.0f / 127.0f);
  const bool usable = most > 1e-15f && most < 1e18f;  // squares of what codes leave neither vanish nor overflow
  const float inverse = usable ? 1.0f / scale : 0.0f;
  int8_t* codes = s.codes + i * s.width;
  double error_sq = 0;
  for (int64_t k = 0; k < s.width; k += kLanes) {
    const Vec v = load(kept + k);
    const Vec scaled = usable ? v * inverse : Vec{};
    const Vec rounded = (scaled + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: to the nearest whole number
    const Bytes bytes = __builtin_convertvector(__builtin_convertvector(rounded, Int), Bytes);
    memcpy(codes + k, &bytes, sizeof bytes);
    const Vec off = v - rounded * scale;
    error_sq += static_cast<double>(sum(off * off));
  }
  const double size = ::sqrt(all_sq);
  s.scale[i] = usable ? scale : 0.0f;
  s.error[i] = static_cast<float>((usable ? ::sqrt(error_sq) : size) + s.rounding * size);
  s.rest[i] = static_cast<float>(::sqrt(rest_sq + s.rounding * all_sq));
  if (!(all_sq < 1e36)) s.scale[i] = s.error[i] = s.rest[i] = __builtin_nanf("");
}

}  // namespace

void sketch_rows(const Sketching& s) {
#pragma omp parallel num_threads(s.threads) if (s.threads > 1 && s.rows > 64)
  {
    float* kept = new float[s.width]();
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < s.rows; ++i) sketch_row(s, i, kept);
    delete[] kept;
  }
}

void seeding_pass(Pass& pass) {
  switch (pass.shard->type) {
    case PointType::float32: return run<float, float>(pass);
    case PointType::bfloat16: return run<Bfloat16, float>(pass);
    case PointType::float16: return run<Float16, float>(pass);
    case PointType::float64: return run<double, double>(pass);
  }
}

}  // namespace ALGES_ISA
}  // namespace alges
