// The few names on which the device build and the emulation of tests/cuda_host differ.
#pragma once

#include <cstdint>

#if defined(TANDEM_EMULATION)

#include "emulator.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "ptx.cuh"

// A macro, because g++ has no <<< >>>.
// clang-format off
#define TANDEM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__), cudaGetLastError())
// clang-format on

// A macro, because the emulation bounds and poisons shared memory.
#define TANDEM_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

#endif
