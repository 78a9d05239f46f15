// What both kernels are handed.
#pragma once

#include "cuda/pixel_gradients.h"
#include "cuda/primitives.cuh"

namespace alges::cuda_pixel_gradients {

// One reading of the features. There are up to three: one for `image` (or `semantic_vector` alone) and the scores, one for
// `semantic_vector` beside `image`, and one for the sums of p by class and of the features, which would cost the others
// registers.
struct Pass {
  Call call;
  float* scratch;         // [images of the launch][chunks][words]
  int64_t first_image;    // of the launch
  bool outer;             // sum r ⊗ z̃
  bool vector;            // of r at the prediction alone: semantic_vector
  bool scores;            // sum norms, counts and scores; in one reading only
  bool by_class;          // the third reading: p takes the place of r, nothing of r is summed
  bool needs_prediction;  // anything that depends on softmax or argmax
  bool needs_norm;
  bool by_prediction;     // sums by predicted class: norms and counts
  bool confidences;       // entropy, margin or confidence
};

void launch_stream_float32(const Pass& pass, const StreamPlan& plan, int64_t images, void* stream);
void launch_stream_bfloat16(const Pass& pass, const StreamPlan& plan, int64_t images, void* stream);

ALGES_DEVICE float load(const void* data, Type type, int64_t index) {
  if (type == Type::float16) return to_float(static_cast<const Half*>(data)[index]);
  if (type == Type::bfloat16) return to_float(static_cast<const Bfloat16*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

ALGES_DEVICE float load(const Operand& operand, int64_t image, int64_t k, int64_t z, int64_t y, int64_t x) {
  return load(operand.data, operand.type,
              image * operand.stride[0] + k * operand.stride[1] + z * operand.stride[2] + y * operand.stride[3] +
                  x * operand.stride[4]);
}

// Whether a pixel inside the image counts.
ALGES_DEVICE bool is_valid(const Operand& valid, int64_t image, int64_t z, int64_t y, int64_t x) {
  return valid.data == nullptr || static_cast<const bool*>(valid.data)[image * valid.stride[0] + z * valid.stride[2] +
                                                                       y * valid.stride[3] + x * valid.stride[4]];
}

}  // namespace alges::cuda_pixel_gradients
