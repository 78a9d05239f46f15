// What both kernels are handed, and the ordered sum over an image's chunks that follows either.
#pragma once

#include "cuda/pixel_gradients.h"
#include "cuda/primitives.cuh"

namespace alges::cuda_pixel_gradients {

// One reading of the features. A call that asks for both `image` and `semantic_vector` takes two.
struct Pass {
  Call call;
  float* scratch;         // [images of the launch][chunks][words]
  int64_t first_image;    // of the launch
  bool outer;             // sum r ⊗ z̃
  bool vector;            // of r at the prediction alone: semantic_vector
  bool scores;            // sum norms, counts and scores; not again in the second reading
  bool needs_prediction;  // anything that depends on softmax or argmax
  bool needs_norm;
};

ALGES_DEVICE float load(const void* data, Dtype dtype, int64_t index) {
  if (dtype == Dtype::float16) return to_float(static_cast<const Half*>(data)[index]);
  if (dtype == Dtype::bfloat16) return to_float(static_cast<const Bfloat16*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

ALGES_DEVICE float load(const Operand& operand, int64_t image, int64_t k, int64_t z, int64_t y, int64_t x) {
  return load(operand.data, operand.dtype,
              image * operand.stride[0] + k * operand.stride[1] + z * operand.stride[2] + y * operand.stride[3] +
                  x * operand.stride[4]);
}

constexpr int kFinishThreads = 128;

// Adds up the chunks of an image, first to last: a thread per word of the result, blockIdx.y the image of the launch.
ALGES_KERNEL(kFinishThreads, 1)
finish_kernel(ALGES_PARAMETER Pass pass, ALGES_PARAMETER Cut cut) {
  const Call& call = pass.call;
  const int n_classes = call.shape.classes;
  const int64_t gradient = cut.words - (2 * n_classes + 4);
  const int64_t word = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x;
  if (word >= cut.words || (word < gradient && !pass.outer) || (word >= gradient && !pass.scores)) return;
  const int64_t image = pass.first_image + blockIdx.y;
  const float* partial = pass.scratch + int64_t{blockIdx.y} * cut.chunks * cut.words;
  const int* counts = reinterpret_cast<const int*>(partial);

  if (word >= gradient + n_classes && word < gradient + 2 * n_classes) {
    int64_t total = 0;
    for (int chunk = 0; chunk < cut.chunks; ++chunk) total += counts[chunk * cut.words + word];
    if (call.class_pixels != nullptr) call.class_pixels[image * n_classes + word - gradient - n_classes] = total;
    return;
  }
  double total = 0;
  for (int chunk = 0; chunk < cut.chunks; ++chunk) total += partial[chunk * cut.words + word];
  const float sum = static_cast<float>(total);
  if (word < gradient) {
    if (pass.vector) {
      call.semantic_vector[image * gradient + word] = sum;
    } else {
      // Eq. 4: the mean over valid pixels; an image with none is all zeros.
      int64_t valid = 0;
      for (int chunk = 0; chunk < cut.chunks; ++chunk) valid += counts[chunk * cut.words + cut.words - 1];
      call.image[image * gradient + word] = static_cast<float>(total / static_cast<double>(max(valid, int64_t{1})));
    }
    return;
  }
  const int64_t column = word - gradient;
  if (column < n_classes) {
    if (call.semantic != nullptr) call.semantic[image * n_classes + column] = sum;
  } else {
    const int64_t score = column - 2 * n_classes;
    float* to = score == 0 ? call.entropy : score == 1 ? call.margin : score == 2 ? call.confidence : nullptr;
    if (to != nullptr) to[image] = sum;
  }
}

}  // namespace alges::cuda_pixel_gradients
