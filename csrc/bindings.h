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
#define ALGES_COUNT(type, name, predicts) +1
using Addresses = std::array<uintptr_t, 0 ALGES_OUTPUTS(ALGES_COUNT)>;               // 0 for what is not asked for
#undef ALGES_COUNT
// Of features, weight, bias, logits, residual, valid, hidden weight and hidden bias; 0 for what is not given.
using Tensors = std::array<uintptr_t, 8>;

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
  size_t next = 0;
#define ALGES_SET(type, name, predicts) to.name = pointer<type>(at[next++]);
  ALGES_OUTPUTS(ALGES_SET)
#undef ALGES_SET
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

// The same call with other tensors of the same layout: those that are given are those that were.
template <class Call>
void move_operands(Call& call, const Tensors& at, const Addresses& outputs) {
  const auto move = [](const void* was, uintptr_t now) {
    if ((was != nullptr) != (now != 0)) throw std::invalid_argument("other tensors are given than the call was made for");
    return pointer<const void>(now);
  };
  call.features.data = move(call.features.data, at[0]);
  call.weight = static_cast<const float*>(move(call.weight, at[1]));
  call.bias = static_cast<const float*>(move(call.bias, at[2]));
  call.logits.data = move(call.logits.data, at[3]);
  call.residual.data = move(call.residual.data, at[4]);
  call.valid.data = move(call.valid.data, at[5]);
  const Outputs before = call;
  set_outputs(call, outputs);
#define ALGES_SAME(type, name, predicts) move(before.name, reinterpret_cast<uintptr_t>(call.name));
  ALGES_OUTPUTS(ALGES_SAME)
#undef ALGES_SAME
}

}  // namespace alges
