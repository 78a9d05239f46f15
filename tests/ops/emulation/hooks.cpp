// What the compiler calls at every access of the kernels, in place of the sanitizers' own runtimes.
#include "cuda/primitives.cuh"

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
