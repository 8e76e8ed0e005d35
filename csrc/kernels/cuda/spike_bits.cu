// A thread owns four neighbouring neurons, or one where the arrays are not aligned for four, at all steps.
#include "../planes/bits.h"
#include "vec.cuh"

namespace tandem::cuda {

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

// nonzero: the bits that make an element a spike, all but the sign of a float.
template <class E, int kVec>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const E* __restrict__ spikes, E nonzero, int T, int64_t neurons, uint8_t* __restrict__ planes) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  for (int first = 0; first < T; first += 8) {
    uint32_t plane = 0;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (first + t < T) {
        const auto s = load<Vec<E, kVec>>(spikes + (first + t) * neurons + n);
#pragma unroll
        for (int i = 0; i < kVec; ++i) plane |= (s.at[i] & nonzero ? 1u : 0u) << (8 * i + t);
      }
    }
    store_planes<kVec>(planes + first / 8 * neurons + n, plane);
  }
}

template <class E, int kVec>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const uint8_t* __restrict__ planes, int T, int64_t neurons, E* __restrict__ spikes, E one) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  for (int first = 0; first < T; first += 8) {
    const uint32_t plane = load_planes<kVec>(planes + first / 8 * neurons + n);
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (first + t < T) {
        Vec<E, kVec> s;
#pragma unroll
        for (int i = 0; i < kVec; ++i) s.at[i] = plane >> (8 * i + t) & 1u ? one : E{0};
        store(spikes + (first + t) * neurons + n, s);
      }
    }
  }
}

template <int kVec>
__global__ void __launch_bounds__(kThreads)
    counts_kernel(const uint8_t* __restrict__ planes, int P, int64_t neurons, void* __restrict__ counts, DType dtype) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  Counts<true> sum;
  for (int p = 0; p < P; ++p) sum.add(load_planes<kVec>(planes + p * neurons + n));
  store_counts<kVec>(counts, dtype, n, sum);
}

template <int kVec>
__global__ void __launch_bounds__(kThreads)
    count_bytes_kernel(const uint8_t* __restrict__ planes, int P, int64_t neurons, uint8_t* __restrict__ counts) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  uint32_t bytes = 0;
  for (int p = 0; p < P; ++p) bytes += popcount_bytes(load_planes<kVec>(planes + p * neurons + n));
  store_planes<kVec>(counts + n, bytes);
}

__global__ void __launch_bounds__(kThreads)
    burst_planes_kernel(const uint8_t* __restrict__ counts, int T, int64_t neurons, uint8_t* __restrict__ planes) {
  const int64_t n = thread_index();
  if (n >= neurons) return;
  const int count = min(static_cast<int>(counts[n]), T);
  for (int p = 0; p * 8 < T; ++p) {
    const int spikes = min(max(count - 8 * p, 0), 8);
    planes[p * neurons + n] = static_cast<uint8_t>((1 << spikes) - 1);
  }
}

// bfloat16 and float16 divide in float and round once.
template <class E>
__device__ __forceinline__ E divide(E x, float threshold) {
  return FromFloat<E>::convert(widen(x) / threshold);
}
__device__ __forceinline__ double divide(double x, double threshold) { return x / threshold; }

template <class E, class C, int kVec>
__global__ void __launch_bounds__(kThreads)
    gate_grad_kernel(const E* __restrict__ grad, const uint8_t* __restrict__ mask, C threshold, int64_t neurons,
                     E* __restrict__ grad_z) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  Vec<E, kVec> g;
  if constexpr (kVec == 1) {
    g = load_once<Vec<E, 1>>(grad + n);  // the compiler would have a plain load wait for the gate
  } else {
    g = load<Vec<E, kVec>>(grad + n);
  }
  const uint32_t open = mask[n / 8] >> (n % 8);
  Vec<E, kVec> out;
#pragma unroll
  for (int i = 0; i < kVec; ++i) out.at[i] = open >> i & 1u ? divide(g.at[i], threshold) : FromFloat<E>::convert(0.0f);
  store(grad_z + n, out);
}

dim3 grid_for(int64_t neurons, int vec) {
  const int64_t per_block = int64_t{kThreads} * vec;
  return dim3(static_cast<unsigned>((neurons + per_block - 1) / per_block));
}

// Can rows of `neurons` elements of `bytes` each be moved four at a time?
bool fit_four(const void* p, int64_t neurons, int64_t bytes) {
  return neurons % 4 == 0 && is_aligned(p, bytes < 4 ? 4 * bytes : 16);
}

// Launches a kernel of four neurons to a thread, or of one.
template <class Launch>
int launch_by(bool four, const Launch& launch) {
  four ? launch(Constant<4>{}) : launch(Constant<1>{});
  return cudaGetLastError();
}

// Calls launch(E{}) for the type E of so many bytes.
template <class Launch>
int launch_for(int32_t element_size, const Launch& launch) {
  switch (element_size) {
    case 1:
      return launch(uint8_t{});
    case 2:
      return launch(uint16_t{});
    case 4:
      return launch(uint32_t{});
    case 8:
      return launch(uint64_t{});
    default:
      return cudaErrorInvalidValue;
  }
}

template <class E, class C>
int launch_gate_grad(const void* grad, const uint8_t* mask, C threshold, int64_t neurons, void* grad_z,
                     cudaStream_t stream) {
  return launch_by(fit_four(grad, neurons, sizeof(E)) && fit_four(grad_z, neurons, sizeof(E)), [&](auto vec) {
    gate_grad_kernel<E, C, vec.value><<<grid_for(neurons, vec.value), kThreads, 0, stream>>>(
        static_cast<const E*>(grad), mask, threshold, neurons, static_cast<E*>(grad_z));
  });
}

}  // namespace

int pack(const void* spikes, int32_t element_size, bool is_float, int32_t T, int64_t neurons, uint8_t* planes,
         void* stream) {
  if (neurons == 0) return cudaSuccess;
  return launch_for(element_size, [&](auto element) {
    using E = decltype(element);
    const E all = static_cast<E>(~E{0});
    const E nonzero = is_float ? static_cast<E>(all >> 1) : all;
    return launch_by(fit_four(spikes, neurons, sizeof(E)) && is_aligned(planes, 4), [&](auto vec) {
      pack_kernel<E, vec.value><<<grid_for(neurons, vec.value), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
          static_cast<const E*>(spikes), nonzero, T, neurons, planes);
    });
  });
}

int unpack(const uint8_t* planes, int32_t T, int64_t neurons, void* spikes, int32_t element_size, uint64_t one,
           void* stream) {
  if (neurons == 0) return cudaSuccess;
  return launch_for(element_size, [&](auto element) {
    using E = decltype(element);
    return launch_by(fit_four(spikes, neurons, sizeof(E)) && is_aligned(planes, 4), [&](auto vec) {
      unpack_kernel<E, vec.value><<<grid_for(neurons, vec.value), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
          planes, T, neurons, static_cast<E*>(spikes), static_cast<E>(one));
    });
  });
}

int counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, DType dtype, void* stream) {
  if (neurons == 0) return cudaSuccess;
  return launch_by(fit_four(planes, neurons, 1) && fit_four(counts, neurons, size_of(dtype)), [&](auto vec) {
    counts_kernel<vec.value><<<grid_for(neurons, vec.value), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        planes, P, neurons, counts, dtype);
  });
}

int count_bytes(const uint8_t* planes, int32_t P, int64_t neurons, uint8_t* counts, void* stream) {
  if (neurons == 0) return cudaSuccess;
  return launch_by(fit_four(planes, neurons, 1) && fit_four(counts, neurons, 1), [&](auto vec) {
    count_bytes_kernel<vec.value>
        <<<grid_for(neurons, vec.value), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(planes, P, neurons, counts);
  });
}

int burst_planes(const uint8_t* counts, int32_t T, int64_t neurons, uint8_t* planes, void* stream) {
  if (neurons == 0) return cudaSuccess;
  burst_planes_kernel<<<grid_for(neurons, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(counts, T, neurons,
                                                                                                planes);
  return cudaGetLastError();
}

int gate_grad(const void* grad, DType dtype, const uint8_t* mask, double threshold, int64_t neurons, void* grad_z,
              void* stream) {
  if (neurons == 0) return cudaSuccess;
  const auto on = static_cast<cudaStream_t>(stream);
  const auto theta = static_cast<float>(threshold);
  switch (dtype) {
    case DType::kFloat32:
      return launch_gate_grad<float>(grad, mask, theta, neurons, grad_z, on);
    case DType::kBFloat16:
      return launch_gate_grad<__nv_bfloat16>(grad, mask, theta, neurons, grad_z, on);
    case DType::kFloat16:
      return launch_gate_grad<__half>(grad, mask, theta, neurons, grad_z, on);
    case DType::kFloat64:
      return launch_gate_grad<double>(grad, mask, threshold, neurons, grad_z, on);
  }
  return cudaErrorInvalidValue;
}

}  // namespace tandem::cuda
