#include <cuda_runtime_api.h>

#include "error.h"

namespace tandem::cuda {

int toolkit_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int memory(size_t* free, size_t* total) { return cudaMemGetInfo(free, total); }

const char* error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace tandem::cuda
