// The instruction set the CPU kernels run with, chosen once at run time.
#pragma once

namespace alges {

enum class Isa { plain, avx2, avx512, neon };

// The best set this processor (and this operating system) runs, or the one ALGES_FAST_ISA names if the processor has it.
Isa isa();
const char* name(Isa isa);

}  // namespace alges
