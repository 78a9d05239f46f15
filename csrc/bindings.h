// How Python hands over tensors: addresses as integers, types by number, strides as tuples. alges_fast/ops checks them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "call.h"

namespace alges {

using Sizes = std::array<int64_t, 9>;                                                // B, d, K, D, H, W, kD, kH, kW
using Given = std::optional<std::tuple<uintptr_t, int, std::array<int64_t, 5>>>;     // address, type, strides
using Addresses = std::array<uintptr_t, 11>;                                         // in the order of OUTPUTS; 0 for none

// Sizes of a call that has something to do, none of whose counts overflows.
inline void check_sizes(const Sizes& sizes) {
  int64_t product = 1;
  for (int64_t size : sizes)
    if (size < 1 || (product = size <= (int64_t{1} << 50) / product ? product * size : 0) == 0)
      throw std::invalid_argument("every size must be at least 1 and their product at most 2^50");
  for (int axis = 6; axis < 9; ++axis)
    if (sizes[axis] % 2 == 0) throw std::invalid_argument("kernels must be odd");
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline Operand operand(const Given& given) {
  Operand result;
  if (!given) return result;
  const auto& [address, type, stride] = *given;
  if (type < 0 || type > static_cast<int>(Type::boolean)) throw std::invalid_argument("unknown type");
  result.data = pointer<const void>(address);
  result.type = static_cast<Type>(type);
  std::copy_n(stride.begin(), 5, result.stride);
  return result;
}

inline void set_outputs(Outputs& to, const Addresses& at) {
  to.image = pointer<float>(at[0]);
  to.semantic = pointer<float>(at[1]);
  to.semantic_vector = pointer<float>(at[2]);
  to.norm_map = pointer<float>(at[3]);
  to.class_pixels = pointer<int64_t>(at[4]);
  to.entropy = pointer<float>(at[5]);
  to.margin = pointer<float>(at[6]);
  to.confidence = pointer<float>(at[7]);
  to.class_mass = pointer<float>(at[8]);
  to.class_entropy = pointer<float>(at[9]);
  to.feature_sum = pointer<float>(at[10]);
}

// What the CPU's call and the GPU's have in common.
template <class Call>
void set_operands(Call& call, const Given& features, uintptr_t weight, uintptr_t bias, const Given& logits,
                  const Given& residual, const Given& valid, const Addresses& outputs) {
  call.features = operand(features);
  call.logits = operand(logits);
  call.residual = operand(residual);
  call.valid = operand(valid);
  call.weight = pointer<const float>(weight);
  call.bias = pointer<const float>(bias);
  set_outputs(call, outputs);
}

}  // namespace alges
