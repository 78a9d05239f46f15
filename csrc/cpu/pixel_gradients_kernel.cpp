// One chunk of one image. For each block of positions:
//
//   1. features    copied to scratch as d rows of positions in float32, with a 1 x 1 kernel during steps 2 and 4 of the block
//                  before, a vector at a time; or made there by a hidden layer, a register tile of its channels x positions,
//                  from rows of inputs for kGroup positions at a time
//   2. logits      s = W z + b, a register tile of classes x positions, positions along the lanes; and Σ z²
//   3. residual    softmax, prediction, norms, and every sum that needs no features
//   4. products    Σ r ⊗ z̃, a register tile of classes x channels. Where the sums are few, positions stay along the lanes,
//                  of two channels side by side, and no row is moved. Else channels lie along the lanes: features are transposed once, and the taps of a
//                  kernel are shifts of the same transposed rows
//
// Windows of an image are done in one go: positions are then its pixels window by window, so that each window is a stretch
// of them, which ends where it may; step 4 makes the sums of a stretch, with channels along the lanes.
//
// Steps 2 and 4 are 2 K d (kernel area) flops a pixel each, a hidden layer 2 d (its inputs), at the rate of FMA; step 3 is
// about 20 operations a class.
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

static_assert(kGroup % kSpan == 0 && kShortStep % kGroup == 0 && kLongStep % kGroup == 0, "steps are whole groups");

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

struct Nothing {  // where a loop loads no features
  static constexpr bool kLoads = false;
};
struct Float32 {
  static constexpr bool kLoads = true;
  float raw;
  static ALGES_INLINE Vec load_vec(const Float32* p) { return load(&p->raw); }
};
struct BFloat16 {
  static constexpr bool kLoads = true;
  uint16_t raw;
  static ALGES_INLINE Vec load_vec(const BFloat16* p) {
    Half half;
    std::memcpy(&half, p, sizeof half);
    return from_bits(__builtin_convertvector(half, Int) << 16);
  }
};
struct Float16 {
  static constexpr bool kLoads = true;
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

// Rows `first` to first + n of a matrix of weights, its columns [begin, end), as (columns, n).
void pack_tile(const float* weight, int64_t columns, int64_t first, int64_t n, int64_t begin, int64_t end, float* packed) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t k = 0; k < n; ++k) *packed++ = weight[(first + k) * columns + i];
}

ALGES_INLINE void add_to(float* total, Vec sums) { store(total, load(total) + sums); }

// The first n lanes. A call, so that the sums of a tile stay in registers until here.
__attribute__((noinline)) void add_some_to(float* total, Vec sums, int64_t n) {
  float lanes[kLanes];
  store(lanes, sums);
  for (int64_t i = 0; i < n; ++i) total[i] += lanes[i];
}
ALGES_INLINE void add_to(float* total, Vec sums, int64_t n) {
  n >= kLanes ? add_to(total, sums) : add_some_to(total, sums, n);
}

// The pixels of an image window by window, those of a window row by row.
struct Walk {
  int64_t height, width, rows, columns;
  int64_t row = 0, column = 0;                    // of the window
  int64_t top = 0, bottom, left = 0, right;       // its pixels
  int64_t y = 0, x = 0;

  explicit Walk(const Call& call)
      : height(call.size[1]), width(call.size[2]), rows(call.rows), columns(call.columns), bottom(height / rows), right(width / columns) {}

  int64_t window() const { return row * columns + column; }
  int64_t pixels() const { return (bottom - top) * (right - left); }
  bool at_start() const { return y == top && x == left; }
  int64_t run() const { return right - x; }  // pixels to the end of the window's row

  // Past n pixels, at most a run; whether the window ends there.
  bool advance(int64_t n) {
    x += n;
    if (x < right) return false;
    x = left;
    if (++y < bottom) return false;
    if (++column == columns) {
      column = right = 0;
      ++row;
      top = bottom;
      bottom = height * (row + 1) / rows;
    }
    left = right;
    right = width * (column + 1) / columns;
    y = top;
    x = left;
    return true;
  }
};

class Chunk {
 public:
  Chunk(const Call& call, const Plan& plan, int64_t image, const float* packed, float* scratch, const Partial& partial)
      : call_(call),
        plan_(plan),
        image_(image),
        packed_hidden_(packed),
        packed_(packed + plan.hidden_packed),
        partial_(partial),
        item_(call.features.type == Type::float32 ? 4 : 2),
        pitch_(plan.windows * plan.window),
        features_(scratch + plan.scratch.features),
        spare_(scratch + plan.scratch.spare),
        loaded_(reinterpret_cast<PixelGradientsLoaded*>(scratch + plan.scratch.loaded)),
        residual_(scratch + plan.scratch.residual),
        columns_(scratch + plan.scratch.columns),
        squares_(scratch + plan.scratch.squares),
        patch_squares_(scratch + plan.scratch.patch_squares),
        norms_(scratch + plan.scratch.norms),
        own_residual_(scratch + plan.scratch.own_residual),
        best_(scratch + plan.scratch.best),
        inverse_(scratch + plan.scratch.inverse),
        entropy_(scratch + plan.scratch.entropy),
        prediction_(reinterpret_cast<int32_t*>(scratch + plan.scratch.prediction) + plan.widest),
        mask_(reinterpret_cast<int32_t*>(scratch + plan.scratch.mask)),
        class_sums_(scratch + plan.scratch.class_sums),
        class_counts_(reinterpret_cast<int32_t*>(scratch + plan.scratch.class_counts)),
        class_vectors_(scratch + plan.scratch.class_vectors),
        lane_sums_(scratch + plan.scratch.lane_sums),
        weights_(scratch + plan.scratch.weights),
        inputs_(scratch + plan.scratch.inputs) {}

  void run(int64_t first_block, int64_t last_block) {
    zero_sums();
    int64_t positions = 0;
    for (int64_t block = first_block; block < last_block; ++block) {
      locate(block);
      load_features(block);
      if (plan_.norms && !fused()) sum_squares();
      for (int64_t step = 0; step < n_; step += plan_.step) {
        if (plan_.predict) logits(step);
        if (plan_.predict) softmax(step);
        if (call_.residual.data) given_residual(step);
      }
      if (call_.norm_map) write_norm_map();
      if (call_.feature_sum) feature_sums();
      if (call_.image || call_.semantic_vector) products();
      load_rest(block + 1);
      positions += n_;
      if (positions >= kFold) {
        fold();
        positions = 0;
      }
    }
    fold();
  }

  void run_windows() {
    zero_sums();
    Walk gathered(call_), walk(call_);
    Pixels ahead;
    next_pixels(gathered, ahead);
    int64_t changes = 0;
    for (int64_t left = plan_.plane; left > 0; left -= n_) {
      n_ = smaller(plan_.block, left);
      masked_ = n_ % kGroup != 0;
      if (masked_)
        for (int64_t i = 0; i < plan_.block; ++i) mask_[i] = -(i < n_);
      for (int64_t i = 0; i < n_; i += kGroup) {
        const Pixels pixels = ahead;
        next_pixels(gathered, ahead);
        switch (call_.features.type) {
          case Type::float32: gather_inputs<Float32>(pixels, &ahead); break;
          case Type::bfloat16: gather_inputs<BFloat16>(pixels, &ahead); break;
          default: gather_inputs<Float16>(pixels, &ahead);
        }
        hidden(features_ + i, nullptr);
      }
      logits(0);
      softmax(0);
      Stretch stretches[kShortStep];
      window_products(stretches, cut_into_stretches(walk, changes, stretches));
      std::memmove(prediction_ - plan_.widest, prediction_ - plan_.widest + n_, plan_.widest * sizeof *prediction_);
    }
  }

 private:
  const Call& call_;
  const Plan& plan_;
  const int64_t image_;
  const float *const packed_hidden_, *const packed_;
  const Partial& partial_;
  const int64_t item_;   // bytes of a feature
  const int64_t pitch_;  // from one row of features to the next: the positions of the block's windows
  float *features_, *spare_;  // of the block in hand; of the next
  PixelGradientsLoaded* const loaded_;
  float *const residual_, *const columns_, *const squares_, *const patch_squares_, *const norms_,
      *const own_residual_, *const best_, *const inverse_, *const entropy_;
  int32_t *const prediction_, *const mask_;
  float* const class_sums_;
  int32_t* const class_counts_;
  float *const class_vectors_, *const lane_sums_, *const weights_, *const inputs_;

  // The block in hand.
  int64_t z_, begin_, n_;  // plane, first position, positions
  bool masked_;            // some positions do not count: mask_ says which

  // The next block's features, loaded during the products with this one's.
  const char* next_ = nullptr;  // where its first is, null where none are loaded ahead
  int64_t arrived_;             // vectors of them so far, row by row

  bool pointwise() const { return plan_.taps == 1; }
  int64_t classes() const { return call_.classes; }
  int64_t channels() const { return call_.channels; }
  // Whether the first tile of logits also adds up the squares of the features.
  bool fused() const { return pointwise() && plan_.predict && !call_.logits.data; }
  // Residuals of a step: row k is plan_.step floats.
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

  void load_features(int64_t block) {
    const Operand& features = call_.features;
    if (call_.hidden_weight) {
      for (int64_t i = 0; i < n_; i += kGroup) {
        load_inputs(begin_ + i);
        hidden(features_ + i, inputs_after(begin_ + i + kGroup));
      }
    } else if (pointwise()) {
      if (loaded_->image == image_ && loaded_->block == block) {
        if (features_ != loaded_->features) swap_features();
      } else {
        copy(features, channels(), z_, begin_, round_up(n_, kGroup), features_, pitch_);
      }
      // The next one follows where whole blocks of positions lie next to each other.
      const bool adjoin = plan_.ahead && call_.size[0] == 1 && call_.size[1] == 1 && features.stride[4] == 1 && !call_.valid.data;
      const bool whole = begin_ + 2 * plan_.block <= plan_.plane && (plan_.block & (plan_.block - 1)) == 0;
      next_ = adjoin && whole ? static_cast<const char*>(features.data) + item_ * (image_ * features.stride[0] + begin_ + plan_.block) : nullptr;
      arrived_ = 0;
    } else {
      const int64_t height = call_.kernel[1], half_width = call_.kernel[2] / 2;
      for (int64_t w = 0; w < plan_.windows; ++w) {
        const int64_t z = plan_.rows_apart ? w / height : w, y = plan_.rows_apart ? w % height : 0;
        copy(features, channels(), z_ + z - call_.kernel[0] / 2, begin_ + (y - height / 2) * plan_.pitch - half_width,
             plan_.window, features_ + w * plan_.window, pitch_);
      }
    }
    if (call_.valid.data) forget_unreached();
  }

  void swap_features() {
    float* const of_next = spare_;
    spare_ = features_;
    features_ = of_next;
  }

  // Loads the next block's features a vector at a time, from loops of multiply-adds: one in each of the innermost loops is
  // about what there is, memory is read at an even rate, and what a loop waits for are its multiply-adds. What one loads it has
  // fetched kAhead steps before, some 1 500 cycles.
  template <class T>
  class Loader {
   public:
    ALGES_INLINE explicit Loader(const Chunk& chunk)
        : from_(chunk.next_),
          row_bytes_(chunk.item_ * chunk.call_.features.stride[1]),
          block_bytes_(chunk.item_ * chunk.plan_.block),
          to_(chunk.spare_),
          pitch_(chunk.pitch_),
          shift_(__builtin_ctzll(chunk.plan_.block / kLanes)),
          last_(chunk.channels() * chunk.plan_.block / kLanes - 1),
          arrived_(chunk.arrived_) {}

    ALGES_INLINE void step() {
      if constexpr (T::kLoads) load_vector();
    }
    ALGES_INLINE void leave(Chunk& chunk) const {
      if constexpr (T::kLoads) chunk.arrived_ = arrived_;
    }
    bool done() const { return arrived_ > last_; }

   private:
    ALGES_INLINE void load_vector() {
      const int64_t vector = smaller(arrived_++, last_), row = vector >> shift_, column = (vector - (row << shift_)) * kLanes;
      store(to_ + row * pitch_ + column, T::load_vec(reinterpret_cast<const T*>(from_ + row * row_bytes_) + column));
      int64_t ahead = vector + kAhead;
      const char* from = from_;
      if (ahead > last_) {
        ahead -= last_ + 1;
        from += block_bytes_;
      }
      const int64_t row_ahead = ahead >> shift_;
      __builtin_prefetch(from + row_ahead * row_bytes_ + (ahead - (row_ahead << shift_)) * kLanes * static_cast<int64_t>(sizeof(T)), 0, 3);
    }
    static constexpr int kAhead = 64;
    const char* const from_;
    const int64_t row_bytes_, block_bytes_;
    float* const to_;
    const int64_t pitch_, shift_, last_;
    int64_t arrived_;
  };

  // Calls body with the type of the features that are loaded meanwhile.
  template <class Body>
  ALGES_INLINE void with_loaded(bool loads, const Body& body) const {
    if (!loads || !next_) return body(Nothing());
    switch (call_.features.type) {
      case Type::float32: return body(Float32());
      case Type::bfloat16: return body(BFloat16());
      default: return body(Float16());
    }
  }

  void load_rest(int64_t block) {
    if (!next_) return;
    with_loaded(true, [&](auto type) {
      if constexpr (decltype(type)::kLoads)
        for (Loader<decltype(type)> loader(*this); !loader.done();) loader.step();
    });
    *loaded_ = {image_, block, spare_};
  }

  // The hidden layer's inputs of kGroup positions, as rows kGroup apart.
  void load_inputs(int64_t begin) const {
    switch (call_.features.stride[1] == 1 ? call_.features.type : Type::boolean) {
      case Type::float32: return gather_inputs<Float32>(begin);
      case Type::bfloat16: return gather_inputs<BFloat16>(begin);
      case Type::float16: return gather_inputs<Float16>(begin);
      default: copy(call_.features, call_.inputs, z_, begin, kGroup, inputs_, kGroup);
    }
  }

  // Where the channels of kGroup pixels are; null beyond the last.
  struct Pixels {
    const void* at[kGroup];
  };

  // ... where a pixel's channels lie together.
  template <class T>
  void gather_inputs(int64_t begin) const {
    Pixels pixels = {};
    for_rows(begin, kGroup, [&](int64_t y, int64_t x, int64_t position, int64_t n) {
      for (int64_t i = 0; i < n; ++i) pixels.at[position + i] = at<T>(call_.features, image_, z_, y, x + i);
    });
    gather_inputs<T>(pixels, nullptr);
  }

  // Squares of kLanes pixels, wherever these are, x kLanes channels. Those that are `ahead` are fetched meanwhile.
  template <class T>
  void gather_inputs(const Pixels& pixels, const Pixels* ahead) const {
    const int64_t inputs = call_.inputs, whole = inputs / kLanes * kLanes;
    const T* pixel[kGroup];
    for (int64_t i = 0; i < kGroup; ++i) pixel[i] = static_cast<const T*>(pixels.at[i]);
    for (int64_t i = 0; i < kGroup; i += kLanes) {
      const bool full = pixel[i + kLanes - 1];
      for (int64_t c = 0; c < whole; c += kLanes) {
        if (ahead && c * sizeof(T) % 64 == 0)
          for (int j = 0; j < kLanes; ++j) __builtin_prefetch(static_cast<const T*>(ahead->at[i + j]) + c, 0, 3);
        Vec square[kLanes];
        if (full) {
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) square[j] = T::load_vec(pixel[i + j] + c);
        } else {
          for (int j = 0; j < kLanes; ++j) square[j] = pixel[i + j] ? T::load_vec(pixel[i + j] + c) : Vec{};
        }
        transpose(square);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) store(inputs_ + (c + j) * kGroup + i, square[j]);
      }
      for (int64_t c = whole; c < inputs; ++c) {
        T lanes[kLanes] = {};
        for (int j = 0; j < kLanes; ++j)
          if (pixel[i + j]) lanes[j] = pixel[i + j][c];
        store(inputs_ + c * kGroup + i, T::load_vec(lanes));
      }
    }
  }

  // The pixels of the next kGroup positions of a walk.
  void next_pixels(Walk& walk, Pixels& pixels) const {
    const Operand& inputs = call_.features;
    const int64_t step = item_ * inputs.stride[4];
    int64_t position = 0;
    while (position < kGroup && walk.row < walk.rows) {
      const int64_t n = smaller(walk.run(), kGroup - position);
      const char* pixel = static_cast<const char*>(inputs.data) +
                          item_ * (image_ * inputs.stride[0] + walk.y * inputs.stride[3] + walk.x * inputs.stride[4]);
      for (int64_t i = 0; i < n; ++i, pixel += step) pixels.at[position++] = pixel;
      walk.advance(n);
    }
    for (; position < kGroup; ++position) pixels.at[position] = nullptr;
  }

  // Where the inputs of kGroup positions from `begin` on lie in one piece, null where they do not. They are fetched during
  // the hidden layer's first tile: squares of pixels are read in no order that the processor would foresee.
  const char* inputs_after(int64_t begin) const {
    const Operand& inputs = call_.features;
    const bool adjoin = call_.size[0] == 1 && call_.size[1] == 1 && inputs.stride[1] == 1 && inputs.stride[4] == call_.inputs;
    if (!adjoin || begin + kGroup > plan_.plane) return nullptr;
    return static_cast<const char*>(inputs.data) + item_ * (image_ * inputs.stride[0] + begin * inputs.stride[4]);
  }

  // What the hidden layer makes of kGroup positions of inputs_, into rows of features.
  void hidden(float* to, const char* ahead) const {
    const Tiles tiles(channels());
    for (int64_t tile = 0; tile < tiles.count; ++tile)
      with_constant(tiles.size(tile), [&](auto size) {
        constexpr int N = decltype(size)::value;
        const int64_t first = tiles.begin(tile);
        if (tile == 0 && ahead)
          hidden_tile<N, true>(first, to + first * pitch_, ahead);
        else
          hidden_tile<N, false>(first, to + first * pitch_, nullptr);
      });
  }

  template <int N, bool kFetch>
  void hidden_tile(const int64_t first, float* const to, const char* ahead) const {
    const int64_t row_bytes = kGroup * item_, inputs = call_.inputs, pitch = pitch_, runs = plan_.hidden_runs;
    const float* const from = inputs_;
    float bias[N];
    for (int k = 0; k < N; ++k) bias[k] = call_.hidden_bias ? call_.hidden_bias[first + k] : 0.0f;
    for (int64_t i = 0; i < kGroup; i += kSpan) {
      const float* w = packed_hidden_ + first * inputs;
      for (int64_t run = 0; run < runs; ++run) {
        Vec sums[N][kVecs];
#pragma GCC unroll 16
        for (int k = 0; k < N; ++k)
          for (int v = 0; v < kVecs; ++v) sums[k][v] = splat(run == 0 ? bias[k] : 0.0f);
        const float* row = from + run * inputs / runs * kGroup + i;
        const float* const end = from + (run + 1) * inputs / runs * kGroup + i;
        do {
          if (kFetch && i == 0) {
            for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(ahead + byte, 0, 3);
            ahead += row_bytes;
          }
          Vec z[kVecs];
          for (int v = 0; v < kVecs; ++v) z[v] = load(row + v * kLanes);
#pragma GCC unroll 16
          for (int k = 0; k < N; ++k)
            for (int v = 0; v < kVecs; ++v) sums[k][v] += splat(w[k]) * z[v];
          w += N;
          row += kGroup;
        } while (row < end);
        if (run > 0) {
#pragma GCC unroll 16
          for (int k = 0; k < N; ++k)
            for (int v = 0; v < kVecs; ++v) sums[k][v] += load(to + k * pitch + i + v * kLanes);
        }
        if (run + 1 == runs) {
          // Negative ones become 0, but for an infinity, which becomes NaN: what an input spoils shows in every output.
#pragma GCC unroll 16
          for (int k = 0; k < N; ++k)
            for (int v = 0; v < kVecs; ++v)
              sums[k][v] = select(greater(Vec{}, sums[k][v]), sums[k][v] * Vec{}, sums[k][v]);
        }
#pragma GCC unroll 16
        for (int k = 0; k < N; ++k)
          for (int v = 0; v < kVecs; ++v) store(to + k * pitch + i + v * kLanes, sums[k][v]);
      }
    }
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
    const int64_t n = round_up(smaller(plan_.step, n_ - step), kGroup);
    const int32_t* const mask = masked_ ? mask_ + step : nullptr;
    if (call_.logits.data) {
      copy(call_.logits, classes(), z_, begin_ + step, n, rows, plan_.step);
      if (mask) mask_rows(rows, plan_.step, classes(), mask, n);
      for (int64_t i = 0; i < n; i += kLanes) {
        Vec best = load(rows + i);
        Int prediction = {};
        for (int64_t k = 1; k < classes(); ++k)
          improve(best, prediction, load(rows + k * plan_.step + i), splat(static_cast<int32_t>(k)));
        store(best_ + i, best);
        store(prediction_ + step + i, prediction);
      }
      return;
    }
    const Tiles tiles(classes());
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      const int64_t first = tiles.begin(tile);
      const float* const weights = plan_.shared_weights ? packed_ + first * channels() * plan_.taps : nullptr;
      with_constant(tiles.size(tile), [&](auto size) {
        constexpr int N = decltype(size)::value;
        if (tile > 0 || !fused()) return logits_tile<N, false, Nothing>(step, n, first, weights, mask);
        with_loaded(true, [&](auto type) { logits_tile<N, true, decltype(type)>(step, n, first, weights, mask); });
      });
    }
  }

  static ALGES_INLINE void improve(Vec& best, Int& prediction, Vec logit, Int k) {
    prediction = select(greater(logit, best), k, prediction);  // strictly: among equals the lowest class stays
    best = larger(logit, best);                                // a NaN is never larger
  }

  // Logits of N classes from `first` on; weights are null where they are not shared. Where kSquares, also the sums of squares
  // of the features. Features of type T are loaded meanwhile.
  template <int N, bool kSquares, class T>
  void logits_tile(int64_t step, int64_t n, int64_t first, const float* weights, const int32_t* mask) {
    for (int64_t run = 0; run < plan_.runs; ++run) {
      const int64_t c = run * channels() / plan_.runs, last = (run + 1) * channels() / plan_.runs, taps = plan_.taps;
      if (!weights) pack_tile(call_.weight, channels() * taps, first, N, c * taps, last * taps, weights_);
      logits_run<N, kSquares, T>(step, n, first, weights ? weights + c * taps * N : weights_, c, last, mask);
    }
  }

  // The part of channels [c_begin, c_end), added to that of those before.
  template <int N, bool kSquares, class T>
  void logits_run(const int64_t step, const int64_t end, const int64_t first, const float* const weights, const int64_t c_begin,
                  const int64_t c_end, const int32_t* const mask) {
    const int64_t pitch = pitch_, row_pitch = plan_.step, taps = kSquares ? 1 : plan_.taps;
    const int64_t* const offset = plan_.offset;
    const bool last = c_end == channels();
    float* const features = features_ + c_begin * pitch + step;
    float* const rows = residual_of(step) + first * row_pitch;
    float *const best_of = best_, *const squares_of = patch_squares_ + step;
    int32_t* const prediction_of = prediction_ + step;
    float bias[N];
    for (int k = 0; k < N; ++k) bias[k] = call_.bias && c_begin == 0 ? call_.bias[first + k] : 0.0f;
    Loader<T> loader(*this);
    for (int64_t i = 0; i < end; i += kSpan) {
      Vec sums[N][kVecs], squares[kVecs] = {};
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < kVecs; ++v) sums[k][v] = splat(bias[k]);
      const float* w = weights;
      float* row = features + i;
      int64_t c = c_begin;
      do {
        int64_t t = 0;
        do {
          Vec z[kVecs];
          for (int v = 0; v < kVecs; ++v) {
            z[v] = load(row + (kSquares ? 0 : offset[t]) + v * kLanes);
            if constexpr (kSquares) squares[v] += z[v] * z[v];
          }
          loader.step();
#pragma GCC unroll 16
          for (int k = 0; k < N; ++k)
            for (int v = 0; v < kVecs; ++v) sums[k][v] += splat(w[k]) * z[v];
          w += N;
          if constexpr (kSquares) break;  // one tap
        } while (++t < taps);
        row += pitch;
      } while (++c < c_end);
      if (c_begin > 0) {
#pragma GCC unroll 16
        for (int k = 0; k < N; ++k)
          for (int v = 0; v < kVecs; ++v) sums[k][v] += load(rows + k * row_pitch + i + v * kLanes);
        if constexpr (kSquares)
          for (int v = 0; v < kVecs; ++v) squares[v] += load(squares_of + i + v * kLanes);
      }
      if constexpr (kSquares)
        for (int v = 0; v < kVecs; ++v) store(squares_of + i + v * kLanes, squares[v]);
      if (mask && last)
        for (int v = 0; v < kVecs; ++v) {
          const Int keep = load(mask + i + v * kLanes);
#pragma GCC unroll 16
          for (int k = 0; k < N; ++k) sums[k][v] = keep ? sums[k][v] : Vec{};
        }
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < kVecs; ++v) store(rows + k * row_pitch + i + v * kLanes, sums[k][v]);
      if (!last) continue;
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = i + v * kLanes;
        Vec best = first == 0 ? sums[0][v] : load(best_of + at);
        Int prediction = first == 0 ? Int{} : load(prediction_of + at);
        Int k_lanes = splat(static_cast<int32_t>(first));
#pragma GCC unroll 16
        for (int k = 0; k < N; ++k, k_lanes += 1) improve(best, prediction, sums[k][v], k_lanes);
        store(best_of + at, best);
        store(prediction_of + at, prediction);
      }
    }
    loader.leave(*this);
  }

  void softmax(int64_t step) {
    if (call_.entropy || call_.margin || call_.confidence || call_.class_entropy)
      masked_ ? softmax_of<true, true>(step) : softmax_of<false, true>(step);
    else
      masked_ ? softmax_of<true, false>(step) : softmax_of<false, false>(step);
  }

  // Logits of a step become residuals; everything that is known of a pixel without its features is added up. Three loops
  // over the step, so that the divisions and roots of one span wait for no other's.
  template <bool kMasked, bool kScored>
  void softmax_of(const int64_t step) {
    const int64_t n = round_up(smaller(plan_.step, n_ - step), kGroup), pitch = plan_.step, K = classes();
    const bool norms = plan_.norms, pixels = call_.class_pixels;
    float *const rows = residual_of(step), *const best_of = best_, *const own_of = own_residual_ + step,
        *const norm_of = norms_ + step, *const inverse_of = inverse_, *const class_sums = class_sums_,
        *const entropy_of = call_.class_entropy ? entropy_ : nullptr;
    const float* const patch_squares = patch_squares_ + step;
    int32_t* const prediction_of = prediction_ + step;
    Vec entropy = {}, margin = {}, confidence = {};

    // e = exp(s - max s) is 1 at the prediction, and left out there: softmax is e / (1 + others).
    for (int64_t i = 0; i < n; i += kSpan) {
      Vec best[kVecs], others[kVecs] = {}, squares[kVecs] = {}, weighted[kVecs] = {}, second[kVecs] = {};
      Int prediction[kVecs], k_lanes = {};
      for (int v = 0; v < kVecs; ++v) {
        best[v] = load(best_of + i + v * kLanes);
        prediction[v] = load(prediction_of + i + v * kLanes);
      }
      float* row = rows + i;
      int64_t k = 0;
      do {
        for (int v = 0; v < kVecs; ++v) {
          const Vec x = load(row + v * kLanes) - best[v];
          const Vec e = exp_nonpositive(x, unequal(prediction[v], k_lanes));
          others[v] += e;
          squares[v] += e * e;
          store(row + v * kLanes, e);
          if (kScored) {
            second[v] = larger(e, second[v]);
            weighted[v] += e > 0 ? e * x : e;  // x may be -inf where e is 0
          }
        }
        k_lanes += 1;
        row += pitch;
      } while (++k < K);
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = i + v * kLanes;
        store(own_of + at, others[v]);
        store(norm_of + at, squares[v]);
        if (kScored) {
          const Int keep = kMasked ? load(mask_ + step + at) : splat(-1);
          const Vec p = splat(1.0f) / (splat(1.0f) + (best[v] - best[v]) + others[v]);
          const Vec own_entropy = keep ? log1p_nonnegative(others[v]) - weighted[v] * p : Vec{};
          entropy += own_entropy;
          if (entropy_of) store(entropy_of + at, own_entropy);
          margin += keep ? (splat(1.0f) - second[v]) * p : Vec{};
          confidence += keep ? p : Vec{};
        }
      }
    }
    if (kScored) {
      partial_.scores[kEntropy] += sum(entropy);
      partial_.scores[kMargin] += sum(margin);
      partial_.scores[kConfidence] += sum(confidence);
    }

    for (int64_t i = 0; i < n; i += kLanes) {
      const Vec best = load(best_of + i), others = load(own_of + i), squares = load(norm_of + i);
      const Int keep = kMasked ? load(mask_ + step + i) : splat(-1), prediction = load(prediction_of + i);
      const Vec zero = best - best;  // NaN where no logit is finite
      Vec inverse = splat(1.0f) / (splat(1.0f) + zero + others);
      if (kMasked) inverse = keep ? inverse : Vec{};
      store(inverse_of + i, inverse);
      // p - 1 at the prediction, formed as minus the sum of the others: the difference cancels near p = 1.
      store(own_of + i, -(others * inverse));
      // The prediction of a pixel with a NaN is the last class, as in the reference; infinities have kept theirs.
      const Int infinite = (zero != zero) & (best == best);
      const Int unknown = (inverse != inverse) & ~infinite;
      store(prediction_of + i, unknown ? splat(static_cast<int32_t>(K - 1)) : prediction);
      if (norms) {
        const Vec norm = sqrt(squares + others * others) * inverse * sqrt(load(patch_squares + i));
        store(norm_of + i, kMasked ? (keep ? norm : Vec{}) : norm);
      }
    }
    if (call_.class_entropy)
      class_probabilities<true>(step, n);
    else if (call_.class_mass)
      class_probabilities<false>(step, n);
    if (call_.residual.data) return;

    for (int64_t i = 0; i < n; i += kSpan) {
      Vec inverse[kVecs], own[kVecs], norm[kVecs];
      Int prediction[kVecs], k_lanes = {};
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = i + v * kLanes;
        inverse[v] = load(inverse_of + at);
        own[v] = load(own_of + at);
        norm[v] = load(norm_of + at);
        prediction[v] = load(prediction_of + at);
      }
      float *row = rows + i, *total_of = class_sums;
      int64_t k = 0;
      do {
        Vec total = load(total_of);
        for (int v = 0; v < kVecs; ++v) {
          const Mask predicted = equal(prediction[v], k_lanes);
          store(row + v * kLanes, select(predicted, own[v], load(row + v * kLanes) * inverse[v]));
          total = add_where(predicted, total, norm[v]);
        }
        store(total_of, total);
        k_lanes += 1;
        row += pitch;
        total_of += kLanes;
      } while (++k < K);
      if (pixels) count_pixels(step + i);
    }
  }

  // Σ p_k, and with entropies Σ p_k H, over a step whose rows hold e = exp(s - max s), 0 at the prediction. A call, so that
  // the loops around it are what they are without it.
  template <bool kEntropies>
  __attribute__((noinline)) void class_probabilities(int64_t step, int64_t n) {
    const float* const rows = residual_of(step);
    for (int64_t k = 0; k < classes(); ++k) {
      Vec mass = {}, entropy = {};
      for (int64_t i = 0; i < n; i += kLanes) {
        const Vec inverse = load(inverse_ + i);
        const Mask predicted = equal(load(prediction_ + step + i), splat(static_cast<int32_t>(k)));
        const Vec p = select(predicted, inverse, load(rows + k * plan_.step + i) * inverse);
        mass += p;
        if (kEntropies) entropy += p * load(entropy_ + i);
      }
      if (call_.class_mass) partial_.class_mass[k] += sum(mass);
      if (kEntropies) partial_.class_entropy[k] += sum(entropy);
    }
  }

  // Σ z over the block. What lies in scratch beyond the pixels that count may belong to their neighbours' patches.
  void feature_sums() {
    const float* const rows = features_ + plan_.offset[plan_.taps / 2];
    for (int64_t c = 0; c < channels(); ++c) {
      Vec total = {};
      for (int64_t i = 0; i < n_; i += kLanes) {
        const Vec z = load(rows + c * pitch_ + i);
        total += masked_ ? (load(mask_ + i) ? z : Vec{}) : z;
      }
      partial_.feature_sum[c] += sum(total);
    }
  }

  // Pixels of each class, over one span of positions.
  void count_pixels(int64_t position) {
    for (int64_t k = 0; k < classes(); ++k) {
      Int total = load(class_counts_ + k * kLanes);
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = position + v * kLanes;
        const Int predicted = load(prediction_ + at) == splat(static_cast<int32_t>(k));
        total -= masked_ ? predicted & load(mask_ + at) : predicted;
      }
      store(class_counts_ + k * kLanes, total);
    }
  }

  // Residuals of another loss for a step, in place of the logits.
  void given_residual(int64_t step) {
    float* const rows = residual_of(step);
    const int64_t length = smaller(plan_.step, n_ - step), n = round_up(length, kGroup), pitch = plan_.step;
    copy(call_.residual, classes(), z_, begin_ + step, n, rows, pitch);
    if (masked_) mask_rows(rows, pitch, classes(), mask_ + step, n);
    if (plan_.norms)
      for (int64_t i = 0; i < n; i += kLanes) {
        Vec squares = {};
        for (int64_t k = 0; k < classes(); ++k) squares += load(rows + k * pitch + i) * load(rows + k * pitch + i);
        Vec norm = sqrt(squares) * sqrt(load(patch_squares_ + step + i));
        if (masked_) norm = load(mask_ + step + i) ? norm : Vec{};
        store(norms_ + step + i, norm);
      }
    if (!plan_.predict) return;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t k = prediction_[step + i];
      own_residual_[step + i] = rows[k * pitch + i];
      if (call_.semantic) class_sums_[k * kLanes + i % kLanes] += norms_[step + i];
    }
    if (call_.class_pixels)
      for (int64_t i = 0; i < n; i += kSpan) count_pixels(step + i);
  }

  void zero_sums() {
    std::memset(class_sums_, 0, classes() * kLanes * sizeof *class_sums_);
    std::memset(class_counts_, 0, classes() * kLanes * sizeof *class_counts_);
    if (plan_.along_positions) std::memset(lane_sums_, 0, plan_.padded_channels / kParts * classes() * kLanes * sizeof *lane_sums_);
  }

  // Sums held as lanes move to the partial.
  void fold() {
    for (int64_t k = 0; k < classes(); ++k)
      for (int64_t i = 0; i < kLanes; ++i) {
        partial_.semantic[k] += class_sums_[k * kLanes + i];
        partial_.class_pixels[k] += class_counts_[k * kLanes + i];
      }
    if (call_.image && plan_.along_positions)
      for (int64_t c = 0; c < channels(); c += kLanes) fold_lanes(c, lane_sums_ + c / kParts * classes() * kLanes);
    zero_sums();
  }

  // Sums of kLanes channels from `first` on; `lanes` are those of its first kParts channels.
  void fold_lanes(int64_t first, const float* lanes) {
    for (int64_t k = 0; k < classes(); ++k) {
      Vec parts[kPart];
#pragma GCC unroll 16
      for (int i = 0; i < kPart; ++i) parts[i] = load(lanes + (i * classes() + k) * kLanes);
      add_to(partial_.image + k * channels() + first, sums_of_parts(parts), channels() - first);
    }
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
    int64_t to, channels;
  };

  void products() {
    if (call_.image && plan_.along_positions) products_along_positions();
    if ((call_.image && !plan_.along_positions) || call_.semantic_vector) products_along_channels();
  }

  // Positions along the lanes, of kParts channels side by side: every sum is a part of a vector, whose lanes are added once in
  // many blocks.
  void products_along_positions() {
    constexpr int kChannels = kVecs * kParts;
    for (int64_t c = 0; c < channels(); c += kChannels) {
      float* const sums = lane_sums_ + c / kParts * classes() * kLanes;
      channels() - c > kParts ? products_of_channels<kVecs>(c, sums) : products_of_channels<1>(c, sums);
    }
  }

  template <int M>
  void products_of_channels(int64_t channel, float* sums) {
    const Tiles tiles(classes());
    for (int64_t tile = 0; tile < tiles.count; ++tile)
      with_constant(tiles.size(tile), [&](auto size) {
        with_loaded(tile == 0 && M == kVecs, [&](auto type) {
          channels_tile<decltype(size)::value, M, decltype(type)>(tiles.begin(tile), channel, sums);
        });
      });
  }

  template <int N, int M, class T>
  void channels_tile(int64_t first, int64_t channel, float* to) {
    const int64_t K = classes(), n = n_;
    Loader<T> loader(*this);
    const float* const r = residual_ + first * kLongStep;
    const float* from[M][kParts];
    for (int v = 0; v < M; ++v)  // beyond the last channel that one again, whose sum nobody reads
      for (int part = 0; part < kParts; ++part) from[v][part] = features_ + smaller(channel + v * kParts + part, channels() - 1) * pitch_;
    to += first * kLanes;
    Vec sums[N][M];
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k)
      for (int v = 0; v < M; ++v) sums[k][v] = load(to + (v * K + k) * kLanes);
    int64_t i = 0;
    do {
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part, i += kPart) {
        Vec z[M];
        for (int v = 0; v < M; ++v) z[v] = load_parts(from[v], i);
        loader.step();
#pragma GCC unroll 16
        for (int k = 0; k < N; ++k) {
          Vec r_k = load_repeated(r + k * kLongStep + i);
          keep_in_register(r_k);
          for (int v = 0; v < M; ++v) sums[k][v] += r_k * z[v];
        }
      }
    } while (i < n);
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k)
      for (int v = 0; v < M; ++v) store(to + (v * K + k) * kLanes, sums[k][v]);
    loader.leave(*this);
  }

  // Channels along the lanes: features are transposed once, and the taps of a kernel are shifts of the same rows.
  void products_along_channels() {
    const int64_t length = pitch_, n_groups = (channels() + kLanes - 1) / kLanes;
    for (int64_t group = 0; group < n_groups; group += kVecs) {
      const int64_t groups = smaller(kVecs, n_groups - group);
      for (int64_t v = 0; v < groups; ++v) transpose_channels((group + v) * kLanes, length, columns_ + v * length * kLanes);
      // Pairs of columns share the broadcast of a residual: two groups of channels, or two taps of one group.
      const auto column = [&](int64_t index) {
        const int64_t t = index / groups, v = index % groups;
        const int64_t channel = (group + v) * kLanes;
        return Column{columns_ + (v * length + plan_.offset[t]) * kLanes, t * channels() + channel, channels() - channel};
      };
      const int64_t count = plan_.taps * groups;
      if (call_.image && !plan_.along_positions)
        for (int64_t step = 0; step < n_; step += kShortStep) {
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
    const int64_t n = smaller(kShortStep, n_ - step);
    const Tiles tiles(classes());
    for (int64_t tile = 0; tile < tiles.count; ++tile)
      with_constant(tiles.size(tile), [&](auto size) {
        const int64_t first = tiles.begin(tile);
        const float* const r = rows + first * kShortStep;
        with_loaded(tile == 0 && M == kVecs, [&](auto type) {
          products_tile<decltype(size)::value, M, decltype(type)>(r, n, step, columns, first * channels() * plan_.taps);
        });
      });
  }

  template <int N, int M, class T>
  void products_tile(const float* residuals, int64_t n, int64_t step, const Column (&columns)[M], int64_t first) {
    Vec sums[N][M] = {};
    Loader<T> loader(*this);
    const int64_t per_class = channels() * plan_.taps;
    const float* from[M];
    for (int v = 0; v < M; ++v) from[v] = columns[v].from + step * kLanes;
    for (int64_t i = 0; i < n; ++i) {
      loader.step();
      Vec z[M];
      for (int v = 0; v < M; ++v) z[v] = load(from[v] + i * kLanes);
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < M; ++v) sums[k][v] += splat(residuals[k * kShortStep + i]) * z[v];
    }
    loader.leave(*this);
    float* to[M];
    for (int v = 0; v < M; ++v) to[v] = partial_.image + columns[v].to + first;
    if (columns[M - 1].channels >= kLanes) {
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < M; ++v) add_to(to[v] + k * per_class, sums[k][v]);
    } else {
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < M; ++v) add_to(to[v] + k * per_class, sums[k][v], columns[v].channels);
    }
  }

  // The positions [begin, end) of a block that are of one window.
  struct Stretch {
    int64_t begin, end;
    float* to;     // the window's sums
    bool first;    // of the window
    float scale;   // one over its pixels where the window ends here, else 1
  };

  // Cuts the block into them, and counts on the window's changes of prediction; how many there are.
  int64_t cut_into_stretches(Walk& walk, int64_t& changes, Stretch (&stretches)[kShortStep]) const {
    const int64_t n_windows = call_.rows * call_.columns;
    int64_t count = 0;
    for (int64_t position = 0; position < n_;) {
      const int64_t window = image_ * n_windows + walk.window(), pixels = walk.pixels(), width = walk.right - walk.left;
      Stretch stretch = {position, 0, call_.image + window * classes() * channels(), walk.at_start(), 1};
      for (bool ends = false; !ends && position < n_;) {
        const int64_t n = smaller(walk.run(), n_ - position);
        const int32_t* const here = prediction_ + position;
        for (int64_t i = walk.x == walk.left; i < n; ++i) changes += here[i] != here[i - 1];
        if (walk.y > walk.top)
          for (int64_t i = 0; i < n; ++i) changes += here[i] != here[i - width];
        position += n;
        ends = walk.advance(n);
        if (ends) {
          stretch.scale = 1.0f / static_cast<float>(pixels);
          call_.outline[window] = static_cast<float>(changes);
          changes = 0;
        }
      }
      stretch.end = position;
      stretches[count++] = stretch;
    }
    return count;
  }

  void window_products(const Stretch* stretches, int64_t count) {
    const int64_t length = pitch_, n_groups = (channels() + kLanes - 1) / kLanes;
    for (int64_t group = 0; group < n_groups; group += kVecs) {
      const int64_t groups = smaller(kVecs, n_groups - group);
      for (int64_t v = 0; v < groups; ++v) transpose_channels((group + v) * kLanes, length, columns_ + v * length * kLanes);
      groups == kVecs ? stretches_of<kVecs>(group * kLanes, stretches, count) : stretches_of<1>(group * kLanes, stretches, count);
    }
  }

  template <int M>
  void stretches_of(int64_t channel, const Stretch* stretches, int64_t count) {
    const Tiles tiles(classes());
    for (int64_t tile = 0; tile < tiles.count; ++tile)
      with_constant(tiles.size(tile), [&](auto size) {
        for (int64_t i = 0; i < count; ++i)
          stretch_tile<decltype(size)::value, M>(stretches[i], tiles.begin(tile), channel);
      });
  }

  template <int N, int M>
  void stretch_tile(const Stretch& stretch, const int64_t first, const int64_t channel) {
    const float* r = residual_ + first * kShortStep + stretch.begin;
    const float* from[M];
    for (int v = 0; v < M; ++v) from[v] = columns_ + (v * pitch_ + stretch.begin) * kLanes;
    Vec sums[N][M] = {};
    int64_t left = stretch.end - stretch.begin;
    do {
      Vec z[M];
      for (int v = 0; v < M; ++v) {
        z[v] = load(from[v]);
        from[v] += kLanes;
      }
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < M; ++v) sums[k][v] += splat(r[k * kShortStep]) * z[v];
      ++r;
    } while (--left > 0);
    const Vec scale = splat(stretch.scale);
    float* const to = stretch.to + first * channels() + channel;
    if (channels() - channel >= M * kLanes) {
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < M; ++v) {
          float* const at = to + k * channels() + v * kLanes;
          store(at, (stretch.first ? sums[k][v] : load(at) + sums[k][v]) * scale);
        }
    } else {
      for (int k = 0; k < N; ++k)
        for (int v = 0; v < M; ++v)
          store_some(to + k * channels() + v * kLanes, sums[k][v], smaller(kLanes, channels() - channel - v * kLanes), stretch);
    }
  }

  static __attribute__((noinline)) void store_some(float* to, Vec sums, int64_t n, const Stretch& stretch) {
    float lanes[kLanes];
    store(lanes, sums);
    for (int64_t i = 0; i < n; ++i) to[i] = (stretch.first ? lanes[i] : to[i] + lanes[i]) * stretch.scale;
  }

  // Σ r_ŷ z̃ by class ŷ, over the block.
  void class_products(const Column& column) {
    std::memset(class_vectors_, 0, classes() * kLanes * sizeof *class_vectors_);
    for (int64_t i = 0; i < n_; ++i) {
      float* const sums = class_vectors_ + prediction_[i] * kLanes;
      store(sums, load(sums) + splat(own_residual_[i]) * load(column.from + i * kLanes));
    }
    for (int64_t k = 0; k < classes(); ++k)
      add_to(partial_.semantic_vector + column.to + k * channels() * plan_.taps, load(class_vectors_ + k * kLanes),
             column.channels);
  }
};

}  // namespace

namespace {

void pack_tiles(const float* weight, int64_t rows, int64_t columns, float* packed) {
  const Tiles tiles(rows);
  for (int64_t tile = 0; tile < tiles.count; ++tile)
    pack_tile(weight, columns, tiles.begin(tile), tiles.size(tile), 0, columns, packed + tiles.begin(tile) * columns);
}

}  // namespace

void pack_weights(const Call& call, const Plan& plan, float* packed) {
  if (call.hidden_weight) pack_tiles(call.hidden_weight, call.channels, call.inputs, packed);
  if (plan.shared_weights) pack_tiles(call.weight, call.classes, call.channels * plan.taps, packed + plan.hidden_packed);
}

void accumulate(const Call& call, const Plan& plan, int64_t image, int64_t chunk, const float* packed, float* scratch,
                const Partial& partial) {
  const int64_t blocks = call.size[0] * plan.plane_blocks;
  Chunk(call, plan, image, packed, scratch, partial)
      .run(chunk * blocks / plan.chunks, (chunk + 1) * blocks / plan.chunks);
}

void window_sums(const Call& call, const Plan& plan, int64_t image, const float* packed, float* scratch) {
  Chunk(call, plan, image, packed, scratch, Partial()).run_windows();
}

}  // namespace ALGES_ISA
}  // namespace alges
