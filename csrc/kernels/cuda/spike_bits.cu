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
    unroll<8>([&](int t) {
      if (first + t >= T) return;
      const auto s = load<Vec<E, kVec>>(spikes + (first + t) * neurons + n);
      unroll<kVec>([&](int i) { plane |= (s.at[i] & nonzero ? 1u : 0u) << (8 * i + t); });
    });
    store(planes + first / 8 * neurons + n, static_cast<Planes<kVec>>(plane));
  }
}

template <class E, int kVec>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const uint8_t* __restrict__ planes, int T, int64_t neurons, E* __restrict__ spikes, E one) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  for (int first = 0; first < T; first += 8) {
    const uint32_t plane = load<Planes<kVec>>(planes + first / 8 * neurons + n);
    unroll<8>([&](int t) {
      if (first + t >= T) return;
      const auto s = generate<kVec>([&](int i) { return plane >> (8 * i + t) & 1u ? one : E{0}; });
      store(spikes + (first + t) * neurons + n, s);
    });
  }
}

template <class E, int kVec>
__global__ void __launch_bounds__(kThreads)
    counts_kernel(const uint8_t* __restrict__ planes, int P, int64_t neurons, E* __restrict__ counts) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  Counts<true> sum;
  for (int p = 0; p < P; ++p) sum.add(load<Planes<kVec>>(planes + p * neurons + n));
  store(counts + n, generate<kVec>([&](int i) { return static_cast<E>(static_cast<float>(sum[i])); }));
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
    gate_grad_kernel(const E* __restrict__ grad, const uint8_t* __restrict__ mask, float threshold, int64_t neurons,
                     E* __restrict__ grad_z) {
  const int64_t n = thread_index() * kVec;
  if (n >= neurons) return;
  const auto open = gated<kVec>(grad, mask, n);
  store(grad_z + n, convert<E>(generate<kVec>([&](int i) { return open.at[i] / threshold; })));
}

// Calls launch(E{}) for the unsigned type E of `element_size` bytes.
template <class Launch>
int launch_for_size(int32_t element_size, const Launch& launch) {
  if (element_size == 1) return launch(uint8_t{});
  if (element_size == 2) return launch(uint16_t{});
  if (element_size == 4) return launch(uint32_t{});
  return element_size == 8 ? launch(uint64_t{}) : static_cast<int>(cudaErrorInvalidValue);
}

template <class E>
int launch_counts(const uint8_t* planes, int32_t P, int64_t neurons, E* counts, void* stream) {
  return by_four(fit_four(neurons, planes, counts), [&](auto vec) {
    return launch(counts_kernel<E, vec.value>, blocks_for(neurons, kThreads * vec.value), kThreads, 0, stream, planes,
                  P, neurons, counts);
  });
}

}  // namespace

int pack(const void* spikes, int32_t element_size, bool is_float, int32_t T, int64_t neurons, uint8_t* planes,
         void* stream) {
  return launch_for_size(element_size, [&](auto element) {
    using E = decltype(element);
    const auto* from = static_cast<const E*>(spikes);
    const E all = static_cast<E>(~E{0});
    const E nonzero = is_float ? static_cast<E>(all >> 1) : all;
    return by_four(fit_four(neurons, from, planes), [&](auto vec) {
      return launch(pack_kernel<E, vec.value>, blocks_for(neurons, kThreads * vec.value), kThreads, 0, stream, from,
                    nonzero, T, neurons, planes);
    });
  });
}

int unpack(const uint8_t* planes, int32_t T, int64_t neurons, void* spikes, int32_t element_size, uint64_t one,
           void* stream) {
  return launch_for_size(element_size, [&](auto element) {
    using E = decltype(element);
    auto* to = static_cast<E*>(spikes);
    return by_four(fit_four(neurons, planes, to), [&](auto vec) {
      return launch(unpack_kernel<E, vec.value>, blocks_for(neurons, kThreads * vec.value), kThreads, 0, stream, planes,
                    T, neurons, to, static_cast<E>(one));
    });
  });
}

int counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, DType dtype, void* stream) {
  return with_type(dtype, [&](auto element) {
    return launch_counts(planes, P, neurons, static_cast<decltype(element)*>(counts), stream);
  });
}

int count_bytes(const uint8_t* planes, int32_t P, int64_t neurons, uint8_t* counts, void* stream) {
  return launch_counts(planes, P, neurons, counts, stream);
}

int burst_planes(const uint8_t* counts, int32_t T, int64_t neurons, uint8_t* planes, void* stream) {
  return launch(burst_planes_kernel, blocks_for(neurons, kThreads), kThreads, 0, stream, counts, T, neurons, planes);
}

int gate_grad(const void* grad, DType dtype, const uint8_t* mask, double threshold, int64_t neurons, void* grad_z,
              void* stream) {
  return with_type(dtype, [&](auto element) {
    using E = decltype(element);
    const auto* from = static_cast<const E*>(grad);
    auto* to = static_cast<E*>(grad_z);
    return by_four(fit_four(neurons, from, to), [&](auto vec) {
      return launch(gate_grad_kernel<E, vec.value>, blocks_for(neurons, kThreads * vec.value), kThreads, 0, stream,
                    from, mask, static_cast<float>(threshold), neurons, to);
    });
  });
}

}  // namespace tandem::cuda
