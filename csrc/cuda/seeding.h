// k-means++ and k-centre seeding on the GPU; csrc/cpu/seeding.h is the same for the CPU, and decides alike bit for bit but
// for the last bits of a logarithm.
#pragma once

#include <cstdint>

#include "seeding_shard.h"

namespace alges::cuda_seeding {

// All pointers are to device memory. Values are double for float64 points, else float.
struct Seeding : Shard {
  Candidate* partials;    // (2, blocks, trials): one of each block; of two steps of a chain in turn
  int blocks;             // of a launch
  int tile;               // rows a warp takes at a time: even, at most 32

  // This pass
  const void* centres;  // (count, columns) values, or null
  int count, first_number;
  void* tried;  // (count, rows): minima with one centre each, in place of min_sq_distance; or null
  DrawRule rule;
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
