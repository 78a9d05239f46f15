// How Python hands over a shard and a rule: addresses as integers, types and rules by name. alges_fast/seeding/shard.py has
// the same order of arguments, and keeps the tensors alive.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "seeding_shard.h"

namespace alges {

inline PointType point_type(const std::string& name) {
  if (name == "float32") return PointType::float32;
  if (name == "bfloat16") return PointType::bfloat16;
  if (name == "float16") return PointType::float16;
  if (name == "float64") return PointType::float64;
  throw pybind11::value_error("no seeding kernel for points of " + name);
}

inline DrawRule draw_rule(const std::string& name) {
  if (name == "none") return DrawRule::none;
  if (name == "uniform") return DrawRule::uniform;
  if (name == "race") return DrawRule::race;
  if (name == "farthest") return DrawRule::farthest;
  throw pybind11::value_error("unknown rule " + name);
}

inline Shard shard_of(uintptr_t points, const std::string& type, int64_t rows, int64_t columns, int64_t stride,
                      int64_t first_index, uintptr_t index, uintptr_t min_sq_distance, uintptr_t weights, uintptr_t nearest) {
  return {reinterpret_cast<const void*>(points), point_type(type), rows, columns, stride, first_index,
          reinterpret_cast<const int64_t*>(index), reinterpret_cast<void*>(min_sq_distance),
          reinterpret_cast<const void*>(weights), reinterpret_cast<int32_t*>(nearest)};
}

}  // namespace alges
