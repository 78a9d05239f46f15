// Python's view of csrc/cuda/pixel_gradients.h: pointers as integers, strides as tuples. alges_fast/ops/cuda.py checks.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "cuda/pixel_gradients.h"

namespace py = pybind11;

namespace alges {
namespace {

using namespace cuda_pixel_gradients;

using Tensor = std::tuple<uintptr_t, int, std::array<int64_t, 5>>;  // address, Dtype, strides
using Valid = std::tuple<uintptr_t, std::array<int64_t, 4>>;

Operand operand(const Tensor& tensor) {
  Operand result;
  result.data = reinterpret_cast<const void*>(std::get<0>(tensor));
  result.dtype = static_cast<Dtype>(std::get<1>(tensor));
  std::copy_n(std::get<2>(tensor).begin(), 5, result.stride);
  return result;
}

Shape shape(int64_t batch, int channels, int classes, std::array<int, 3> size, std::array<int, 3> kernel) {
  return {batch, channels, classes, {size[0], size[1], size[2]}, {kernel[0], kernel[1], kernel[2]}};
}

template <typename T>
T* address(uintptr_t pointer) {
  return reinterpret_cast<T*>(pointer);
}

Call call(const Shape& shape, const Tensor& features, uintptr_t weight, uintptr_t bias,
          const std::optional<Tensor>& logits, const std::optional<Tensor>& residual, const std::optional<Valid>& valid,
          const std::array<uintptr_t, 8>& outputs, bool allow_tf32) {
  Call result;
  result.shape = shape;
  result.features = operand(features);
  result.weight = address<const float>(weight);
  result.bias = address<const float>(bias);
  if (logits) result.logits = operand(*logits);
  if (residual) result.residual = operand(*residual);
  if (valid) {
    result.valid = address<const bool>(std::get<0>(*valid));
    std::copy_n(std::get<1>(*valid).begin(), 4, result.valid_stride);
  }
  result.image = address<float>(outputs[0]);
  result.semantic = address<float>(outputs[1]);
  result.semantic_vector = address<float>(outputs[2]);
  result.norm_map = address<float>(outputs[3]);
  result.class_pixels = address<int64_t>(outputs[4]);
  result.entropy = address<float>(outputs[5]);
  result.margin = address<float>(outputs[6]);
  result.confidence = address<float>(outputs[7]);
  result.allow_tf32 = allow_tf32;
  return result;
}

py::object tile_plan(const Shape& shape, int limit) {
  TilePlan plan;
  const std::string reason = plan_tile(shape, limit, plan);
  if (!reason.empty()) return py::str(reason);
  using py::literals::operator""_a;
  return py::dict("tile"_a = std::array<int, 3>{plan.tile[0], plan.tile[1], plan.tile[2]}, "pixels"_a = plan.pixels,
                  "halo_positions"_a = plan.halo_positions, "channel_block"_a = plan.channel_block,
                  "channel_blocks"_a = plan.channel_blocks, "groups"_a = plan.groups, "splits"_a = plan.splits,
                  "accumulate_in_shared"_a = plan.accumulate_in_shared, "shared_bytes"_a = plan.shared_bytes,
                  "tiles"_a = plan.cut.tiles, "chunks"_a = plan.cut.chunks, "words"_a = plan.cut.words,
                  "images_a_launch"_a = plan.cut.images_a_launch);
}

py::object stream_plan(const Call& call, int limit) {
  StreamPlan plan;
  const std::string reason = plan_stream(call, limit, plan);
  if (!reason.empty()) return py::str(reason);
  using py::literals::operator""_a;
  return py::dict("channels_last"_a = plan.channels_last, "pixels"_a = plan.pixels, "class_tiles"_a = plan.class_tiles,
                  "channel_tiles"_a = plan.channel_tiles, "sharing"_a = plan.sharing,
                  "tiles_a_warp"_a = plan.tiles_a_warp, "stride"_a = plan.stride, "stages"_a = plan.stages,
                  "stage_bytes"_a = plan.stage_bytes, "shared_bytes"_a = plan.shared_bytes, "tiles"_a = plan.cut.tiles,
                  "chunks"_a = plan.cut.chunks, "words"_a = plan.cut.words,
                  "images_a_launch"_a = plan.cut.images_a_launch);
}

}  // namespace

// Types are local to the module: the tests load these bindings a second time, over the emulation.
void bind_cuda_pixel_gradients(py::module_& m) {
  py::class_<Shape>(m, "CudaPixelGradientsShape", py::module_local())
      .def(py::init(&shape), py::arg("batch"), py::arg("channels"), py::arg("classes"), py::arg("size"), py::arg("kernel"))
      .def("plan_tile", &tile_plan, py::arg("shared_limit"), "The tile kernel's plan, or why there is none.");
  py::class_<Call>(m, "CudaPixelGradientsCall", py::module_local())
      .def(py::init(&call), py::arg("shape"), py::arg("features"), py::arg("weight"), py::arg("bias"), py::arg("logits"),
           py::arg("residual"), py::arg("valid"), py::arg("outputs"), py::arg("allow_tf32"))
      .def("plan_stream", &stream_plan, py::arg("shared_limit"), "The stream kernel's plan, or why the tile kernel runs.")
      .def("scratch_bytes", [](const Call& self, int device) { return scratch_bytes(self, shared_limit(device)); })
      .def("run", [](const Call& self, int device, uintptr_t scratch, uintptr_t stream) {
        run(self, device, address<void>(scratch), address<void>(stream));
      }, py::call_guard<py::gil_scoped_release>());
  m.def("cuda_shared_limit", &shared_limit, py::arg("device"), "Bytes of shared memory one block may take.");
}

}  // namespace alges
