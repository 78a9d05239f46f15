#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

namespace alges {
namespace {

bool supported(Isa isa) {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  // avx512: the parts the kernels use; Skylake-X and Zen 4 on have all of them.
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && supported(Isa::avx2);
  if (isa == Isa::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return isa == Isa::plain;
#elif defined(__aarch64__) || defined(_M_ARM64)
  return isa == Isa::neon;  // part of every 64-bit Arm processor
#else
  return isa == Isa::plain;
#endif
}

Isa choose() {
  const Isa best_first[] = {Isa::avx512, Isa::avx2, Isa::neon, Isa::plain};
  if (const char* wanted = std::getenv("ALGES_FAST_ISA"))
    for (Isa candidate : best_first)
      if (std::strcmp(wanted, name(candidate)) == 0 && supported(candidate)) return candidate;
  for (Isa candidate : best_first)
    if (supported(candidate)) return candidate;
  return Isa::plain;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    case Isa::neon: return "neon";
    case Isa::plain: break;
  }
  return "plain";
}

}  // namespace alges
