// Python's view of csrc/cuda/pixel_gradients.h.
#include <climits>

#include "bindings.h"
#include "cuda/pixel_gradients.h"

namespace py = pybind11;

namespace alges {
namespace {

using namespace cuda_pixel_gradients;

Shape shape_of(const Sizes& sizes) {
  // What is past an int is past every plan's limit too.
  const auto narrow = [&](int at) { return static_cast<int>(std::min<int64_t>(sizes[at], INT_MAX)); };
  return {sizes[0], narrow(1), narrow(2), {narrow(3), narrow(4), narrow(5)}, {narrow(6), narrow(7), narrow(8)}};
}

Call call_of(const Sizes& shape, const Given& features, uintptr_t weight, uintptr_t bias, const Given& logits,
             const Given& residual, const Given& valid, const Addresses& outputs, bool weight_is_bfloat16) {
  check_sizes(shape);
  if (!features || !weight) throw std::invalid_argument("features and weight must be given");
  Call call;
  call.shape = shape_of(shape);
  set_operands(call, features, weight, bias, logits, residual, valid, outputs);
  call.weight_is_bfloat16 = weight_is_bfloat16;
  return call;
}

py::object tile_plan(const Sizes& shape, int limit) {
  TilePlan plan;
  const std::string reason = plan_tile(shape_of(shape), limit, plan);
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
                  "tiles_a_warp"_a = plan.tiles_a_warp, "weight_parts"_a = plan.weight_parts, "stride"_a = plan.stride, "stages"_a = plan.stages,
                  "stage_bytes"_a = plan.stage_bytes, "shared_bytes"_a = plan.shared_bytes, "tiles"_a = plan.cut.tiles,
                  "chunks"_a = plan.cut.chunks, "words"_a = plan.cut.words,
                  "images_a_launch"_a = plan.cut.images_a_launch);
}

}  // namespace

// Types are local to the module: the tests load these bindings a second time, over the emulation.
void bind_cuda_pixel_gradients(py::module_& m) {
  py::class_<Call>(m, "CudaPixelGradientsCall", py::module_local())
      .def(py::init(&call_of), py::arg("shape"), py::arg("features"), py::arg("weight"), py::arg("bias"), py::arg("logits"),
           py::arg("residual"), py::arg("valid"), py::arg("outputs"),
           py::arg("weight_is_bfloat16"))
      .def("plan_stream", &stream_plan, py::arg("shared_limit"), "The stream kernel's plan, or why the tile kernel runs.")
      .def("scratch_bytes", [](const Call& self, int device) { return scratch_bytes(self, shared_limit(device)); })
      .def("run", [](Call call, const Tensors& at, const Addresses& outputs, bool allow_tf32, int device, uintptr_t scratch,
                     uintptr_t stream) {
        move_operands(call, at, outputs);
        call.allow_tf32 = allow_tf32;
        run(call, device, pointer<void>(scratch), pointer<void>(stream));
      }, py::arg("tensors"), py::arg("outputs"), py::arg("allow_tf32"), py::arg("device"), py::arg("scratch"),
         py::arg("stream"), py::call_guard<py::gil_scoped_release>());
  m.def("cuda_tile_plan", &tile_plan, py::arg("shape"), py::arg("shared_limit"),
        "The tile kernel's plan for these sizes, or why there is none.");
  m.def("cuda_shared_limit", &shared_limit, py::arg("device"), "Bytes of shared memory one block may take.");
}

}  // namespace alges
