#pragma once

#include <string>

namespace alges {

// Why the kernels of this module cannot run on the device: an old driver, an old or unknown GPU. Empty where they can.
// Leaves `device` current in this thread.
std::string cuda_unavailable(int device);

}  // namespace alges
