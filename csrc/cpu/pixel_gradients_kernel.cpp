// One chunk of one image. For each block of positions:
//
//   1. features    copied to scratch as d rows of positions in float32
//   2. logits      s = W z + b, a register tile of classes x positions, positions along the lanes
//   3. residual    softmax, prediction, norms, and every sum that needs no features
//   4. products    Σ r ⊗ z̃, a register tile of classes x channels, channels along the lanes: features are transposed once,
//                  and the taps of a kernel are shifts of the same transposed rows
//
// Steps 2 and 4 are 2 K d (kernel area) flops a pixel each, at the rate of FMA; step 3 is about 20 operations a class.
// Bytes read: the features once (a larger kernel reads rows shared by two blocks twice).
#include "cpu/pixel_gradients.h"
#include "cpu/vec.h"

namespace alges {
namespace ALGES_ISA {
namespace {

using Call = PixelGradientsCall;
using Plan = PixelGradientsPlan;
using Partial = PixelGradientsPartial;

constexpr int kVecs = 2;  // vectors of positions in a tile of logits, vectors of channels in a tile of products
constexpr int kSpan = kVecs * kLanes;
// Classes in a tile: kVecs accumulators each, beside kVecs operands and one broadcast.
constexpr int kTile = (kRegisters - kVecs - 1) / kVecs;
// Class sums are float32 up to this many positions, then move to double.
constexpr int64_t kFold = 2048;
// Terms of a dot product added one after the other; longer ones are sums of such runs, as accurate as a blocked product.
constexpr int64_t kTerms = 48;

static_assert(kGroup % kSpan == 0 && kStep % kGroup == 0, "steps are whole groups");

ALGES_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
ALGES_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Tiles of K classes, as equal as can be: K = 19 is 10 + 9 rather than 14 + 5.
struct Tiles {
  int64_t classes, count;
  explicit Tiles(int64_t n) : classes(n), count((n + kTile - 1) / kTile) {}
  int64_t begin(int64_t tile) const { return tile * classes / count; }
  int64_t size(int64_t tile) const { return begin(tile + 1) - begin(tile); }
};

// Calls body with a number in 1..N as a constant.
template <int N>
struct Constant {
  static constexpr int value = N;
};
template <int N = kTile, class Body>
ALGES_INLINE void with_constant(int64_t n, const Body& body) {
  if constexpr (N > 0) {
    if (n == N)
      body(Constant<N>());
    else
      with_constant<N - 1>(n, body);
  }
}

// Features, logits and residuals, from any type and strides to planar float32.

struct Float32 {
  float raw;
  static ALGES_INLINE Vec load_vec(const Float32* p) { return load(&p->raw); }
};
struct BFloat16 {
  uint16_t raw;
  static ALGES_INLINE Vec load_vec(const BFloat16* p) {
    Half half;
    std::memcpy(&half, p, sizeof half);
    return from_bits(__builtin_convertvector(half, Int) << 16);
  }
};
struct Float16 {
  uint16_t raw;
  static ALGES_INLINE Vec load_vec(const Float16* p) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    Half half;
    std::memcpy(&half, p, sizeof half);
    const Int wide = __builtin_convertvector(half, Int);
    // Exponent and fraction moved in place read as the value x 2^-112, subnormals included; infinity and NaN keep theirs.
    const Int magnitude = (wide & 0x7fff) << 13;
    const Int finite = bits(from_bits(magnitude) * splat(5.19229686e33f));
    const Int value = (wide & 0x7c00) == 0x7c00 ? (magnitude | 0x7f800000) : finite;
    return from_bits(value | (wide & 0x8000) << 16);
#endif
  }
};

template <class T>
void copy_row(float* to, const T* from, int64_t stride, int64_t n) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + kLanes <= n; i += kLanes) store(to + i, T::load_vec(from + i));
  for (; i < n; i += kLanes) {
    const int64_t rest = smaller(kLanes, n - i);
    T lanes[kLanes] = {};
    for (int64_t j = 0; j < rest; ++j) lanes[j] = from[(i + j) * stride];
    float values[kLanes];
    store(values, T::load_vec(lanes));
    std::memcpy(to + i, values, rest * sizeof(float));
  }
}

// Rows of `channels` channels, `pitch` apart, from n positions of one row of the image.
template <class T>
void copy_rows(float* to, int64_t pitch, const T* from, int64_t channel_stride, int64_t stride, int64_t channels, int64_t n) {
  int64_t whole_channels = 0, whole = 0;
  if (channel_stride == 1 && stride != 1) {  // channels last
    whole_channels = channels / kLanes * kLanes;
    whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
      for (int64_t c = 0; c < whole_channels; c += kLanes) {
        Vec square[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) square[j] = T::load_vec(from + (i + j) * stride + c);
        transpose(square);
        for (int64_t j = 0; j < kLanes; ++j) store(to + (c + j) * pitch + i, square[j]);
      }
  }
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t done = c < whole_channels ? whole : 0;
    copy_row(to + c * pitch + done, from + c * channel_stride + done * stride, stride, n - done);
  }
}

// Weights of N classes from `first` on as (channels, taps, N).
void pack_tile(const Call& call, int64_t first, int64_t n, float* packed) {
  const int64_t per_class = call.channels * call.kernel[0] * call.kernel[1] * call.kernel[2];
  for (int64_t i = 0; i < per_class; ++i)
    for (int64_t k = 0; k < n; ++k) *packed++ = call.weight[(first + k) * per_class + i];
}

class Chunk {
 public:
  Chunk(const Call& call, const Plan& plan, int64_t image, const float* packed, float* scratch, const Partial& partial)
      : call_(call),
        plan_(plan),
        image_(image),
        packed_(packed),
        partial_(partial),
        item_(call.features.type == Type::float32 ? 4 : 2),
        pitch_(plan.windows * plan.window),
        features_(scratch + plan.scratch.features),
        residual_(scratch + plan.scratch.residual),
        columns_(scratch + plan.scratch.columns),
        squares_(scratch + plan.scratch.squares),
        patch_squares_(scratch + plan.scratch.patch_squares),
        norms_(scratch + plan.scratch.norms),
        own_residual_(scratch + plan.scratch.own_residual),
        best_(scratch + plan.scratch.best),
        prediction_(reinterpret_cast<int32_t*>(scratch + plan.scratch.prediction)),
        mask_(reinterpret_cast<int32_t*>(scratch + plan.scratch.mask)),
        class_sums_(scratch + plan.scratch.class_sums),
        class_counts_(reinterpret_cast<int32_t*>(scratch + plan.scratch.class_counts)),
        class_vectors_(scratch + plan.scratch.class_vectors),
        weights_(scratch + plan.scratch.weights) {}

  void run(int64_t first_block, int64_t last_block) {
    zero_class_sums();
    int64_t positions = 0;
    for (int64_t block = first_block; block < last_block; ++block) {
      locate(block);
      load_features();
      if (plan_.norms) sum_squares();
      for (int64_t step = 0; step < n_; step += kStep) {
        if (plan_.predict) logits(step);
        if (plan_.predict) masked_ ? softmax<true>(step) : softmax<false>(step);
        if (call_.residual.data) given_residual(step);
      }
      if (call_.norm_map) write_norm_map();
      if (call_.image || call_.semantic_vector) products();
      positions += n_;
      if (positions >= kFold) {
        fold_class_sums();
        positions = 0;
      }
    }
    fold_class_sums();
  }

 private:
  const Call& call_;
  const Plan& plan_;
  const int64_t image_;
  const float* const packed_;
  const Partial& partial_;
  const int64_t item_;   // bytes of a feature
  const int64_t pitch_;  // from one row of features to the next: the positions of the block's windows
  float *const features_, *const residual_, *const columns_, *const squares_, *const patch_squares_, *const norms_,
      *const own_residual_, *const best_;
  int32_t *const prediction_, *const mask_;
  float* const class_sums_;
  int32_t* const class_counts_;
  float *const class_vectors_, *const weights_;

  // The block in hand.
  int64_t z_, begin_, n_;  // plane, first position, positions
  bool masked_;            // some positions do not count: mask_ says which

  bool pointwise() const { return plan_.taps == 1; }
  int64_t classes() const { return call_.classes; }
  int64_t channels() const { return call_.channels; }
  // Residuals of a step: row k is kStep floats.
  float* residual_of(int64_t step) { return residual_ + step * classes(); }

  template <class T>
  static const T* at(const Operand& operand, int64_t image, int64_t z, int64_t y, int64_t x) {
    return static_cast<const T*>(operand.data) + image * operand.stride[0] + z * operand.stride[2] +
           y * operand.stride[3] + x * operand.stride[4];
  }

  // Calls body(y, x, position, n) for each run of pixels among the positions [begin, begin + length) of a plane.
  template <class Body>
  void for_rows(int64_t begin, int64_t length, const Body& body) const {
    const int64_t width = call_.size[2], end = smaller(begin + length, plan_.plane);
    int64_t y = begin < 0 ? 0 : begin / plan_.pitch;
    for (; y * plan_.pitch < end; ++y) {
      const int64_t row = y * plan_.pitch, first = begin > row ? begin : row, last = smaller(end, row + width);
      if (first < last) body(y, first - row, first - begin, last - first);
    }
  }

  template <class T>
  void copy_typed(const Operand& from, int64_t n_channels, int64_t z, int64_t begin, int64_t length, float* to,
                  int64_t pitch) const {
    for_rows(begin, length, [&](int64_t y, int64_t x, int64_t position, int64_t n) {
      copy_rows(to + position, pitch, at<T>(from, image_, z, y, x), from.stride[1], from.stride[4], n_channels, n);
    });
  }

  // Positions [begin, begin + length) of plane z, as rows `pitch` apart; zero where there is no pixel.
  void copy(const Operand& from, int64_t n_channels, int64_t z, int64_t begin, int64_t length, float* to,
            int64_t pitch) const {
    const bool inside = z >= 0 && z < call_.size[0];
    if (!inside || plan_.pitch > call_.size[2] || begin < 0 || begin + length > plan_.plane)
      for (int64_t c = 0; c < n_channels; ++c) std::memset(to + c * pitch, 0, length * sizeof(float));
    if (!inside) return;
    switch (from.type) {
      case Type::float32: return copy_typed<Float32>(from, n_channels, z, begin, length, to, pitch);
      case Type::bfloat16: return copy_typed<BFloat16>(from, n_channels, z, begin, length, to, pitch);
      default: return copy_typed<Float16>(from, n_channels, z, begin, length, to, pitch);
    }
  }

  void mask_rows(float* rows, int64_t pitch, int64_t n_rows, const int32_t* mask, int64_t n) const {
    for (int64_t row = 0; row < n_rows; ++row)
      for (int64_t i = 0; i < n; i += kLanes) {
        float* p = rows + row * pitch + i;
        store(p, load(mask + i) ? load(p) : Vec{});
      }
  }

  void locate(int64_t block) {
    z_ = block / plan_.plane_blocks;
    begin_ = block % plan_.plane_blocks * plan_.block;
    n_ = smaller(plan_.block, plan_.plane - begin_);
    masked_ = call_.valid.data || plan_.pitch > call_.size[2] || n_ % kGroup != 0;
    int64_t valid = n_;
    if (masked_) {
      valid = 0;
      std::memset(mask_, 0, plan_.block * sizeof *mask_);
      for_rows(begin_, n_, [&](int64_t y, int64_t x, int64_t position, int64_t n) {
        const bool* given = call_.valid.data ? at<bool>(call_.valid, image_, z_, y, x) : nullptr;
        for (int64_t i = 0; i < n; ++i) {
          const bool counts = !given || given[i * call_.valid.stride[4]];
          mask_[position + i] = -counts;
          valid += counts;
        }
      });
    }
    partial_.scores[kValidPixels] += static_cast<double>(valid);
  }

  void load_features() {
    const Operand& features = call_.features;
    const int64_t height = call_.kernel[1], half_width = call_.kernel[2] / 2;
    for (int64_t w = 0; w < plan_.windows; ++w) {
      const int64_t z = plan_.rows_apart ? w / height : w, y = plan_.rows_apart ? w % height : 0;
      copy(features, channels(), z_ + z - call_.kernel[0] / 2, begin_ + (y - height / 2) * plan_.pitch - half_width,
           plan_.window, features_ + w * plan_.window, pitch_);
    }
    if (call_.valid.data) forget_unreached();
  }

  // Features in no valid pixel's patch become 0: 0 times a NaN there would still be NaN.
  void forget_unreached() {
    if (pointwise()) return mask_rows(features_, pitch_, channels(), mask_, round_up(n_, kGroup));
    int32_t* const reached = reinterpret_cast<int32_t*>(squares_);
    std::memset(reached, 0, pitch_ * sizeof *reached);
    for (int64_t t = 0; t < plan_.taps; ++t)
      for (int64_t i = 0; i < n_; i += kLanes) {
        int32_t* const at_tap = reached + plan_.offset[t] + i;
        store(at_tap, load(at_tap) | load(mask_ + i));
      }
    mask_rows(features_, pitch_, channels(), reached, pitch_);
  }

  // ‖z̃‖² of each position: the box sum of ‖z‖².
  void sum_squares() {
    const int64_t length = pitch_;
    float* const to = pointwise() ? patch_squares_ : squares_;
    constexpr int kRun = 8;
    for (int64_t i = 0; i < length; i += kRun * kLanes)
      with_constant<kRun>(smaller(kRun, (length - i) / kLanes), [&](auto vecs) {
        constexpr int n = decltype(vecs)::value;
        Vec total[n] = {};
        for (int64_t c = 0; c < channels();) {
          Vec sums[n] = {};
          for (const int64_t last = smaller(c + kTerms, channels()); c < last; ++c) {
            const float* row = features_ + c * pitch_ + i;
#pragma GCC unroll 8
            for (int v = 0; v < n; ++v) sums[v] += load(row + v * kLanes) * load(row + v * kLanes);
          }
          for (int v = 0; v < n; ++v) total[v] += sums[v];
        }
        for (int v = 0; v < n; ++v) store(to + i + v * kLanes, total[v]);
      });
    if (pointwise()) return;
    for (int64_t i = 0; i < n_; i += kLanes) {
      Vec box = {};
      for (int64_t t = 0; t < plan_.taps; ++t) box += load(squares_ + plan_.offset[t] + i);
      store(patch_squares_ + i, box);
    }
  }

  // Logits of a step into residual_of(step); best_ is the largest of each position, prediction_ its class.
  void logits(int64_t step) {
    float* const rows = residual_of(step);
    const int64_t n = round_up(smaller(kStep, n_ - step), kGroup);
    const int32_t* const mask = masked_ ? mask_ + step : nullptr;
    if (call_.logits.data) {
      copy(call_.logits, classes(), z_, begin_ + step, n, rows, kStep);
      if (mask) mask_rows(rows, kStep, classes(), mask, n);
      for (int64_t i = 0; i < n; i += kLanes) {
        Vec best = load(rows + i);
        Int prediction = {};
        for (int64_t k = 1; k < classes(); ++k) improve(best, prediction, load(rows + k * kStep + i), k);
        store(best_ + i, best);
        store(prediction_ + step + i, prediction);
      }
      return;
    }
    const Tiles tiles(classes());
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      const int64_t first = tiles.begin(tile);
      const float* weights = packed_ + first * channels() * plan_.taps;
      if (!plan_.shared_weights) {
        pack_tile(call_, first, tiles.size(tile), weights_);
        weights = weights_;
      }
      with_constant(tiles.size(tile), [&](auto size) {
        logits_tile<decltype(size)::value>(step, n, first, weights, rows + first * kStep, mask);
      });
    }
  }

  static ALGES_INLINE void improve(Vec& best, Int& prediction, Vec logit, int64_t k) {
    const Int better = logit > best;  // strictly: among equals the lowest class stays; a NaN is never better
    best = better ? logit : best;
    prediction = better ? splat(static_cast<int32_t>(k)) : prediction;
  }

  template <int N>
  void logits_tile(int64_t step, int64_t n, int64_t first, const float* weights, float* rows, const int32_t* mask) {
    const int64_t terms = channels() * plan_.taps;
    const int64_t runs = terms <= kTerms * 4 / 3 ? 1 : smaller(channels(), (terms + kTerms - 1) / kTerms);
    for (int64_t i = 0; i < n; i += kSpan) {
      Vec sums[N][kVecs], total[N][kVecs];
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < kVecs; ++v) sums[k][v] = splat(call_.bias ? call_.bias[first + k] : 0.0f);
      const float* w = weights;
      const float* row = features_ + step + i;
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t last = (run + 1) * channels() / runs;
        for (int64_t c = run * channels() / runs; c < last; ++c, row += pitch_)
          for (int64_t t = 0; t < plan_.taps; ++t, w += N) {
            Vec z[kVecs];
            for (int v = 0; v < kVecs; ++v) z[v] = load(row + plan_.offset[t] + v * kLanes);
#pragma GCC unroll 16
            for (int k = 0; k < N; ++k)
              for (int v = 0; v < kVecs; ++v) sums[k][v] += splat(w[k]) * z[v];
          }
        if (runs == 1) break;
#pragma GCC unroll 16
        for (int k = 0; k < N; ++k)
          for (int v = 0; v < kVecs; ++v) {
            total[k][v] = run == 0 ? sums[k][v] : total[k][v] + sums[k][v];
            sums[k][v] = run == runs - 1 ? total[k][v] : Vec{};
          }
      }
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = i + v * kLanes;
        Vec best = load(best_ + at);
        Int prediction = load(prediction_ + step + at);
#pragma GCC unroll 16
        for (int k = 0; k < N; ++k) {
          Vec logit = sums[k][v];
          if (mask) logit = load(mask + at) ? logit : Vec{};
          store(rows + k * kStep + at, logit);
          if (first + k == 0) {
            best = logit;
            prediction = Int{};
          } else {
            improve(best, prediction, logit, first + k);
          }
        }
        store(best_ + at, best);
        store(prediction_ + step + at, prediction);
      }
    }
  }

  // Logits of a step become residuals; everything that is known of a pixel without its features is added up.
  template <bool kMasked>
  void softmax(int64_t step) {
    float* const rows = residual_of(step);
    const int64_t n = round_up(smaller(kStep, n_ - step), kGroup);
    const bool scores = call_.entropy || call_.margin || call_.confidence;
    Vec entropy = {}, margin = {}, confidence = {};
    for (int64_t i = 0; i < n; i += kSpan) {
      Vec best[kVecs], others[kVecs] = {}, squares[kVecs] = {}, weighted[kVecs] = {}, second[kVecs] = {};
      Int prediction[kVecs];
      for (int v = 0; v < kVecs; ++v) {
        best[v] = load(best_ + i + v * kLanes);
        prediction[v] = load(prediction_ + step + i + v * kLanes);
      }
      // e = exp(s - max s) is 1 at the prediction, and left out there: softmax is e / (1 + others).
      for (int64_t k = 0; k < classes(); ++k) {
        float* const row = rows + k * kStep + i;
        const Int k_lanes = splat(static_cast<int32_t>(k));
        for (int v = 0; v < kVecs; ++v) {
          const Vec x = load(row + v * kLanes) - best[v];
          const Vec e = prediction[v] == k_lanes ? Vec{} : exp_nonpositive(x);
          others[v] += e;
          squares[v] += e * e;
          store(row + v * kLanes, e);
          if (scores) {
            second[v] = e > second[v] ? e : second[v];
            weighted[v] += e > 0 ? e * x : e;  // x may be -inf where e is 0
          }
        }
      }
      Vec inverse[kVecs], own[kVecs], norm[kVecs];
      for (int v = 0; v < kVecs; ++v) {
        const int64_t position = step + i + v * kLanes;
        const Int keep = kMasked ? load(mask_ + position) : splat(-1);
        const Vec zero = best[v] - best[v];  // NaN where no logit is finite
        inverse[v] = splat(1.0f) / (splat(1.0f) + zero + others[v]);
        if (scores) {
          const Vec p_entropy = log1p_nonnegative(others[v]) - weighted[v] * inverse[v];
          const Vec p_margin = (splat(1.0f) - second[v]) * inverse[v];
          entropy += keep ? p_entropy : Vec{};
          margin += keep ? p_margin : Vec{};
          confidence += keep ? inverse[v] : Vec{};
        }
        if (kMasked) inverse[v] = keep ? inverse[v] : Vec{};
        // p - 1 at the prediction, formed as minus the sum of the others: the difference cancels near p = 1.
        own[v] = -(others[v] * inverse[v]);
        // The prediction of a pixel with a NaN is the last class, as in the reference; infinities have kept theirs.
        const Int infinite = (zero != zero) & (best[v] == best[v]);
        const Int unknown = (inverse[v] != inverse[v]) & ~infinite;
        prediction[v] = unknown ? splat(static_cast<int32_t>(classes() - 1)) : prediction[v];
        store(prediction_ + position, prediction[v]);
        store(own_residual_ + position, own[v]);
        if (plan_.norms) {
          norm[v] = sqrt(squares[v] + others[v] * others[v]) * inverse[v] * sqrt(load(patch_squares_ + position));
          if (kMasked) norm[v] = keep ? norm[v] : Vec{};
          store(norms_ + position, norm[v]);
        }
      }
      if (call_.residual.data) continue;
      for (int64_t k = 0; k < classes(); ++k) {
        float* const row = rows + k * kStep + i;
        const Int k_lanes = splat(static_cast<int32_t>(k));
        for (int v = 0; v < kVecs; ++v) {
          const Vec r = load(row + v * kLanes) * inverse[v];
          store(row + v * kLanes, prediction[v] == k_lanes ? own[v] : r);
        }
      }
      count_classes(step + i);
    }
    partial_.scores[kEntropy] += sum(entropy);
    partial_.scores[kMargin] += sum(margin);
    partial_.scores[kConfidence] += sum(confidence);
  }

  // Norms and pixels of each class, over one span of positions.
  ALGES_INLINE void count_classes(int64_t position) {
    if (!call_.semantic && !call_.class_pixels) return;
    Vec norm[kVecs];
    Int prediction[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      norm[v] = load(norms_ + position + v * kLanes);
      prediction[v] = load(prediction_ + position + v * kLanes);
      if (masked_) prediction[v] |= ~load(mask_ + position + v * kLanes);  // -1: no class
    }
    for (int64_t k = 0; k < classes(); ++k) {
      const Int k_lanes = splat(static_cast<int32_t>(k));
      if (call_.semantic) {
        Vec total = load(class_sums_ + k * kLanes);
        for (int v = 0; v < kVecs; ++v) total += prediction[v] == k_lanes ? norm[v] : Vec{};
        store(class_sums_ + k * kLanes, total);
      }
      if (call_.class_pixels) {
        Int total = load(class_counts_ + k * kLanes);
        for (int v = 0; v < kVecs; ++v) total -= prediction[v] == k_lanes;
        store(class_counts_ + k * kLanes, total);
      }
    }
  }

  // Residuals of another loss for a step, in place of the logits.
  void given_residual(int64_t step) {
    float* const rows = residual_of(step);
    const int64_t length = smaller(kStep, n_ - step), n = round_up(length, kGroup);
    copy(call_.residual, classes(), z_, begin_ + step, n, rows, kStep);
    if (masked_) mask_rows(rows, kStep, classes(), mask_ + step, n);
    if (plan_.norms)
      for (int64_t i = 0; i < n; i += kLanes) {
        Vec squares = {};
        for (int64_t k = 0; k < classes(); ++k) squares += load(rows + k * kStep + i) * load(rows + k * kStep + i);
        Vec norm = sqrt(squares) * sqrt(load(patch_squares_ + step + i));
        if (masked_) norm = load(mask_ + step + i) ? norm : Vec{};
        store(norms_ + step + i, norm);
      }
    if (!plan_.predict) return;
    for (int64_t i = 0; i < length; ++i)
      own_residual_[step + i] = rows[prediction_[step + i] * kStep + i];
    for (int64_t i = 0; i < n; i += kSpan) count_classes(step + i);
  }

  void zero_class_sums() {
    std::memset(class_sums_, 0, classes() * kLanes * sizeof *class_sums_);
    std::memset(class_counts_, 0, classes() * kLanes * sizeof *class_counts_);
  }

  void fold_class_sums() {
    for (int64_t k = 0; k < classes(); ++k)
      for (int64_t i = 0; i < kLanes; ++i) {
        partial_.semantic[k] += class_sums_[k * kLanes + i];
        partial_.class_pixels[k] += class_counts_[k * kLanes + i];
      }
    zero_class_sums();
  }

  void write_norm_map() const {
    float* const map = call_.norm_map + (image_ * call_.size[0] + z_) * call_.size[1] * call_.size[2];
    for_rows(begin_, n_, [&](int64_t y, int64_t x, int64_t position, int64_t n) {
      std::memcpy(map + y * call_.size[2] + x, norms_ + position, n * sizeof(float));
    });
  }

  // Transposed features of up to kVecs x kLanes channels, and where the sums with one tap of them go.
  struct Column {
    const float* from;
    int64_t to;
    const char* ahead;  // the same channels in the next block, null where they need no fetching
  };

  // Fetching the next block during the products hides memory behind them. Larger kernels have flops to hide it anyway, and
  // channels-last features are one stretch that the processor fetches by itself.
  const char* ahead_of(int64_t channel) const {
    const Operand& features = call_.features;
    if (!pointwise() || call_.size[1] > 1 || features.stride[4] != 1 || begin_ + plan_.block >= plan_.plane) return nullptr;
    const char* const start = static_cast<const char*>(features.data);
    return start + item_ * (image_ * features.stride[0] + channel * features.stride[1] + z_ * features.stride[2] + begin_ +
                            plan_.block);
  }

  void products() {
    const int64_t length = pitch_, n_groups = (channels() + kLanes - 1) / kLanes;
    for (int64_t group = 0; group < n_groups; group += kVecs) {
      const int64_t groups = smaller(kVecs, n_groups - group);
      for (int64_t v = 0; v < groups; ++v) transpose_channels((group + v) * kLanes, length, columns_ + v * length * kLanes);
      // Pairs of columns share the broadcast of a residual: two groups of channels, or two taps of one group.
      const auto column = [&](int64_t index) {
        const int64_t t = index / groups, v = index % groups;
        return Column{columns_ + (v * length + plan_.offset[t]) * kLanes,
                      t * classes() * plan_.padded_channels + (group + v) * kLanes, ahead_of((group + v) * kLanes)};
      };
      const int64_t count = plan_.taps * groups;
      if (call_.image)
        for (int64_t step = 0; step < n_; step += kStep) {
          int64_t index = 0;
          for (; index + kVecs <= count; index += kVecs) {
            const Column pair[kVecs] = {column(index), column(index + 1)};
            products_of<kVecs>(step, pair);
          }
          for (; index < count; ++index) {
            const Column single[1] = {column(index)};
            products_of<1>(step, single);
          }
        }
      if (call_.semantic_vector)
        for (int64_t index = 0; index < count; ++index) class_products(column(index));
    }
  }

  // `length` rows of kLanes channels from `first` on; zero beyond the last.
  void transpose_channels(int64_t first, int64_t length, float* to) const {
    const int64_t there = smaller(kLanes, channels() - first);
    for (int64_t i = 0; i < length; i += kLanes) {
      Vec square[kLanes];
      const float* row = features_ + first * pitch_ + i;
      if (there == kLanes) {
        load_transposed(row, pitch_, square);
      } else {
        for (int64_t c = 0; c < kLanes; ++c) square[c] = c < there ? load(row + c * pitch_) : Vec{};
        transpose(square);
      }
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c) store(to + (i + c) * kLanes, square[c]);
    }
  }

  template <int M>
  void products_of(int64_t step, const Column (&columns)[M]) {
    const float* const rows = residual_of(step);
    const int64_t n = smaller(kStep, n_ - step);
    const Tiles tiles(classes());
    for (int64_t tile = 0; tile < tiles.count; ++tile)
      with_constant(tiles.size(tile), [&](auto size) {
        const int64_t first = tiles.begin(tile);
        const float* const r = rows + first * kStep;
        if (tile == 0 && columns[0].ahead)
          products_tile<decltype(size)::value, M, true>(r, n, step, columns, 0);
        else
          products_tile<decltype(size)::value, M, false>(r, n, step, columns, first * plan_.padded_channels);
      });
  }

  template <int N, int M, bool kFetch>
  void products_tile(const float* residuals, int64_t n, int64_t step, const Column (&columns)[M], int64_t first) {
    Vec sums[N][M] = {};
    const int64_t fetch_pitch = call_.features.stride[1] * item_;
    const float* from[M];
    for (int v = 0; v < M; ++v) from[v] = columns[v].from + step * kLanes;
    for (int64_t i = 0; i < n; ++i) {
      if (kFetch && i % (16 / kLanes) == 0) {
        // One cache line after the other of kLanes rows of kStep floats, down the rows first.
        const int64_t line = i * kLanes / 16, offset = line % kLanes * fetch_pitch + line / kLanes * 64;
        for (int v = 0; v < M; ++v) __builtin_prefetch(columns[v].ahead + offset, 0, 3);  // the L2 hint is slower
      }
      Vec z[M];
      for (int v = 0; v < M; ++v) z[v] = load(from[v] + i * kLanes);
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < M; ++v) sums[k][v] += splat(residuals[k * kStep + i]) * z[v];
    }
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k)
      for (int v = 0; v < M; ++v) {
        float* const total = partial_.image + columns[v].to + first + k * plan_.padded_channels;
        store(total, load(total) + sums[k][v]);
      }
  }

  // Σ r_ŷ z̃ by class ŷ, over the block.
  void class_products(const Column& column) {
    std::memset(class_vectors_, 0, classes() * kLanes * sizeof *class_vectors_);
    for (int64_t i = 0; i < n_; ++i) {
      float* const sums = class_vectors_ + prediction_[i] * kLanes;
      store(sums, load(sums) + splat(own_residual_[i]) * load(column.from + i * kLanes));
    }
    for (int64_t k = 0; k < classes(); ++k) {
      float* const total = partial_.semantic_vector + column.to + k * plan_.padded_channels;
      store(total, load(total) + load(class_vectors_ + k * kLanes));
    }
  }
};

}  // namespace

void pack_weights(const Call& call, float* packed) {
  const Tiles tiles(call.classes);
  const int64_t per_class = call.channels * call.kernel[0] * call.kernel[1] * call.kernel[2];
  for (int64_t tile = 0; tile < tiles.count; ++tile)
    pack_tile(call, tiles.begin(tile), tiles.size(tile), packed + tiles.begin(tile) * per_class);
}

void accumulate(const Call& call, const Plan& plan, int64_t image, int64_t chunk, const float* packed, float* scratch,
                const Partial& partial) {
  const int64_t blocks = call.size[0] * plan.plane_blocks;
  Chunk(call, plan, image, packed, scratch, partial)
      .run(chunk * blocks / plan.chunks, (chunk + 1) * blocks / plan.chunks);
}

}  // namespace ALGES_ISA
}  // namespace alges
