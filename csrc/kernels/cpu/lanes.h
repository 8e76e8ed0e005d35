// Sixteen neurons side by side in GCC vectors: the scan, and the epilogue of every fused product, run on these.
#pragma once

#include <cstring>

#include "../if_neuron.h"
#include "capability.h"

namespace tandem::cpu {

constexpr int kLanes = 16;

typedef uint8_t ByteLanes __attribute__((vector_size(16)));

template <class C>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(64)));
  typedef int32_t Int __attribute__((vector_size(64)));
  using Lane = int32_t;
};
template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(128)));
  typedef int64_t Int __attribute__((vector_size(128)));
  using Lane = int64_t;
};
template <class C>
using Vec = typename Simd<C>::Vec;
template <class C>
using Int = typename Simd<C>::Int;

template <class V, class E>
TANDEM_INLINE V load(const E* p) {
  V out;
  std::memcpy(&out, p, sizeof(E) * kLanes);
  return out;
}

template <class V, class E>
TANDEM_INLINE void store(E* p, const V& value) {
  std::memcpy(p, &value, sizeof(E) * kLanes);
}

// Sixteen elements of a periodic array: lane i gets p[(n + i) % period]; the neutral value where p is null.
template <class C>
TANDEM_INLINE Vec<C> load_periodic(const C* p, int64_t n, int64_t period, C neutral) {
  if (p == nullptr) return Vec<C>{} + neutral;
  const int64_t first = n % period;
  if (first + kLanes <= period) return load<Vec<C>>(p + first);
  C out[kLanes];
  for (int64_t i = 0, j = first; i < kLanes; ++i, j = j + 1 == period ? 0 : j + 1) out[i] = p[j];
  return load<Vec<C>>(out);
}

// Bit 0 of each of sixteen bytes, as sixteen bits.
TANDEM_INLINE uint16_t bits_of(ByteLanes mask) {
  const ByteLanes one = mask & 1;
  uint64_t half[2];
  std::memcpy(half, &one, sizeof(half));
  constexpr uint64_t gather = 0x0102040810204080ull;  // moves bit 0 of byte i to bit 56 + i
  return static_cast<uint16_t>(((half[0] * gather) >> 56) | (((half[1] * gather) >> 56) << 8));
}

// The opposite: bit i to byte i, 255 or 0.
TANDEM_INLINE ByteLanes bytes_of(uint16_t bits) {
  const ByteLanes select = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint64_t half[2] = {(bits & 255u) * 0x0101010101010101ull, (bits >> 8) * 0x0101010101010101ull};
  ByteLanes spread;
  std::memcpy(&spread, half, sizeof(spread));
  return reinterpret_cast<ByteLanes>((spread & select) != 0);
}

TANDEM_INLINE ByteLanes popcount(ByteLanes x) {
  x = x - ((x >> 1) & 0x55);
  x = (x & 0x33) + ((x >> 2) & 0x33);
  return (x + (x >> 4)) & 0x0f;
}

// Counts are at most 255, so every type holds them exactly; bfloat16 is the upper half of the float.
TANDEM_INLINE void store_counts(void* counts, DType dtype, int64_t n, ByteLanes value) {
  switch (dtype) {
    case DType::kFloat32:
      return store(static_cast<float*>(counts) + n, __builtin_convertvector(value, Vec<float>));
    case DType::kFloat64:
      return store(static_cast<double*>(counts) + n, __builtin_convertvector(value, Vec<double>));
    case DType::kBFloat16: {
      const auto wide = __builtin_convertvector(value, Vec<float>);
      uint16_t halves[2 * kLanes];
      std::memcpy(halves, &wide, sizeof(halves));
      for (int i = 0; i < kLanes; ++i) static_cast<uint16_t*>(counts)[n + i] = halves[2 * i + 1];
      return;
    }
    case DType::kFloat16: {
      uint8_t bytes[kLanes];
      std::memcpy(bytes, &value, sizeof(bytes));
      for (int i = 0; i < kLanes; ++i) static_cast<_Float16*>(counts)[n + i] = static_cast<_Float16>(bytes[i]);
      return;
    }
  }
}

// The state of neurons [n, n + 16) during a window.
template <class C>
struct NeuronLanes {
  Vec<C> v, z, scale, k, residual_scale;
  ByteLanes count;

  TANDEM_INLINE void begin(const NeuronArgs<C>& a, int64_t n) {
    z = Vec<C>{};
    count = ByteLanes{};
    v = load_periodic(a.v_init, n, a.v_init_size, C(0));
    scale = load_periodic(a.scale, n, a.channels, C(1));
    k = load_periodic(a.shift, n, a.channels, C(0)) / static_cast<C>(a.steps);
    residual_scale = load_periodic(a.residual_scale, n, a.channels, C(1));
  }

  // The residual's current at step t; `bytes` holds the residual's spikes of the eight steps around t.
  TANDEM_INLINE Vec<C> residual(const NeuronArgs<C>& a, int64_t n, int t, const ByteLanes& bytes) const {
    if (a.residual_planes == nullptr) {
      return rounded_mul(residual_scale, load<Vec<C>>(a.residual_currents + t * a.neurons + n));
    }
    return rounded_mul(residual_scale, __builtin_convertvector((bytes >> (t & 7)) & 1, Vec<C>));
  }

  // One step; sets bit t % 8 of `plane` where the neuron fires.
  TANDEM_INLINE void advance(const NeuronArgs<C>& a, Vec<C> current, int t, Int<C>& plane) {
    z = rounded_add(z, current);
    plane |= step(v, current, a.threshold, a.leak) & (typename Simd<C>::Lane{1} << (t & 7));
  }

  TANDEM_INLINE void end_plane(const NeuronArgs<C>& a, int64_t n, int p, const Int<C>& plane) {
    const ByteLanes bytes = __builtin_convertvector(plane, ByteLanes);
    count += popcount(bytes);
    store(a.planes + p * a.neurons + n, bytes);
  }

  // After the last step: gate, counts, mask, membrane potential; "resu" silences the trains already written.
  TANDEM_INLINE void end(const NeuronArgs<C>& a, int64_t n) {
    const ByteLanes open =
        __builtin_convertvector(gate_open(z, a.gate, a.threshold * static_cast<C>(a.T)), ByteLanes);
    if (a.gate == Gate::kResu) {
      count &= open;
      for (int p = 0; p < (a.T + 7) / 8; ++p) {
        uint8_t* train = a.planes + p * a.neurons + n;
        store(train, load<ByteLanes>(train) & open);
      }
    }
    if (a.mask != nullptr) {
      const uint16_t bits = bits_of(open);
      std::memcpy(a.mask + n / 8, &bits, sizeof(bits));
    }
    if (a.counts != nullptr) store_counts(a.counts, a.counts_dtype, n, count);
    if (a.v != nullptr) store(a.v + n, v);
  }
};

}  // namespace tandem::cpu
