// The launchers of the CUDA kernels, and the CPU kernels with the same arguments, found by name for ctypes.
#include <cstring>

#include "../../csrc/kernels/cuda/choose.h"
#include "../../csrc/kernels/neuron/scan.h"
#include "../../csrc/kernels/norm/batch_norm.h"
#include "../../csrc/kernels/planes/bits.h"

using namespace tandem;

namespace {

struct Kernel {
  const char* name;
  void* cuda;           // its last argument is a stream
  void* cpu = nullptr;  // its last argument is a ParallelFor
};

template <class F>
void* address(F* function) {
  return reinterpret_cast<void*>(function);
}

#define KERNEL(name, cuda, cpu, ...) \
  {name, address<int(__VA_ARGS__, void*)>(cuda), address<void(__VA_ARGS__, ParallelFor)>(cpu)}

const Kernel kKernels[] = {
    KERNEL("if_scan", cuda::if_scan, cpu::if_scan, const void*, DType, Source, const Neuron&),
    KERNEL("pack", cuda::pack, cpu::pack, const void*, int32_t, bool, int32_t, int64_t, uint8_t*),
    KERNEL("unpack", cuda::unpack, cpu::unpack, const uint8_t*, int32_t, int64_t, void*, int32_t, uint64_t),
    KERNEL("counts", cuda::counts, cpu::counts, const uint8_t*, int32_t, int64_t, void*, DType),
    KERNEL("count_bytes", cuda::count_bytes, cpu::count_bytes, const uint8_t*, int32_t, int64_t, uint8_t*),
    KERNEL("burst_planes", cuda::burst_planes, cpu::burst_planes, const uint8_t*, int32_t, int64_t, uint8_t*),
    KERNEL("gate_grad", cuda::gate_grad, cpu::gate_grad, const void*, DType, const uint8_t*, double, int64_t, void*),
    KERNEL("run", cuda::run, cpu::run, const Layer&),
    KERNEL("window_product", cuda::window_product, cpu::window_product, const Layer&, float*),
    KERNEL("batch_norm_statistics", cuda::batch_norm_statistics, cpu::batch_norm_statistics,
           const BatchNormStatistics&),
    {"batch_norm_grad", address(cuda::batch_norm_grad)},
    {"batch_norm_workspace", address(cuda::batch_norm_workspace)},
    {"prepared_size", address(cuda::prepared_size)},
    {"prepare", address(cuda::prepare)},
    {"choose_kernel", address(cuda::choose_kernel)},
};

}  // namespace

extern "C" {

void* find_kernel(const char* name, bool on_cpu) {
  for (const Kernel& kernel : kKernels) {
    if (std::strcmp(kernel.name, name) == 0) return on_cpu ? kernel.cpu : kernel.cuda;
  }
  return nullptr;
}

void cpu_parallel_for(int64_t n, int64_t grain, RangeBody body, void* context) { serial_for(n, grain, body, context); }

}  // extern "C"
