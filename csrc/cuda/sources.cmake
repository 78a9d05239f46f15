# One machine-code image per GPU generation from sm_80 on (code for x.0 runs on every x.y), and PTX of the newest for what
# comes after the toolkit.
find_package(CUDAToolkit REQUIRED)
if(ALGES_FAST_CUDA_ARCHITECTURES)
  set(architectures ${ALGES_FAST_CUDA_ARCHITECTURES})
else()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE codes OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REGEX MATCHALL "sm_[0-9]+0" codes "${codes}")
  set(architectures "")
  foreach(code IN LISTS codes)
    string(REPLACE "sm_" "" number ${code})
    if(number GREATER_EQUAL 80)
      list(APPEND architectures ${number}-real)
    endif()
  endforeach()
  list(REMOVE_DUPLICATES architectures)
  list(SORT architectures COMPARE NATURAL)
  list(GET architectures -1 newest)
  string(REPLACE "-real" "-virtual" newest ${newest})
  list(APPEND architectures ${newest})
endif()
message(STATUS "CUDA architectures: ${architectures}")
set_target_properties(_C PROPERTIES CUDA_ARCHITECTURES "${architectures}" CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static)
target_compile_definitions(_C PRIVATE ALGES_FAST_WITH_CUDA)
target_sources(_C PRIVATE csrc/cuda/device.cu csrc/cuda/pixel_gradients.cu
               csrc/cuda/pixel_gradients_stream_float32.cu csrc/cuda/pixel_gradients_stream_bfloat16.cu
               csrc/cuda/pixel_gradients_plan.cpp csrc/cuda/pixel_gradients_bindings.cpp
               csrc/cuda/seeding.cu csrc/cuda/seeding_bindings.cpp)
target_link_libraries(_C PRIVATE CUDA::cudart_static)
