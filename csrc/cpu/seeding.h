// k-means++ and k-centre seeding on the CPU: one pass over a shard measures the distance to new centres, keeps the running
// minimum, and draws the next candidates.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "seeding_shard.h"

namespace alges {

struct Draw {
  DrawRule rule;
  uint64_t seed;
  uint32_t round;
  int trials;
};

// Rows in 8 bits, to bound their distances from below without reading them: x - origin = scale * codes + rest, where
// |rest| <= error and sq_norm = |scale * codes|^2.
struct Sketch {
  int64_t width;  // bytes from one row of codes to the next; 0: there is no sketch
  int8_t* codes;
  float* scale;
  float* sq_norm;
  float* error;
};

// Centres as the kernels read them.
struct Centres {
  int count;
  int first_number;      // of the first one, for Shard::nearest
  int64_t padded;        // columns rounded up to 16, filled with zeros
  const void* values;    // (count, padded), as min_sq_distance
  const void* origin;    // (padded,) of the sketch
  const int16_t* codes;  // (count, sketch width): centre - origin = scale * codes + rest
  const float* scale;
  const float* sq_norm;
  const float* error;
};

struct Pass {
  const Shard* shard;
  const Sketch* sketch;
  const Centres* centres;
  Draw draw;
  bool build_sketch;  // write the sketch while the rows are at hand
  int threads;
  // Trial centres leave min_sq_distance as it is: row t of `tried` (count, rows) gets the minimum with centre t, and
  // sums[t] the sum of round(sum_scale * weight * minimum).
  void* tried;
  double sum_scale;
  double* sums;
  // Without centres: what min_sq_distance is replaced by before the draw, or null.
  const void* accepted;
  Candidate* candidates;  // (draw.trials,)
  double largest;         // of min_sq_distance; NaN where one is not finite
  int64_t measured;       // rows measured in full, over all centres
};

// Rows in a few bytes each, of a pool too large to keep (alges_fast/seeding/sketched.py). A row is û = scale * codes in few
// dimensions but for at most `error`, and a rest outside of them of norm rest_share * rest - rest_slop * |row| to rest.
struct SketchedRows {
  int64_t width;  // bytes of codes, a multiple of 16
  const int8_t* codes;
  const float *scale, *norm, *error, *rest;  // norm: |û|
  float rest_share, rest_slop;
  float code_norm_share;  // |scale * codes| <= norm / code_norm_share, where û weighs its coordinates
  float *upper, *lower;   // bounds of D²; a row whose upper bound is 0 is never drawn
  int32_t* nearest;       // number of the centre that gave `upper`
};

// Centres of sketched rows: û = step * codes but for what moves a dot product with a row by at most dot_error * |row|.
struct SketchedCentres {
  int count, first_number;
  const int16_t* codes;                              // (count, width)
  const float *step, *norm, *error, *rest, *dot_error;  // (count,)
  const float* apart;                                // (count, apart_stride): at least how far each is from the centres by number
  int64_t apart_stride;
};

struct Contender {
  double key;  // at least so small
  int64_t position;
};

struct SketchedPass {
  const Shard* shard;  // of which `rows` and the indices count
  SketchedRows rows;
  SketchedCentres centres;
  Draw draw;
  bool deferred;  // only rows that may win the draw are lowered by the centres, the others later, by many at once
  int threads;
  Contender* contenders;  // new[]: the rows whose key may be the smallest
  int64_t n_contenders;
  double largest;  // upper bound of D²
  int64_t read;    // rows whose codes were read, over all centres
};

// Sketches of rows (rows, blocks, columns): each block's coordinates in `basis` (columns, kept), times the block's factor.
struct Sketching {
  const float* points;
  int64_t rows, blocks, columns, kept;  // kept: a multiple of 8
  const float *basis, *factors;
  double rounding;  // of a squared norm, relative: what float32 sums of so many columns may lose
  int64_t width;
  int8_t* codes;
  float *scale, *error, *rest;
  double* norms;  // (rows, blocks): the norm of each block; or null
  int threads;
};

#define DECLARE(isa)                             \
  namespace isa {                                \
  void seeding_pass(Pass& pass);                 \
  void sketched_pass(SketchedPass& pass);        \
  void sketch_rows(const Sketching& sketching);  \
  }
ALGES_FOR_EACH_ISA(DECLARE)
#undef DECLARE

struct FreeCodes {
  void operator()(int8_t* codes) const;
};

class SeedingPool {
 public:
  // With `sketch`, the first pass over centres also writes the sketch, a quarter of a float32 pool, and later ones read
  // that instead of the points wherever its bound shows that a row keeps its minimum. The result is the same bit for bit.
  SeedingPool(const Shard& shard, bool sketch);

  Pass absorb(const void* centres, int count, const Draw& draw, int threads);
  // Absorbs the point that the last pass drew (the first trial), then draws.
  Pass absorb_candidate(const Draw& draw, int threads);
  std::vector<double> potentials(const void* centres, int count, double scale, int threads);
  Pass accept(int trial, const Draw& draw, int threads);
  const std::vector<Candidate>& candidates() const { return candidates_; }

 private:
  template <class A>
  Centres prepare(const void* centres, int count);
  Centres prepare(const void* centres, int count);
  Pass run(Pass pass);

  Shard shard_;
  Sketch sketch_{};
  int64_t padded_;
  bool sketch_wanted_, sketch_ready_ = false;
  int absorbed_ = 0;
  std::unique_ptr<int8_t[], FreeCodes> codes_;
  std::vector<float> scale_, sq_norm_, error_;
  std::vector<double> origin_;
  std::vector<char> origin_values_, centre_values_, tried_;  // float or double, as the kernels read them
  std::vector<int16_t> centre_codes_;
  std::vector<float> centre_scale_, centre_sq_norm_, centre_error_;
  std::vector<Candidate> candidates_;
};

}  // namespace alges
