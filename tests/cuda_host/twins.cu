// Small kernels in pairs, a correct one and one with a typical mistake, which the checker has to tell apart.
#include <cuda_runtime_api.h>

#include <array>
#include <map>
#include <string>

#include "../../csrc/kernels/cuda/ptx.cuh"

extern "C" char emulation_stream;

namespace {

cudaStream_t stream() { return reinterpret_cast<cudaStream_t>(&emulation_stream); }

using Kernel = void (*)(const float*, float*, int);

std::map<std::string, std::array<Kernel, 2>>& twins() {  // the bad one is last
  static std::map<std::string, std::array<Kernel, 2>> all;
  return all;
}
bool add(const char* name, Kernel good, Kernel bad) { return twins().try_emplace(name, std::array{good, bad}).second; }

// A kernel, with attributes, that is correct unless it is `bad`.
#define TWIN(name, ...)                                                           \
  template <bool bad>                                                             \
  __global__ void __VA_ARGS__ name(const float* in, float* out, int n);           \
  [[maybe_unused]] const bool name##_added = add(#name, name<false>, name<true>); \
  template <bool bad>                                                             \
  __global__ void __VA_ARGS__ name(const float* in, float* out, [[maybe_unused]] int n)

TWIN(tail) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (bad || i < n) out[i] = in[i];
}

TWIN(vector_load) {
  const auto* four = reinterpret_cast<const float4*>(in + (bad ? 1 : 4));
  reinterpret_cast<float4*>(out)[threadIdx.x] = four[threadIdx.x];
}

TWIN(write_once) {
  const unsigned i = threadIdx.x;
  out[i] = in[i];
  if (bad && i > 0) out[i - 1] = in[i - 1];
}

TWIN(write_all) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < (bad ? n - 1 : n)) out[i] = in[i];
}

TWIN(shared_uninitialised) {
  __shared__ float tile[64];
  const int i = static_cast<int>(threadIdx.x);
  if (!bad || i < n - 1) tile[i] = in[i];
  __syncthreads();
  out[i] = tile[n - 1 - i];
}

TWIN(shared_reverse) {
  __shared__ float tile[64];
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = in[i];
  if (!bad) __syncthreads();
  out[i] = tile[n - 1 - i];
}

// The result is correct under most schedules: a thread refills the tile while another may still read it.
TWIN(shared_refill) {
  __shared__ float tile[64];
  const int i = static_cast<int>(threadIdx.x);
  float sum = 0.0f;
  for (int round = 0; round < 2; ++round) {
    tile[i] = in[i];
    __syncthreads();
    sum += tile[n - 1 - i];
    if (!bad) __syncthreads();
  }
  out[i] = sum;
}

TWIN(warp_reverse) {
  __shared__ float tile[64];
  const unsigned i = threadIdx.x;
  tile[i] = in[i];
  if (!bad) __syncwarp();
  out[i] = tile[i ^ 31];
}

TWIN(shared_overrun) {
  __shared__ float first[64];
  __shared__ float second[64];
  const unsigned i = threadIdx.x;
  second[i] = 0.0f;
  first[i + (bad ? 1 : 0)] = in[i];
  __syncthreads();
  out[i] = first[i] + second[i];
}

TWIN(between_blocks) {
  const int i = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0) out[i] = in[i];
  if (blockIdx.x == 1) out[n + i] = bad ? out[i] : in[i];
}

TWIN(divergent_barrier) {
  out[threadIdx.x] = in[threadIdx.x];
  if (!bad || threadIdx.x < 32) __syncthreads();
}

TWIN(exited_lane) {
  const unsigned i = threadIdx.x;
  out[i] = in[i];
  if (bad && i == 3) return;
  const float next = __shfl_down_sync(0xffffffffu, in[i], 1);
  if (next < 0.0f) out[i] = next;
}

TWIN(shuffle_outside) {
  const unsigned i = threadIdx.x;
  const unsigned lower_half = 0x0000ffffu;
  out[i] = i % 32 < 16 ? __shfl_down_sync(lower_half, in[i], bad ? 1 : 0) : 0.0f;
}

__device__ __forceinline__ void copy_sixteen(float* to, const float* from) {
  tandem::cuda::cp_async<16>(tandem::cuda::shared_address(to), from, true);
}

// If only the first copy was waited for, the second is still in flight.
TWIN(async_copy) {
  __shared__ float tile[64];
  const int i = static_cast<int>(threadIdx.x);
  if (i < 8) copy_sixteen(tile + 4 * i, in + 4 * i);
  tandem::cuda::cp_async_commit();
  if (i < 8) copy_sixteen(tile + 32 + 4 * i, in + 32 + 4 * i);
  tandem::cuda::cp_async_commit();
  tandem::cuda::cp_async_wait<(bad ? 1 : 0)>();
  __syncthreads();
  out[i] = tile[n - 1 - i];
}

// Before a barrier only the thread that made the copy may read it.
TWIN(async_copy_to_others) {
  __shared__ float tile[64];
  const int i = static_cast<int>(threadIdx.x);
  if (i < 16) copy_sixteen(tile + 4 * i, in + 4 * i);
  tandem::cuda::cp_async_commit();
  tandem::cuda::cp_async_wait<0>();
  if (!bad) __syncthreads();
  out[i] = tile[n - 1 - i];
}

// Before Ampere lanes whose rows are not loaded must point to some, too.
TWIN(matrix_rows) {
  __shared__ __align__(16) float tile[128];
  const unsigned i = threadIdx.x, lane = i % 32;
  tile[2 * i] = tile[2 * i + 1] = in[i];
  __syncwarp();
  const unsigned row = bad && lane > 15 ? 32 : i / 32 * 16 + lane % 16;
  uint32_t words[2];
  tandem::cuda::ldmatrix<0>(words, tandem::cuda::shared_address(tile) + 16 * row);
  out[i] = __uint_as_float(words[0]);
}

// An accumulator that is written ("=f") where it should be read too ("+f").
TWIN(unread_accumulator) {
  const unsigned i = threadIdx.x;
  float sum = in[i];
  if (bad) {
    asm volatile("add.rn.f32 %0, %0, %1;" : "=f"(sum) : "f"(in[i]));
  } else {
    asm volatile("add.rn.f32 %0, %0, %1;" : "+f"(sum) : "f"(in[i]));
  }
  out[i] = sum;
}

TWIN(diverged_mma) {
  const unsigned i = threadIdx.x;
  int32_t sum[4] = {__float_as_int(in[i]), 0, 0, 0};
  const uint32_t zeros[4] = {};
  const uint32_t spikes[2] = {};
  if (!bad || i % 32 != 5) {
    tandem::cuda::mma(sum, zeros, spikes);
    out[i] = __int_as_float(sum[0]);
  } else {
    out[i] = 0.0f;
    return;
  }
}

TWIN(launch_bounds, __launch_bounds__(bad ? 32 : 64)) { out[threadIdx.x] = in[threadIdx.x]; }

const bool stream_added = add("stream", launch_bounds<false>, launch_bounds<false>);

TWIN(fused) {
  const float x = in[threadIdx.x];
  out[threadIdx.x] = bad ? __fmaf_rn(x, x, x) : __fadd_rn(__fmul_rn(x, x), x);
}

TWIN(much_shared) {  // each requests its own amount
  extern __shared__ __align__(16) unsigned char memory[];
  memory[threadIdx.x] = 1;
  out[threadIdx.x] = in[threadIdx.x];
}

// Both are correct. Accesses to memory are costly if the distance n is large.
TWIN(column_read) { out[threadIdx.x] = in[threadIdx.x * static_cast<unsigned>(n)]; }

TWIN(bank_conflict) {
  __shared__ float tile[32 * 33];
  const unsigned i = threadIdx.x * static_cast<unsigned>(n);
  tile[i] = in[threadIdx.x];
  __syncthreads();  // without it the compiler removes the tile
  out[threadIdx.x] = tile[i];
}

}  // namespace

// Two mistakes are in the launch: the wrong stream, and a request of sixteen bytes too few of shared memory above 48
// KB. An error belongs to its call only.
extern "C" int twin(const char* name, bool bad, const float* in, float* out, int n, unsigned threads, unsigned blocks) {
  const std::string wanted = name;
  const Kernel kernel = twins().at(wanted)[bad];
  const int shared = wanted == "much_shared" ? 96 * 1024 : 0, asked = shared - (bad ? 16 : 0);
  if (shared > 0) {
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (const int status = cudaFuncSetAttribute(kernel, limit, asked); status != cudaSuccess) return status;
  }
  const bool elsewhere = wanted == "stream" && bad;
  kernel<<<blocks, threads, static_cast<unsigned>(shared), elsewhere ? nullptr : stream()>>>(in, out, n);
  return cudaGetLastError();
}
