// alges_fast._C: raw pointers, sizes, strides and a stream in; nothing of torch. Each op binds itself in a function of its
// own; Python (ops/cpu.py, ops/cuda.py, seeding/native.py) checks shapes and types before it calls.
#include <pybind11/pybind11.h>

#include "call.h"
#include "cpu/fma.h"
#include "cpu/isa.h"
#ifdef ALGES_FAST_WITH_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace alges {
void bind_pixel_gradients_cpu(py::module_& m);
void bind_seeding(py::module_& m);
#ifdef ALGES_FAST_WITH_CUDA
void bind_cuda_pixel_gradients(py::module_& m);
void bind_cuda_seeding(py::module_& m);
#endif
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of alges_fast; call them through alges_fast.ops and alges_fast.seeding.";
  m.def("isa", [] { return alges::name(alges::isa()); }, "Instruction set the CPU kernels run with.");
  m.def("multiply_add", py::overload_cast<int64_t, int>(&alges::multiply_add), py::arg("steps"), py::arg("threads"),
        py::call_guard<py::gil_scoped_release>(), "A loop of multiply-adds and nothing else; the flops it made.");
  m.attr("INTERFACE") = 3;  // of alges_fast/_native.py
#define ALGES_NAME(type, name, predicts) #name,
  m.attr("OUTPUTS") = py::make_tuple(ALGES_OUTPUTS(ALGES_NAME) "")[py::slice(0, -1, 1)];
#undef ALGES_NAME
  alges::bind_pixel_gradients_cpu(m);
  alges::bind_seeding(m);
#ifdef ALGES_FAST_WITH_CUDA
  m.def("cuda_unavailable", &alges::cuda_unavailable, pybind11::arg("device"), "Why the CUDA kernels cannot run there, or \"\".");
  alges::bind_cuda_pixel_gradients(m);
  alges::bind_cuda_seeding(m);
#endif
}
