#include "cpu/seeding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace alges {
namespace {

constexpr int64_t kMaxSketched = int64_t{1} << 16;  // columns; beyond, an int32 sum of products leaves the centre few bits
constexpr int kSampled = 256;
constexpr size_t kHugePage = size_t{1} << 21;

double value(const Shard& shard, int64_t row, int64_t column) {
  const int64_t at = row * shard.stride + column;
  switch (shard.type) {
    case PointType::float32: return static_cast<const float*>(shard.points)[at];
    case PointType::float64: return static_cast<const double*>(shard.points)[at];
    case PointType::float16: {
      const uint16_t half = static_cast<const uint16_t*>(shard.points)[at];
      const int exponent = half >> 10 & 31, fraction = half & 1023;
      double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
      if (exponent == 31) size = fraction ? std::nan("") : HUGE_VAL;
      return half & 0x8000 ? -size : size;
    }
    case PointType::bfloat16: break;
  }
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(shard.points)[at]} << 16;
  float widened;
  std::memcpy(&widened, &bits, sizeof widened);
  return widened;
}

// The mean of some rows, evenly spaced: any origin gives correct bounds, one amid the rows gives small codes' errors.
std::vector<double> sampled_mean(const Shard& shard) {
  std::vector<double> mean(shard.columns, 0.0);
  const int64_t samples = std::min<int64_t>(kSampled, shard.rows);
  for (int64_t s = 0; s < samples; ++s)
    for (int64_t k = 0; k < shard.columns; ++k) mean[k] += value(shard, s * shard.rows / samples, k) / samples;
  for (double& m : mean)
    if (!(std::abs(m) < std::numeric_limits<float>::max())) m = 0;
  return mean;
}

// Unwritten memory, in huge pages where they are to be had: faulting small ones in took as long as making the sketch.
int8_t* allocate_codes(size_t bytes) {
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = ::operator new(rounded, std::align_val_t{kHugePage});
#ifdef __linux__
  madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  return static_cast<int8_t*>(memory);
}

}  // namespace

void FreeCodes::operator()(int8_t* codes) const { ::operator delete(codes, std::align_val_t{kHugePage}); }

SeedingPool::SeedingPool(const Shard& shard, bool sketch)
    : shard_(shard), padded_((shard.columns + 15) / 16 * 16), sketch_wanted_(sketch && shard.columns <= kMaxSketched) {
  if (!sketch_wanted_ || shard.rows == 0 || shard.columns == 0) {
    sketch_wanted_ = false;
    return;
  }
  codes_.reset(allocate_codes(shard.rows * padded_));
  scale_.resize(shard.rows);
  sq_norm_.resize(shard.rows);
  error_.resize(shard.rows);
  sketch_ = {padded_, codes_.get(), scale_.data(), sq_norm_.data(), error_.data()};
  origin_ = sampled_mean(shard);
  origin_.resize(padded_);
}

template <class A>
Centres SeedingPool::prepare(const void* centres, int count) {
  const A* given = static_cast<const A*>(centres);
  centre_values_.assign(count * padded_ * sizeof(A), 0);
  A* values = reinterpret_cast<A*>(centre_values_.data());
  for (int c = 0; c < count; ++c) std::copy_n(given + c * shard_.columns, shard_.columns, values + c * padded_);
  Centres prepared{count, absorbed_, padded_, values, nullptr, nullptr, nullptr, nullptr, nullptr};
  if (!sketch_wanted_) return prepared;

  origin_values_.resize(padded_ * sizeof(A));
  A* origin = reinterpret_cast<A*>(origin_values_.data());
  std::copy(origin_.begin(), origin_.end(), origin);
  // As many bits as keep the int32 sum of products with 8-bit codes from overflowing: 16 up to 520 columns.
  const double most = std::min(32767.0, std::floor(2147483647.0 / (127.0 * padded_)));
  centre_codes_.assign(count * padded_, 0);
  centre_scale_.assign(count, 0);
  centre_sq_norm_.assign(count, 0);
  centre_error_.assign(count, 0);
  for (int c = 0; c < count; ++c) {
    double largest = 0;
    for (int64_t k = 0; k < shard_.columns; ++k)
      largest = std::max(largest, std::abs(static_cast<double>(values[c * padded_ + k]) - static_cast<double>(origin[k])));
    const float scale = static_cast<float>(largest / most);
    const bool usable = largest > 1e-18 && largest < 1e18;  // as for rows
    double rest_sq = 0, code_sq = 0, all_sq = 0;
    for (int64_t k = 0; k < shard_.columns; ++k) {
      const double shifted = static_cast<double>(values[c * padded_ + k]) - static_cast<double>(origin[k]);
      const double code = usable ? std::max(-most, std::min(most, std::nearbyint(shifted / scale))) : 0.0;
      centre_codes_[c * padded_ + k] = static_cast<int16_t>(code);
      rest_sq += (shifted - code * scale) * (shifted - code * scale);
      code_sq += code * code;
      all_sq += shifted * shifted;
    }
    centre_scale_[c] = usable ? scale : 0.0f;
    centre_sq_norm_[c] = usable ? static_cast<float>(code_sq * scale * scale) : 0.0f;
    // A few times the last bit of float32 on top, for the rounding of row - origin and of this.
    centre_error_[c] = static_cast<float>((std::sqrt(rest_sq) + 1e-6 * std::sqrt(all_sq)) * 1.00001);
  }
  prepared.origin = origin;
  prepared.codes = centre_codes_.data();
  prepared.scale = centre_scale_.data();
  prepared.sq_norm = centre_sq_norm_.data();
  prepared.error = centre_error_.data();
  return prepared;
}

Centres SeedingPool::prepare(const void* centres, int count) {
  return shard_.type == PointType::float64 ? prepare<double>(centres, count) : prepare<float>(centres, count);
}

Pass SeedingPool::run(Pass pass) {
  pass.shard = &shard_;
  pass.sketch = &sketch_;
  candidates_.resize(pass.draw.rule == DrawRule::none ? 0 : pass.draw.trials);
  pass.candidates = candidates_.data();
  ALGES_DISPATCH(seeding_pass(pass));
  return pass;
}

Pass SeedingPool::absorb(const void* centres, int count, const Draw& draw, int threads) {
  const Centres prepared = prepare(centres, count);
  Pass pass{};
  pass.centres = &prepared;
  pass.draw = draw;
  pass.threads = threads;
  pass.build_sketch = sketch_wanted_ && !sketch_ready_ && count > 0;
  sketch_ready_ = sketch_ready_ || pass.build_sketch;
  absorbed_ += count;
  return run(pass);
}

Pass SeedingPool::absorb_candidate(const Draw& draw, int threads) {
  const int64_t row = candidates_.front().position;
  if (shard_.type == PointType::float64)
    return absorb(static_cast<const double*>(shard_.points) + row * shard_.stride, 1, draw, threads);
  std::vector<float> centre(shard_.columns);
  for (int64_t k = 0; k < shard_.columns; ++k) centre[k] = static_cast<float>(value(shard_, row, k));
  return absorb(centre.data(), 1, draw, threads);
}

std::vector<double> SeedingPool::potentials(const void* centres, int count, double scale, int threads) {
  const Centres prepared = prepare(centres, count);
  tried_.resize(count * shard_.rows * (shard_.type == PointType::float64 ? sizeof(double) : sizeof(float)));
  std::vector<double> sums(count);
  Pass pass{};
  pass.centres = &prepared;
  pass.draw.rule = DrawRule::none;
  pass.threads = threads;
  pass.tried = tried_.data();
  pass.sum_scale = scale;
  pass.sums = sums.data();
  run(pass);
  return sums;
}

Pass SeedingPool::accept(int trial, const Draw& draw, int threads) {
  const Centres none{};
  Pass pass{};
  pass.centres = &none;
  pass.draw = draw;
  pass.threads = threads;
  pass.accepted = tried_.data() + trial * shard_.rows * (shard_.type == PointType::float64 ? sizeof(double) : sizeof(float));
  return run(pass);
}

}  // namespace alges
