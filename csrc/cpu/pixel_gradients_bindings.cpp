#include "bindings.h"
#include "cpu/pixel_gradients.h"

namespace py = pybind11;

namespace alges {
namespace {

PixelGradientsCall call_of(const Sizes& shape, const Given& features, uintptr_t weight, uintptr_t bias, const Given& logits,
                           const Given& residual, const Given& valid, const Addresses& outputs, int threads, int64_t inputs,
                           uintptr_t hidden_weight, uintptr_t hidden_bias, int64_t rows, int64_t columns,
                           uintptr_t outline) {
  check_sizes(shape);
  if (!features || !std::get<0>(*features) || !weight) throw std::invalid_argument("features and weight must be given");
  if (inputs < 0 || inputs > (int64_t{1} << 30) || (inputs > 0) != (hidden_weight != 0))
    throw std::invalid_argument("inputs and hidden_weight go together");
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  PixelGradientsCall call;
  call.batch = shape[0], call.channels = shape[1], call.classes = shape[2];
  for (int i = 0; i < 3; ++i) call.size[i] = shape[3 + i], call.kernel[i] = shape[6 + i];
  set_operands(call, features, weight, bias, logits, residual, valid, outputs);
  call.inputs = inputs;
  call.hidden_weight = pointer<const float>(hidden_weight);
  call.hidden_bias = pointer<const float>(hidden_bias);
  call.rows = rows, call.columns = columns;
  call.outline = pointer<float>(outline);
  if (rows != 0 || columns != 0 || outline) {
    const bool fits = rows >= 1 && rows <= call.size[1] && columns >= 1 && columns <= call.size[2];
    const bool others = std::any_of(outputs.begin() + 1, outputs.end(), [](uintptr_t at) { return at != 0; });
    if (!fits || !call.image || !outline || others || logits || residual || valid)
      throw std::invalid_argument("windows must fit the image, and have an image, an outline and nothing else");
  }
  call.threads = threads;
  return call;
}

// The call made again, for other tensors of the same layout and other room for its results.
void run(PixelGradientsCall call, const Tensors& at, const Addresses& outputs, uintptr_t outline, int threads) {
  move_operands(call, at, outputs);
  if ((call.hidden_weight != nullptr) != (at[6] != 0) || (call.hidden_bias != nullptr) != (at[7] != 0) ||
      (call.outline != nullptr) != (outline != 0) || threads < 1)
    throw std::invalid_argument("other tensors are given than the call was made for");
  call.hidden_weight = pointer<const float>(at[6]);
  call.hidden_bias = pointer<const float>(at[7]);
  call.outline = pointer<float>(outline);
  call.threads = threads;
  pixel_gradients(call);
}

}  // namespace

void bind_pixel_gradients_cpu(py::module_& m) {
  py::class_<PixelGradientsCall>(m, "PixelGradientsCall")
      .def(py::init(&call_of), py::arg("shape"), py::arg("features"), py::arg("weight"), py::arg("bias"), py::arg("logits"),
           py::arg("residual"), py::arg("valid"), py::arg("outputs"), py::arg("threads"),
           py::arg("inputs") = 0, py::arg("hidden_weight") = 0, py::arg("hidden_bias") = 0, py::arg("rows") = 0,
           py::arg("columns") = 0, py::arg("outline") = 0,
           "As csrc/bindings.h has it: sizes, operands, and the addresses of weight, bias and outputs.")
      .def("scratch", &pixel_gradients_scratch, "Bytes of scratch; 0 where the inputs are too large to run.")
      .def("run", &run, py::arg("tensors"), py::arg("outputs"), py::arg("outline"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace alges
