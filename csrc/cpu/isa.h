// The instruction set the CPU kernels run with, chosen once at run time.
//
//   #define DECLARE(isa) namespace isa { void run(const Arguments&); }
//   ALGES_FOR_EACH_ISA(DECLARE)              // in the header of a file listed with add_isa_sources
//   ALGES_DISPATCH(run(arguments));          // calls the best of alges::avx512::run, alges::avx2::run, ...
#pragma once

namespace alges {

enum class Isa { plain, avx2, avx512, neon };

// The best set this processor (and this operating system) runs, or the one ALGES_FAST_ISA names if the processor has it.
Isa isa();
const char* name(Isa isa);

}  // namespace alges

// The sets compiled in: the same list as in csrc/cpu/sources.cmake.
#if defined(__x86_64__) || defined(_M_X64)
#define ALGES_FOR_EACH_ISA(X) X(plain) X(avx2) X(avx512)
#elif defined(__aarch64__) || defined(_M_ARM64)
#define ALGES_FOR_EACH_ISA(X) X(neon)
#else
#define ALGES_FOR_EACH_ISA(X) X(plain)
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define ALGES_DISPATCH(call)                                  \
  do switch (::alges::isa()) {                                \
      case ::alges::Isa::avx512: ::alges::avx512::call; break; \
      case ::alges::Isa::avx2: ::alges::avx2::call; break;     \
      default: ::alges::plain::call;                           \
    }                                                         \
  while (false)
#elif defined(__aarch64__) || defined(_M_ARM64)
#define ALGES_DISPATCH(call) ::alges::neon::call
#else
#define ALGES_DISPATCH(call) ::alges::plain::call
#endif
