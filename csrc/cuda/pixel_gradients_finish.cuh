// The ordered sum over an image's chunks that follows either kernel.
#pragma once

#include "cuda/pixel_gradients_pass.cuh"

namespace alges::cuda_pixel_gradients {

constexpr int kFinishThreads = 128;

// Adds up the chunks of an image, first to last: a thread per word of the result, blockIdx.y the image of the launch.
ALGES_KERNEL(kFinishThreads, 1)
finish_kernel(ALGES_PARAMETER Pass pass, ALGES_PARAMETER Cut cut) {
  const Call& call = pass.call;
  const int n_classes = call.shape.classes;
  const int64_t of_class = cut.words - words_by_class(call.shape), gradient = of_class - words_of_scores(call.shape);
  const int64_t word = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x;
  if (word >= cut.words || !(word < gradient ? pass.outer : word < of_class ? pass.scores : pass.by_class)) return;
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
      for (int chunk = 0; chunk < cut.chunks; ++chunk) valid += counts[chunk * cut.words + of_class - 1];
      call.image[image * gradient + word] = static_cast<float>(total / static_cast<double>(max(valid, int64_t{1})));
    }
    return;
  }
  // Where this word's output begins, and its place there.
  float* to = nullptr;
  int64_t at = image;
  if (word < gradient + n_classes) {
    to = call.semantic;
    at = image * n_classes + word - gradient;
  } else if (word < of_class) {
    const int64_t score = word - gradient - 2 * n_classes;
    to = score == 0 ? call.entropy : score == 1 ? call.margin : score == 2 ? call.confidence : nullptr;
  } else if (word < of_class + 2 * n_classes) {
    to = word < of_class + n_classes ? call.class_mass : call.class_entropy;
    at = image * n_classes + (word - of_class) % n_classes;
  } else {
    to = call.feature_sum;
    at = image * call.shape.channels + word - of_class - 2 * n_classes;
  }
  if (to != nullptr) to[at] = sum;
}

}  // namespace alges::cuda_pixel_gradients
