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

// What can be asked for, in the order of OUTPUTS in alges_fast/ops/outputs.py: its type, its name, and whether it depends on
// softmax or argmax: always, for want of a given residual, or never.
#define ALGES_OUTPUTS(X)                                                                                              \
  X(float, image, of_residual) X(float, semantic, always) X(float, semantic_vector, always)                           \
  X(float, norm_map, of_residual) X(int64_t, class_pixels, always) X(float, entropy, always) X(float, margin, always) \
  X(float, confidence, always) X(float, class_mass, always) X(float, class_entropy, always)                           \
  X(float, feature_sum, never)

// Contiguous; null where not asked for.
struct Outputs {
#define ALGES_FIELD(type, name, predicts) type* name = nullptr;
  ALGES_OUTPUTS(ALGES_FIELD)
#undef ALGES_FIELD

  // Whether anything depends on softmax or argmax.
  bool need_prediction(bool residual_given) const {
    const bool always = true, never = false, of_residual = !residual_given;
    bool needed = never;
#define ALGES_NEED(type, name, predicts) needed |= name != nullptr && predicts;
    ALGES_OUTPUTS(ALGES_NEED)
#undef ALGES_NEED
    return needed;
  }
};

}  // namespace alges
