// Sixteen neurons side by side in GCC vectors: the scan, and the epilogue of every fused product, run on these.
#pragma once

#include <cstring>
#include <type_traits>

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
};
template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(128)));
  typedef int64_t Int __attribute__((vector_size(128)));
};
template <class C>
using Vec = typename Simd<C>::Vec;
template <class C>
using Int = typename Simd<C>::Int;

// The first `lanes` elements at p, the rest zero. All sixteen where lanes == kLanes is known at compile time.
template <class V, class E>
TANDEM_INLINE V load(const E* p, int lanes) {
  V out{};
  std::memcpy(&out, p, sizeof(E) * lanes);
  return out;
}

template <class V, class E>
TANDEM_INLINE void store(E* p, const V& value, int lanes) {
  std::memcpy(p, &value, sizeof(E) * lanes);
}

// Sixteen elements of a periodic array: lane i gets p[(n + i) % period].
template <class C>
TANDEM_INLINE Vec<C> load_periodic(const C* p, int64_t n, int64_t period) {
  const int64_t first = n % period;
  if (first + kLanes <= period) return load<Vec<C>>(p + first, kLanes);
  Vec<C> out{};
  for (int64_t i = 0, j = first; i < kLanes; ++i, j = j + 1 == period ? 0 : j + 1) out[i] = p[j];
  return out;
}

// Sixteen bytes of 0 or 255 (or any that only bit 7 - 0 matter of) to sixteen bits.
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
  ByteLanes spread;
  std::memset(&spread, bits & 255, 8);
  std::memset(reinterpret_cast<char*>(&spread) + 8, bits >> 8, 8);
  return reinterpret_cast<ByteLanes>((spread & select) != 0);
}

TANDEM_INLINE ByteLanes popcount(ByteLanes x) {
  x = x - ((x >> 1) & 0x55);
  x = (x & 0x33) + ((x >> 2) & 0x33);
  return (x + (x >> 4)) & 0x0f;
}

// Writes up to sixteen counts, given as bytes, in the type the caller wants.
TANDEM_INLINE void store_counts(void* counts, DType dtype, int64_t n, ByteLanes value, int lanes) {
  switch (dtype) {
    case DType::kFloat32:
      return store(static_cast<float*>(counts) + n, __builtin_convertvector(value, Vec<float>), lanes);
    case DType::kFloat64:
      return store(static_cast<double*>(counts) + n, __builtin_convertvector(value, Vec<double>), lanes);
    case DType::kBFloat16: {  // up to 255 exact: the upper half of the float
      const auto wide = __builtin_convertvector(value, Vec<float>);
      uint32_t bits[kLanes];
      std::memcpy(bits, &wide, sizeof(bits));
      for (int i = 0; i < lanes; ++i) static_cast<uint16_t*>(counts)[n + i] = static_cast<uint16_t>(bits[i] >> 16);
      return;
    }
    case DType::kFloat16:
      for (int i = 0; i < lanes; ++i) {
        const _Float16 half = static_cast<_Float16>(static_cast<int>(value[i]));
        std::memcpy(static_cast<uint16_t*>(counts) + n + i, &half, 2);
      }
      return;
  }
}

// The state of sixteen neurons [n, n + 16) during a window. `lanes` < 16 at the end of the layer.
template <class C>
struct NeuronLanes {
  Vec<C> v, z, scale, k;
  Vec<C> residual_scale;
  ByteLanes count;

  TANDEM_INLINE void begin(const NeuronArgs<C>& a, int64_t n) {
    z = Vec<C>{};
    count = ByteLanes{};
    v = a.v_init != nullptr ? load_periodic(a.v_init, n, a.v_init_size) : Vec<C>{};
    scale = a.scale != nullptr ? load_periodic(a.scale, n, a.channels) : Vec<C>{} + C(1);
    k = a.shift != nullptr ? load_periodic(a.shift, n, a.channels) / static_cast<C>(a.steps) : Vec<C>{};
    residual_scale = a.residual_scale != nullptr ? load_periodic(a.residual_scale, n, a.channels) : Vec<C>{} + C(1);
  }

  // The residual's current at step t; `plane` is the residual's byte lane of the eight steps around t.
  TANDEM_INLINE Vec<C> residual(const NeuronArgs<C>& a, int64_t n, int t, const ByteLanes& plane, int lanes) const {
    if (a.residual_planes != nullptr) {
      const ByteLanes bit = (plane >> (t & 7)) & 1;
      return rounded_mul(residual_scale, __builtin_convertvector(bit, Vec<C>));
    }
    return rounded_mul(residual_scale, load<Vec<C>>(a.residual_currents + t * a.neurons + n, lanes));
  }

  // One step with product y; sets bit t % 8 of `plane` where the neuron fires.
  TANDEM_INLINE void advance(const NeuronArgs<C>& a, Vec<C> current, int t, Int<C>& plane) {
    z = rounded_add(z, current);
    const Int<C> spike = step(v, current, a.threshold, a.leak);
    plane |= spike & (static_cast<typename std::remove_reference<decltype(plane[0])>::type>(1) << (t & 7));
  }

  TANDEM_INLINE void end_plane(const NeuronArgs<C>& a, int64_t n, int p, const Int<C>& plane, int lanes) {
    const ByteLanes bytes = __builtin_convertvector(plane, ByteLanes);
    count += popcount(bytes);
    store(a.planes + p * a.neurons + n, bytes, lanes);
  }

  // After the last step: gate, counts, mask, membrane potential; "resu" silences the trains already written.
  TANDEM_INLINE void end(const NeuronArgs<C>& a, int64_t n, int lanes) {
    const Int<C> open = gate_open(z, a.gate, a.threshold * static_cast<C>(a.T));
    const ByteLanes gate = __builtin_convertvector(open, ByteLanes);
    if (a.gate == Gate::kResu) {
      count &= gate;
      for (int p = 0; p < (a.T + 7) / 8; ++p) {
        uint8_t* train = a.planes + p * a.neurons + n;
        store(train, load<ByteLanes>(train, lanes) & gate, lanes);
      }
    }
    if (a.mask != nullptr) {
      const uint16_t bits = bits_of(gate) & static_cast<uint16_t>((1u << lanes) - 1);
      std::memcpy(a.mask + n / 8, &bits, (lanes + 7) / 8);
    }
    if (a.counts != nullptr) store_counts(a.counts, a.counts_dtype, n, count, lanes);
    if (a.v != nullptr) store(a.v + n, v, lanes);
  }
};

}  // namespace tandem::cpu
