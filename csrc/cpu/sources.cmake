# Plain C++ for the CPU. A stem compiled once per instruction set is listed through `add_isa_sources`; which one runs is
# decided at run time (csrc/cpu/isa.h), so that a wheel built here never meets an illegal instruction elsewhere.
target_sources(_C PRIVATE csrc/cpu/isa.cpp)
