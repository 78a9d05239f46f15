// k-means++ and k-centre seeding on the GPU; csrc/cpu/seeding.h is the same for the CPU, and decides alike bit for bit but
// for the last bits of a logarithm.
#pragma once

#include <cstdint>

namespace alges::cuda_seeding {

enum class PointType { float32, float16, bfloat16, float64 };
enum class Rule { none, uniform, race, farthest };

// The best point of one block, or of all: the smallest key, and of equal keys the lowest global index.
struct Candidate {
  double key;
  int64_t index;     // global; -1 where there is none
  int64_t position;  // row; -1 where there is none
};

// All pointers are to device memory. Values are double for float64 points, else float.
struct Seeding {
  const void* points;
  PointType type;
  int64_t rows, columns, stride;  // stride in elements from one row to the next
  int64_t first_index;            // global index of row 0, where `index` is null
  const int64_t* index;
  void* min_sq_distance;  // (rows,)
  const void* weights;    // (rows,) or null
  int32_t* nearest;       // (rows,) or null
  Candidate* partials;    // (2, blocks, trials): one of each block; of two steps of a chain in turn
  int blocks;             // of a launch
  int tile;               // rows a warp takes at a time: even, at most 32

  // This pass
  const void* centres;  // (count, columns) values, or null
  int count, first_number;
  void* tried;  // (count, rows): minima with one centre each, in place of min_sq_distance; or null
  Rule rule;
  uint64_t seed;
  uint32_t round;
  int trials;
};

// Blocks that run at once, for a grid-wide barrier.
int resident_blocks(PointType type, int device);

// Measures the centres, keeps the minima, and draws: candidates of trial t lie at partials[block * trials + t].
void pass(const Seeding& seeding, int device, void* stream);

// `picks` picks one after the other, the first of them what the last pass drew (one trial): their global indices, -1 once
// every point lies on a centre. One launch for all with a barrier between picks, or one launch a pick. No host sync.
void chain(const Seeding& seeding, int64_t* indices, int picks, bool one_launch, int device, void* stream);

}  // namespace alges::cuda_seeding
