#pragma once

namespace alges {

// Devices this process can use; 0 where there is no driver.
int cuda_device_count();

}  // namespace alges
