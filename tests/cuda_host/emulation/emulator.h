// What a kernel file sees when g++ compiles it for the emulation: the CUDA keywords, threadIdx and its kin, barriers,
// warp collectives and intrinsics. Vector and half types are the toolkit's own headers. Everything that touches state
// of the emulation lives in .cpp files, so that the checker, which sees every access a kernel file makes, sees none.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <tuple>

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static_assert(false, "declare shared memory by TANDEM_SHARED or TANDEM_DYNAMIC_SHARED")

namespace emulation {

// The line of the kernel that calls: two lanes at different lines are not in the same collective.
struct Site {
  const char* file;
  int line;
};

// --- launch ---

void* parameter_space(size_t bytes);
cudaError_t run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* parameters);

template <class... P, class... A>
cudaError_t launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   A&&... arguments) {
  using Arguments = std::tuple<P...>;
  struct Parameters {
    void (*kernel)(P...);
    Arguments arguments;
  };
  auto* parameters =
      new (parameter_space(sizeof(Parameters))) Parameters{kernel, Arguments(std::forward<A>(arguments)...)};
  const auto body = [](void* p) {
    const auto* launched = static_cast<const Parameters*>(p);
    std::apply(launched->kernel, launched->arguments);
  };
  return run(name, grid, block, shared_bytes, body, parameters);
}

// --- one thread's view ---

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
unsigned lane_index();

void* shared_array(const char* name, int line, size_t bytes);
void* dynamic_shared();

// --- warp collectives of any 4- or 8-byte type ---

// The value that lane `source` brought; `source` is this lane itself where the shuffle leaves its segment.
uint64_t shuffle(const char* name, unsigned mask, uint64_t value, int source, Site at);

template <class T>
T shuffle_value(const char* name, unsigned mask, T value, int source, Site at) {
  static_assert(sizeof(T) <= 8, "a lane exchanges up to eight bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(name, mask, bits, source, at);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index())
#define blockDim (emulation::block_size())
#define gridDim (emulation::grid_size())

#define TANDEM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  emulation::launch(#kernel, &kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define TANDEM_SHARED(type, name, dimensions) \
  using name##_type = type dimensions;        \
  name##_type& name = *static_cast<name##_type*>(emulation::shared_array(#name, __LINE__, sizeof(name##_type)))
#define TANDEM_DYNAMIC_SHARED(name) auto* name = static_cast<unsigned char*>(emulation::dynamic_shared())

// Every collective takes the site of its call as hidden last arguments.
#define EMULATION_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

void __syncthreads(EMULATION_SITE);
void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_SITE);
unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_SITE);

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_SITE) {
  const int segment = static_cast<int>(emulation::lane_index()) & ~(width - 1);
  return emulation::shuffle_value("__shfl_sync", mask, value, segment + (source & (width - 1)), {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMULATION_SITE) {
  const int lane = static_cast<int>(emulation::lane_index());
  const int source = lane ^ lane_mask;
  const int end = (lane & ~(width - 1)) + width;
  return emulation::shuffle_value("__shfl_xor_sync", mask, value, source < end ? source : lane, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_SITE) {
  const int lane = static_cast<int>(emulation::lane_index());
  const int source = lane + static_cast<int>(delta);
  const int end = (lane & ~(width - 1)) + width;
  return emulation::shuffle_value("__shfl_down_sync", mask, value, source < end ? source : lane, {file, line});
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}

template <class T>
__forceinline__ T __ldcs(const T* p) {
  return *p;
}

using std::max;
using std::min;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

// The instructions that csrc/kernels/cuda/ptx.cuh wraps.
namespace tandem::cuda {

void cp_async_16(void* shared, const void* global, bool valid);
void cp_async_commit();
void cp_async_wait(int groups_in_flight);
template <int kGroupsInFlight>
void cp_async_wait() {
  cp_async_wait(kGroupsInFlight);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMULATION_SITE);
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATION_SITE);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATION_SITE);
void mma_s8_u8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATION_SITE);

}  // namespace tandem::cuda
