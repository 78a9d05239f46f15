#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/pixel_gradients.h"

namespace py = pybind11;

namespace alges {
namespace {

// Address, type and strides of a tensor.
using Given = std::optional<std::tuple<uintptr_t, std::string, std::array<int64_t, 5>>>;

Operand operand(const Given& given) {
  Operand result;
  if (!given) return result;
  const auto& [address, type, stride] = *given;
  result.data = reinterpret_cast<const void*>(address);
  result.type = type == "float32"    ? Type::float32
                : type == "bfloat16" ? Type::bfloat16
                : type == "float16"  ? Type::float16
                                     : Type::boolean;
  for (int i = 0; i < 5; ++i) result.stride[i] = stride[i];
  return result;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

PixelGradientsCall call_of(const std::array<int64_t, 9>& shape, const Given& features, uintptr_t weight, uintptr_t bias, const Given& logits,
            const Given& residual, const Given& valid, const std::array<uintptr_t, 8>& outputs, int threads) {
  PixelGradientsCall call;
  call.batch = shape[0], call.channels = shape[1], call.classes = shape[2];
  for (int i = 0; i < 3; ++i) call.size[i] = shape[3 + i], call.kernel[i] = shape[6 + i];
  call.features = operand(features);
  call.logits = operand(logits);
  call.residual = operand(residual);
  call.valid = operand(valid);
  call.weight = pointer<const float>(weight);
  call.bias = pointer<const float>(bias);
  call.image = pointer<float>(outputs[0]);
  call.semantic = pointer<float>(outputs[1]);
  call.semantic_vector = pointer<float>(outputs[2]);
  call.norm_map = pointer<float>(outputs[3]);
  call.class_pixels = pointer<int64_t>(outputs[4]);
  call.entropy = pointer<float>(outputs[5]);
  call.margin = pointer<float>(outputs[6]);
  call.confidence = pointer<float>(outputs[7]);
  call.threads = threads;
  return call;
}

}  // namespace

void bind_pixel_gradients_cpu(py::module_& m) {
  py::class_<PixelGradientsCall>(m, "PixelGradientsCall")
      .def(py::init(&call_of), py::arg("shape"), py::arg("features"), py::arg("weight"), py::arg("bias"), py::arg("logits"),
           py::arg("residual"), py::arg("valid"), py::arg("outputs"), py::arg("threads"),
           "shape (B, d, K, D, H, W, kD, kH, kW); operands as (address, type, strides) or None; weight, bias and outputs, in "
           "the order of OUTPUTS, as addresses, 0 for none.")
      .def("scratch", &pixel_gradients_scratch, "Bytes of scratch; 0 where the inputs are too large to run.")
      .def("run", &pixel_gradients, py::call_guard<py::gil_scoped_release>());
}

}  // namespace alges
