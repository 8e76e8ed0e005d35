#include <cuda_runtime_api.h>

#include "error.h"

namespace tandem::cuda {

const char* error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace tandem::cuda
