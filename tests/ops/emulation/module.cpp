// The CUDA kernels' bindings over the emulation, and what the compiler calls at every access of the kernels.
#include <pybind11/pybind11.h>

#include "cuda/primitives.cuh"

// In place of the sanitizers' own runtimes.
#define HOOK extern "C" __attribute__((visibility("hidden")))
#define WATCH(bytes)                                                                              \
  HOOK void __tsan_read##bytes(void* at) { alges::emulation::watch(at, bytes, false); }            \
  HOOK void __tsan_write##bytes(void* at) { alges::emulation::watch(at, bytes, true); }            \
  HOOK void __tsan_unaligned_read##bytes(void* at) { alges::emulation::watch(at, bytes, false); }  \
  HOOK void __tsan_unaligned_write##bytes(void* at) { alges::emulation::watch(at, bytes, true); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
HOOK void __tsan_read_range(void* at, size_t bytes) { alges::emulation::watch(at, bytes, false); }
HOOK void __tsan_write_range(void* at, size_t bytes) { alges::emulation::watch(at, bytes, true); }
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
HOOK void __ubsan_handle_type_mismatch_v1_abort(void*, void*) { alges::emulation::fail("emulation: an access off its alignment"); }

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
