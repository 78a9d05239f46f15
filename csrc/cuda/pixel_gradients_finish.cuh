// The ordered sum over an image's chunks that follows either kernel.
#pragma once

#include "cuda/pixel_gradients_pass.cuh"

namespace alges::cuda_pixel_gradients {

constexpr int kFinishThreads = 128;
constexpr int kFinishLanes = 8;  // that share the chunks of a word

// The sum of a value over neighbouring lanes, a power of two of them; the same in all.
ALGES_DEVICE double sum_over_lanes(double value, int lanes) {
  for (int step = 1; step < lanes; step *= 2) value += shuffle_xor(value, step);
  return value;
}

// Adds up the chunks of an image: eight lanes a word of the result take every eighth chunk each, in order, and are then
// added as a tree. blockIdx.y is the image of the launch. Counts are exact in double.
ALGES_KERNEL(kFinishThreads, 1)
finish_kernel(ALGES_PARAMETER Pass pass, ALGES_PARAMETER Cut cut) {
  const Call& call = pass.call;
  const int n_classes = call.shape.classes, lane = threadIdx.x % kFinishLanes;
  const int64_t of_class = cut.words - words_by_class(call.shape), gradient = of_class - words_of_scores(call.shape);
  const int64_t thread = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x, word = thread / kFinishLanes;
  const int64_t image = pass.first_image + blockIdx.y;
  const float* partial = pass.scratch + int64_t{blockIdx.y} * cut.chunks * cut.words;
  const int* counts = reinterpret_cast<const int*>(partial);
  const bool asked = word < cut.words && (word < gradient ? pass.outer : word < of_class ? pass.scores : pass.by_class);
  const bool counted = word >= gradient + n_classes && word < gradient + 2 * n_classes;

  double total = 0;
  if (asked)
    for (int chunk = lane; chunk < cut.chunks; chunk += kFinishLanes)
      total += counted ? counts[chunk * cut.words + word] : partial[chunk * cut.words + word];
  total = sum_over_lanes(total, kFinishLanes);
  // Once a warp, whose lanes take every 32nd chunk, where its first word is the gradient's.
  double valid = 0;
  if (pass.outer && !pass.vector && (thread - threadIdx.x % 32) / kFinishLanes < gradient)
    for (int chunk = threadIdx.x % 32; chunk < cut.chunks; chunk += 32) valid += counts[chunk * cut.words + of_class - 1];
  valid = sum_over_lanes(valid, 32);
  if (!asked || lane != 0) return;

  if (counted) {
    if (call.class_pixels != nullptr)
      call.class_pixels[image * n_classes + word - gradient - n_classes] = static_cast<int64_t>(total);
    return;
  }
  const float sum = static_cast<float>(total);
  if (word < gradient) {
    // Eq. 4: the mean over valid pixels; an image with none is all zeros.
    if (pass.vector)
      call.semantic_vector[image * gradient + word] = sum;
    else
      call.image[image * gradient + word] = static_cast<float>(total / (valid > 1 ? valid : 1));
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
