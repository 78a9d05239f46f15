// What seeding is given on the CPU and on a GPU: a shard of points, how to draw from it, and what a draw finds.
#pragma once

#include <cstdint>

namespace alges {

enum class PointType { float32, bfloat16, float16, float64 };
enum class DrawRule { none, uniform, race, farthest };

// The best point of one draw: the smallest key, and of equal keys the lowest global index.
struct Candidate {
  double key;
  int64_t index;     // global; -1 where there is none
  int64_t position;  // row of the shard; -1 where there is none
};

struct Shard {
  const void* points;
  PointType type;
  int64_t rows, columns, stride;  // stride in elements from one row to the next
  int64_t first_index;            // global index of row 0, where `index` is null
  const int64_t* index;
  void* min_sq_distance;  // (rows,) double for float64 points, else float
  const void* weights;    // (rows,) of the same type: how often each row counts; or null, once
  int32_t* nearest;       // (rows,) number of the nearest centre, kept along with the minimum; or null
};

}  // namespace alges
