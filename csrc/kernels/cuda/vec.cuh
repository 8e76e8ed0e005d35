// Vectors of neighbouring elements, loaded and stored by instructions of up to 128 bits; counts of spikes; launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <type_traits>

#include "../neuron/if_neuron.h"
#include "ptx.cuh"

namespace tandem::cuda {

template <class E, int n>
struct alignas(sizeof(E) * n < 16 ? sizeof(E) * n : 16) Vec {
  E at[n];
};

template <int n>
struct Constant {
  static constexpr int value = n;
};

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

// The bits of `from` as another type.
template <class To, class From>
__device__ __forceinline__ To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "as many of them");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// A type of V's size that the cache hints support.
template <class V>
using Raw =
    std::conditional_t<sizeof(V) == 2, unsigned short,
                       std::conditional_t<sizeof(V) == 4, unsigned, std::conditional_t<sizeof(V) == 8, uint2, uint4>>>;

// Loads data that is not read again: caches evict it first.
template <class V, class E>
__device__ __forceinline__ V load_once(const E* p) {
  return bits_as<V>(__ldcs(reinterpret_cast<const Raw<V>*>(p)));
}

// A load that the compiler does not move behind a later condition.
template <class V, class E>
__device__ __forceinline__ V load_early(const E* p) {
  return bits_as<V>(__ldcg(reinterpret_cast<const Raw<V>*>(p)));
}

template <class E, int n>
__device__ __forceinline__ Vec<E, n> fill(E value) {
  return generate<n>([&](int) { return value; });
}

// A division in 64 bits costs as much as half a scan, so 32 bits are used where they suffice.
__device__ __forceinline__ int64_t quotient(int64_t n, int64_t by) {
  if (((n | by) >> 32) == 0) return static_cast<uint32_t>(n) / static_cast<uint32_t>(by);
  return n / by;
}
__device__ __forceinline__ int64_t remainder(int64_t n, int64_t period) {
  return period <= 1 ? 0 : n - quotient(n, period) * period;
}

// To the type in which potentials are computed.
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(int8_t x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class E, int n>
__device__ __forceinline__ auto widen(const Vec<E, n>& x) {
  return generate<n>([&](int i) { return widen(x.at[i]); });
}

// From that type.
template <class E, class C>
__device__ __forceinline__ E narrow(C x) {
  if constexpr (std::is_same_v<E, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<E, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return static_cast<E>(x);
  }
}

// Steps whose spikes share a byte.
constexpr int kPlaneSteps = 8;

// Up to four spike trains side by side: byte i of a word is the plane of neuron i.
template <int kVec>
__device__ __forceinline__ uint32_t load_planes(const uint8_t* p) {
  static_assert(kVec == 1 || kVec == 4, "a byte, or a word");
  return load<std::conditional_t<kVec == 1, uint8_t, uint32_t>>(p);
}

template <int kVec>
__device__ __forceinline__ void store_planes(uint8_t* p, uint32_t word) {
  store(p, static_cast<std::conditional_t<kVec == 1, uint8_t, uint32_t>>(word));
}

__device__ __forceinline__ uint32_t popcount_bytes(uint32_t x) {
  x = x - ((x >> 1) & 0x55555555u);
  x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
  return (x + (x >> 4)) & 0x0f0f0f0fu;
}

// The spike counts of up to four neurons: in 8 bits each, or in 16 if the window may have more than 255 steps.
template <bool kLong>
struct Counts {
  uint32_t bytes = 0;

  __device__ __forceinline__ void add(uint32_t plane) { bytes += popcount_bytes(plane); }
  __device__ __forceinline__ uint32_t operator[](int i) const { return bytes >> 8 * i & 255u; }
};
template <>
struct Counts<true> {
  uint32_t even = 0, odd = 0;

  __device__ __forceinline__ void add(uint32_t plane) {
    const uint32_t bytes = popcount_bytes(plane);
    even += bytes & 0x00ff00ffu;
    odd += bytes >> 8 & 0x00ff00ffu;
  }
  __device__ __forceinline__ void set(int i, uint32_t count) { (i & 1 ? odd : even) |= count << 8 * (i & 2); }
  __device__ __forceinline__ uint32_t operator[](int i) const { return (i & 1 ? odd : even) >> 8 * (i & 2) & 0xffffu; }
};

// Calls put(p, values) with the address of the counts from n on, and kVec counts of their type.
template <int kVec, bool kLong, class Put>
__device__ __forceinline__ void for_counts(void* to, DType dtype, int64_t n, const Counts<kLong>& counts,
                                           const Put& put) {
  const auto as = [&](auto* p) {
    using E = std::decay_t<decltype(*p)>;
    put(p + n, generate<kVec>([&](int i) { return narrow<E>(static_cast<float>(counts[i])); }));
  };
  switch (dtype) {
    case DType::kFloat32:
      return as(static_cast<float*>(to));
    case DType::kBFloat16:
      return as(static_cast<__nv_bfloat16*>(to));
    case DType::kFloat16:
      return as(static_cast<__half*>(to));
    case DType::kFloat64:
      return as(static_cast<double*>(to));
  }
}

// The type in which potentials are computed, for currents of type E.
template <class E>
using Compute = std::conditional_t<std::is_same_v<E, double>, double, float>;

// --- on the host ---

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

inline unsigned blocks_for(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

// Launches kernel(Constant<4>{}), with four neurons per thread, if `four`; else kernel(Constant<1>{}).
template <int kThreads, class Kernel, class... Args>
int launch_by_four(bool four, int64_t neurons, void* stream, const Kernel& kernel, const Args&... args) {
  if (neurons == 0) return cudaSuccess;
  const auto chosen = four ? kernel(Constant<4>{}) : kernel(Constant<1>{});
  chosen<<<blocks_for(neurons, four ? 4 * kThreads : kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      args...);
  return cudaGetLastError();
}

// Calls launch(E{}) for the element type E of `dtype`; potentials are float.
template <class Launch>
int launch_for(DType dtype, const Launch& launch) {
  switch (dtype) {
    case DType::kFloat32:
      return launch(float{});
    case DType::kBFloat16:
      return launch(__nv_bfloat16{});
    case DType::kFloat16:
      return launch(__half{});
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace tandem::cuda
