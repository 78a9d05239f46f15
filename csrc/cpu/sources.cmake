# Plain C++ for the CPU.

# Compiled once.
target_sources(_C PRIVATE csrc/cpu/isa.cpp csrc/cpu/team.cpp)
find_package(Threads REQUIRED)
target_link_libraries(_C PRIVATE Threads::Threads)
target_sources(_C PRIVATE csrc/cpu/pixel_gradients.cpp csrc/cpu/pixel_gradients_bindings.cpp)
target_sources(_C PRIVATE csrc/cpu/seeding.cpp csrc/cpu/seeding_bindings.cpp)
target_sources(_C PRIVATE csrc/cpu/fma.cpp)

# Compiled once per instruction set; which one runs is decided at run time (csrc/cpu/isa.h), so that a wheel built here
# never meets an illegal instruction elsewhere. Such a file puts everything, down to its helpers, in
# `namespace alges::ALGES_ISA` and calls no inline function or template of the standard library: the linker keeps one copy
# of those for the whole module, and that copy could be the AVX-512 one. Its header declares the entry point once per set
# with ALGES_FOR_EACH_ISA, and the caller picks one with ALGES_DISPATCH.
set(isa_sources
    csrc/cpu/vec.h
    csrc/cpu/fma_kernel.cpp
    csrc/cpu/pixel_gradients_kernel.cpp
    csrc/cpu/seeding_kernels.cpp
)

# The instruction sets of this processor family; csrc/cpu/isa.h has the same list as ALGES_FOR_EACH_ISA.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(isas plain avx2 avx512)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(isas neon)
else()
  set(isas plain)
endif()
set(isa_flags_plain "")
set(isa_flags_neon "")
set(isa_flags_avx2 -mavx2 -mfma -mf16c)
set(isa_flags_avx512 ${isa_flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)

foreach(isa IN LISTS isas)
  string(TOUPPER ${isa} upper)
  add_library(_C_${isa} OBJECT ${isa_sources})
  set_target_properties(_C_${isa} PROPERTIES LINKER_LANGUAGE CXX)
  target_include_directories(_C_${isa} PRIVATE csrc)
  target_compile_definitions(_C_${isa} PRIVATE ALGES_ISA=${isa} ALGES_ISA_${upper})
  # a * b + c becomes one instruction where there is one; nothing that reorders sums or forgets NaN.
  target_compile_options(_C_${isa} PRIVATE ${isa_flags_${isa}} -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math)
  if(OpenMP_CXX_FOUND)
    target_link_libraries(_C_${isa} PRIVATE OpenMP::OpenMP_CXX)
  endif()
  target_link_libraries(_C PRIVATE _C_${isa})
endforeach()
