// Packs, unpacks and counts spikes, and applies the gates to gradients. A thread owns all steps of four neighbouring
// neurons, or of one if the arrays are not aligned for four.
#include "../planes/bits.h"
#include "vec.cuh"

namespace tandem::cuda {

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

// nonzero: the bits that make an element a spike; all but the sign of a float.
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
        unroll<kVec>([&](int i) { plane |= (s.at[i] & nonzero ? 1u : 0u) << (8 * i + t); });
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
        const auto s = generate<kVec>([&](int i) { return plane >> (8 * i + t) & 1u ? one : E{0}; });
        store(spikes + (first + t) * neurons + n, s);
      }
    }
  }
}

template <class E, int kVec>
__global__ void __launch_bounds__(kThreads)
    counts_kernel(const uint8_t* __restrict__ planes, int P, int64_t neurons, E* __restrict__ counts) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  Counts<true> sum;
  for (int p = 0; p < P; ++p) sum.add(load_planes<kVec>(planes + p * neurons + n));
  store(counts + n, generate<kVec>([&](int i) { return narrow<E>(static_cast<float>(sum[i])); }));
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
template <class E, int kVec>
__global__ void __launch_bounds__(kThreads)
    gate_grad_kernel(const E* __restrict__ grad, const uint8_t* __restrict__ mask, Compute<E> threshold,
                     int64_t neurons, E* __restrict__ grad_z) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  Vec<E, kVec> g;
  if constexpr (kVec == 1) {
    g = load_once<Vec<E, 1>>(grad + n);  // the compiler would move a plain load behind the test of the gate
  } else {
    g = load<Vec<E, kVec>>(grad + n);
  }
  const uint32_t open = mask[n / 8] >> (n % 8);
  store(grad_z + n,
        generate<kVec>([&](int i) { return narrow<E>(open >> i & 1u ? widen(g.at[i]) / threshold : Compute<E>(0)); }));
}

// Whether rows of `neurons` elements of `bytes` bytes can be loaded and stored four at a time.
bool fit_four(const void* p, int64_t neurons, int64_t bytes) {
  return neurons % 4 == 0 && is_aligned(p, bytes < 4 ? 4 * bytes : 16);
}

// Calls launch(E{}) for the unsigned type E of `element_size` bytes.
template <class Launch>
int launch_for_size(int32_t element_size, const Launch& launch) {
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

template <class E>
int launch_counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, void* stream) {
  const bool four = fit_four(planes, neurons, 1) && fit_four(counts, neurons, sizeof(E));
  return launch_by_four<kThreads>(
      four, neurons, stream, [](auto vec) { return &counts_kernel<E, vec.value>; }, planes, P, neurons,
      static_cast<E*>(counts));
}

template <class E>
int launch_gate_grad(const void* grad, const uint8_t* mask, double threshold, int64_t neurons, void* grad_z,
                     void* stream) {
  const bool four = fit_four(grad, neurons, sizeof(E)) && fit_four(grad_z, neurons, sizeof(E));
  return launch_by_four<kThreads>(
      four, neurons, stream, [](auto vec) { return &gate_grad_kernel<E, vec.value>; }, static_cast<const E*>(grad),
      mask, static_cast<Compute<E>>(threshold), neurons, static_cast<E*>(grad_z));
}

}  // namespace

int pack(const void* spikes, int32_t element_size, bool is_float, int32_t T, int64_t neurons, uint8_t* planes,
         void* stream) {
  return launch_for_size(element_size, [&](auto element) {
    using E = decltype(element);
    const E all = static_cast<E>(~E{0});
    const E nonzero = is_float ? static_cast<E>(all >> 1) : all;
    const bool four = fit_four(spikes, neurons, sizeof(E)) && is_aligned(planes, 4);
    return launch_by_four<kThreads>(
        four, neurons, stream, [](auto vec) { return &pack_kernel<E, vec.value>; }, static_cast<const E*>(spikes),
        nonzero, T, neurons, planes);
  });
}

int unpack(const uint8_t* planes, int32_t T, int64_t neurons, void* spikes, int32_t element_size, uint64_t one,
           void* stream) {
  return launch_for_size(element_size, [&](auto element) {
    using E = decltype(element);
    const bool four = fit_four(spikes, neurons, sizeof(E)) && is_aligned(planes, 4);
    return launch_by_four<kThreads>(
        four, neurons, stream, [](auto vec) { return &unpack_kernel<E, vec.value>; }, planes, T, neurons,
        static_cast<E*>(spikes), static_cast<E>(one));
  });
}

int counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, DType dtype, void* stream) {
  if (dtype == DType::kFloat64) return launch_counts<double>(planes, P, neurons, counts, stream);
  return launch_for(dtype,
                    [&](auto element) { return launch_counts<decltype(element)>(planes, P, neurons, counts, stream); });
}

int count_bytes(const uint8_t* planes, int32_t P, int64_t neurons, uint8_t* counts, void* stream) {
  return launch_counts<uint8_t>(planes, P, neurons, counts, stream);
}

int burst_planes(const uint8_t* counts, int32_t T, int64_t neurons, uint8_t* planes, void* stream) {
  return launch_by_four<kThreads>(
      false, neurons, stream, [](auto) { return &burst_planes_kernel; }, counts, T, neurons, planes);
}

int gate_grad(const void* grad, DType dtype, const uint8_t* mask, double threshold, int64_t neurons, void* grad_z,
              void* stream) {
  if (dtype == DType::kFloat64) return launch_gate_grad<double>(grad, mask, threshold, neurons, grad_z, stream);
  return launch_for(dtype, [&](auto element) {
    return launch_gate_grad<decltype(element)>(grad, mask, threshold, neurons, grad_z, stream);
  });
}

}  // namespace tandem::cuda
