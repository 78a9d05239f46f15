// The CUDA kernels' bindings over the emulation.
#include <pybind11/pybind11.h>

#include "cuda/primitives.cuh"

namespace alges {
void bind_cuda_pixel_gradients(pybind11::module_& m);
void bind_cuda_seeding(pybind11::module_& m);
}

PYBIND11_MODULE(emulated, m) {
  alges::bind_cuda_pixel_gradients(m);
  alges::bind_cuda_seeding(m);
  m.def("set_order", [](uint32_t seed) { alges::emulation::machine.order_seed = seed; });
  m.def("set_shared_limit", [](int bytes) { alges::emulation::machine.shared_limit = bytes; });
}
