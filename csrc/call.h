// What a call hands to any kernel, on the CPU and on a GPU: types, operands and outputs.
#pragma once

#include <cstdint>

namespace alges {

enum class Type { float32, bfloat16, float16, boolean };  // in the order of TYPES in alges_fast/ops/native.py

// (B, channels, D, H, W), strides in elements. `valid` has no channels. data is null where an operand is not given.
struct Operand {
  const void* data = nullptr;
  Type type = Type::float32;
  int64_t stride[5] = {};
};

// Contiguous; null where not asked for.
struct Outputs {
  float *image = nullptr, *semantic = nullptr, *semantic_vector = nullptr, *norm_map = nullptr;
  int64_t* class_pixels = nullptr;
  float *entropy = nullptr, *margin = nullptr, *confidence = nullptr;
  float *class_mass = nullptr, *class_entropy = nullptr, *feature_sum = nullptr;

  // Whether anything depends on softmax or argmax.
  bool need_prediction(bool residual_given) const {
    const bool of_residual = image || norm_map;
    return semantic || semantic_vector || class_pixels || entropy || margin || confidence || class_mass || class_entropy ||
           (of_residual && !residual_given);
  }
};

}  // namespace alges
