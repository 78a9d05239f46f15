#include "cuda/device.h"

#include <cuda_runtime.h>

namespace alges {
namespace {

// Compiled for the same architectures as all others: whether it loads is whether they do.
__global__ void probe() {}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string why(cudaError_t error) {
  cudaGetLastError();  // not to be met again by a launch
  return cudaGetErrorString(error);
}

}  // namespace

std::string cuda_unavailable(int device) {
  int major = 0, minor = 0, driver = 0, count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess) {
    why(error);
    if (driver == 0) return "no NVIDIA driver";
    return "the kernels were built with CUDA " + version(CUDART_VERSION) + ", and the driver serves up to " + version(driver);
  }
  if (error != cudaSuccess) return why(error);
  for (const auto& [value, attribute] : {std::pair{&major, cudaDevAttrComputeCapabilityMajor},
                                         std::pair{&minor, cudaDevAttrComputeCapabilityMinor}})
    if ((error = cudaDeviceGetAttribute(value, attribute, device)) != cudaSuccess) return why(error);
  const std::string capability = "compute capability " + std::to_string(major) + "." + std::to_string(minor);
  if (major < 8) return capability + " is below 8.0";
  cudaFuncAttributes attributes;
  if ((error = cudaSetDevice(device)) != cudaSuccess || (error = cudaFuncGetAttributes(&attributes, probe)) != cudaSuccess)
    return capability + ", for which no kernels were built (" + why(error) + ")";
  return "";
}

}  // namespace alges
