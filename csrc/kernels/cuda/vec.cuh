// Vectors of neighbouring elements, loaded and stored by instructions of up to 128 bits; counts of spikes; launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <type_traits>

#include "../neuron/if_neuron.h"
#include "ptx.cuh"

namespace tandem::cuda {

template <class E, int n>
struct alignas(sizeof(E) * n < 16 ? sizeof(E) * n : 16) Vec {
  E at[n];
};

template <int n>
using Constant = std::integral_constant<int, n>;

// Calls body(Constant<i>) for i = first ... n - 1, until it returns false.
template <int n, int first = 0, class Body>
__device__ __forceinline__ void unroll_while(const Body& body) {
  if constexpr (first < n) {
    if (body(Constant<first>{})) unroll_while<n, first + 1>(body);
  }
}

// Calls body(i) for i = 0 ... n - 1.
template <int n, class Body>
__device__ __forceinline__ void unroll(const Body& body) {
#pragma unroll
  for (int i = 0; i < n; ++i) body(i);
}

// {element(0), ... element(n - 1)}
template <int n, class Element>
__device__ __forceinline__ auto generate(const Element& element) {
  Vec<std::decay_t<decltype(element(0))>, n> out;
  unroll<n>([&](int i) { out.at[i] = element(i); });
  return out;
}

template <class E, int n>
__device__ __forceinline__ Vec<E, n> fill(E value) {
  return generate<n>([&](int) { return value; });
}

template <class To, class E, int n>
__device__ __forceinline__ Vec<To, n> convert(const Vec<E, n>& x) {
  return generate<n>([&](int i) { return static_cast<To>(x.at[i]); });
}

// The neuron's arithmetic (if_neuron.h), element by element.
using tandem::rounded_add;
using tandem::rounded_mul;
template <class E, int n>
__device__ __forceinline__ Vec<E, n> rounded_add(Vec<E, n> a, Vec<E, n> b) {
  return generate<n>([&](int i) { return rounded_add(a.at[i], b.at[i]); });
}
template <class E, int n>
__device__ __forceinline__ Vec<E, n> rounded_mul(Vec<E, n> a, Vec<E, n> b) {
  return generate<n>([&](int i) { return rounded_mul(a.at[i], b.at[i]); });
}

template <class V, class E>
__device__ __forceinline__ V load(const E* p) {
  return *reinterpret_cast<const V*>(p);
}

template <class V, class E>
__device__ __forceinline__ void store(E* p, const V& value) {
  *reinterpret_cast<V*>(p) = value;
}

// A type of V's size that the cache hints support.
template <class V>
using Raw =
    std::conditional_t<sizeof(V) == 2, unsigned short,
                       std::conditional_t<sizeof(V) == 4, unsigned, std::conditional_t<sizeof(V) == 8, uint2, uint4>>>;

// Loads data that is not read again: caches evict it first.
template <class V, class E>
__device__ __forceinline__ V load_once(const E* p) {
  return __builtin_bit_cast(V, __ldcs(reinterpret_cast<const Raw<V>*>(p)));
}

// A load that the compiler does not move behind a later condition.
template <class V, class E>
__device__ __forceinline__ V load_early(const E* p) {
  return __builtin_bit_cast(V, __ldcg(reinterpret_cast<const Raw<V>*>(p)));
}

// Steps whose spikes share a byte.
constexpr int kPlaneSteps = 8;

// A plane of neighbouring neurons, a byte each.
template <int kVec>
using Planes = std::conditional_t<kVec == 1, uint8_t, uint32_t>;

__device__ __forceinline__ uint32_t popcount_bytes(uint32_t x) {
  x = x - ((x >> 1) & 0x55555555u);
  x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
  return (x + (x >> 4)) & 0x0f0f0f0fu;
}

// The spike counts of up to four neurons: in 8 bits each, or in 16 if the window may have more than 255 steps.
template <bool kLong>
struct Counts {
  uint32_t even = 0, odd = 0;  // neurons 0 and 2, neurons 1 and 3; in 8 bits all are in `even`

  __device__ __forceinline__ void add(uint32_t plane) {
    const uint32_t bytes = popcount_bytes(plane);
    even += kLong ? bytes & 0x00ff00ffu : bytes;
    odd += bytes >> 8 & 0x00ff00ffu;
  }
  __device__ __forceinline__ uint32_t operator[](int i) const {
    return kLong ? (i & 1 ? odd : even) >> 8 * (i & 2) & 0xffffu : even >> 8 * i & 255u;
  }
};

// The gradients of kVec neighbouring neurons, 0 where the gate is closed.
template <int kVec, class E>
__device__ __forceinline__ auto gated(const E* grad, const uint8_t* mask, int64_t n) {
  const auto grads = load_early<Vec<E, kVec>>(grad + n);
  const uint32_t open = mask[n / 8] >> (n % 8);
  return generate<kVec>([&](int i) { return open >> i & 1u ? static_cast<float>(grads.at[i]) : 0.f; });
}

// Calls use(E{}) for the element type E of `dtype`.
#pragma nv_exec_check_disable
template <class Use>
TANDEM_HOST_DEVICE auto with_type(DType dtype, const Use& use) -> decltype(use(float{})) {
  if (dtype == DType::kFloat32) return use(float{});
  if (dtype == DType::kBFloat16) return use(__nv_bfloat16{});
  if (dtype == DType::kFloat16) return use(__half{});
  return static_cast<decltype(use(float{}))>(cudaErrorInvalidValue);
}

// --- on the host ---

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// Whether four neighbouring elements of each array can be loaded or stored at once, in rows of n.
template <class... E>
bool fit_four(int64_t n, const E*... arrays) {
  return n % 4 == 0 && (is_aligned(arrays, alignof(Vec<E, 4>)) && ...);
}

// Calls use(Constant<4>{}), for a kernel with as many neurons a thread, if `four`; else use(Constant<1>{}).
template <class Use>
int by_four(bool four, const Use& use) {
  return four ? use(Constant<4>{}) : use(Constant<1>{});
}

inline unsigned blocks_for(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void* stream,
           const Arguments&... arguments) {
  if (grid.x == 0) return cudaSuccess;
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace tandem::cuda
