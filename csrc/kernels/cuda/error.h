// Error texts, versions and free memory, for callers that do not include the CUDA runtime.
#pragma once

#include <cstddef>

namespace tandem::cuda {

const char* error_text(int status);

// The version of the toolkit that compiled the kernels, and the newest that the driver supports (0 without a driver):
// 1000 major + 10 minor.
int toolkit_version();
int driver_version();

// Bytes of the current device; a status.
int memory(size_t* free, size_t* total);

}  // namespace tandem::cuda
