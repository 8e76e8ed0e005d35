// Neurons side by side in GCC vectors: the scan, and the epilogue of every fused product, run on these.
//
// A vector has L lanes, by default sixteen. GCC takes comparisons of vectors wider than the processor's apart, lane by
// lane, so kernels that compute more than they stream choose L = 16, 8 or 4 floats by capability.
#pragma once

#include <cstring>
#include <type_traits>

#include "../if_neuron.h"
#include "capability.h"
#include "halves.h"

namespace tandem::cpu {

constexpr int kLanes = 16;

template <class E, int L>
struct Simd {
  typedef E type __attribute__((vector_size(sizeof(E) * L)));
};
template <int L>
using Bytes = typename Simd<uint8_t, L>::type;
template <class C, int L = kLanes>
using Vec = typename Simd<C, L>::type;
template <class C>
using Lane = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
template <class C, int L = kLanes>
using Int = typename Simd<Lane<C>, L>::type;
using ByteLanes = Bytes<kLanes>;

template <class V, class E>
TANDEM_INLINE V load(const E* p) {
  V out;
  std::memcpy(&out, p, sizeof(V));
  return out;
}

template <class V, class E>
TANDEM_INLINE void store(E* p, const V& value) {
  std::memcpy(p, &value, sizeof(V));
}

// Lane by lane to another type. A loop, because __builtin_convertvector is scalar code where sizes differ.
template <class To, class From, int L>
TANDEM_INLINE typename Simd<To, L>::type convert(typename Simd<From, L>::type x) {
  From in[L];
  To out[L];
  std::memcpy(in, &x, sizeof(in));
  for (int i = 0; i < L; ++i) out[i] = static_cast<To>(in[i]);
  return load<typename Simd<To, L>::type>(out);
}

// Elements [first, first + lanes) of a periodic array; out of line, for it is rare and would be inlined everywhere.
template <class C>
[[gnu::noinline]] inline void copy_periodic(const C* p, int64_t first, int64_t period, int lanes, C* out) {
  for (int64_t i = 0, j = first; i < lanes; ++i, j = j + 1 == period ? 0 : j + 1) out[i] = p[j];
}

// L elements of a periodic array: lane i gets p[(n + i) % period]; the neutral value where p is null.
template <class C, int L = kLanes>
TANDEM_INLINE Vec<C, L> load_periodic(const C* p, int64_t n, int64_t period, C neutral) {
  if (p == nullptr) return Vec<C, L>{} + neutral;
  if (period == 1) return Vec<C, L>{} + *p;
  const int64_t first = n % period;
  if (first + L <= period) return load<Vec<C, L>>(p + first);
  C out[L];
  copy_periodic(p, first, period, L, out);
  return load<Vec<C, L>>(out);
}

// Bit 0 of each of L bytes, as L bits.
template <int L = kLanes>
TANDEM_INLINE uint16_t bits_of(Bytes<L> mask) {
  const Bytes<L> one = mask & 1;
  uint64_t half[2] = {};
  std::memcpy(half, &one, sizeof(one));
  constexpr uint64_t gather = 0x0102040810204080ull;  // moves bit 0 of byte i to bit 56 + i
  return static_cast<uint16_t>(((half[0] * gather) >> 56) | (((half[1] * gather) >> 56) << 8));
}

template <class B>
TANDEM_INLINE B popcount(B x) {
  x = x - ((x >> 1) & 0x55);
  x = (x & 0x33) + ((x >> 2) & 0x33);
  return (x + (x >> 4)) & 0x0f;
}

// Bits of a bit-packed mask; n is a multiple of L, and half a byte is completed by the thread that began it.
template <int L>
TANDEM_INLINE void store_bits(uint8_t* mask, int64_t n, uint16_t bits) {
  uint8_t* p = mask + n / 8;
  if constexpr (L < 8) {
    *p = static_cast<uint8_t>(n % 8 == 0 ? bits : *p | bits << (n % 8));
  } else {
    std::memcpy(p, &bits, L / 8);
  }
}

// Counts are at most 255, so every type holds them exactly.
template <int L = kLanes>
TANDEM_INLINE void store_counts(void* counts, DType dtype, int64_t n, Bytes<L> value) {
  const auto wide = convert<float, int32_t, L>(convert<int32_t, uint8_t, L>(value));
  switch (dtype) {
    case DType::kFloat32:
      return store(static_cast<float*>(counts) + n, wide);
    case DType::kFloat64:
      return store(static_cast<double*>(counts) + n, convert<double, float, L>(wide));
    case DType::kBFloat16: {
      for (int i = 0; i < L; ++i) static_cast<BFloat16*>(counts)[n + i] = from_float<BFloat16>(wide[i]);
      return;
    }
    case DType::kFloat16: {
      for (int i = 0; i < L; ++i) static_cast<Float16*>(counts)[n + i] = from_float<Float16>(wide[i]);
      return;
    }
  }
}

// The state of neurons [n, n + L) during a window.
template <class C, int L = kLanes>
struct NeuronLanes {
  Vec<C, L> v, z, scale, k, residual_scale;
  Bytes<L> count;

  TANDEM_INLINE void begin(const NeuronArgs<C>& a, int64_t n) {
    z = Vec<C, L>{};
    count = Bytes<L>{};
    v = load_periodic<C, L>(a.v_init, n, a.v_init_size, C(0));
    scale = load_periodic<C, L>(a.scale, n, a.channels, C(1));
    k = load_periodic<C, L>(a.shift, n, a.channels, C(0)) / static_cast<C>(a.steps);
    residual_scale = load_periodic<C, L>(a.residual_scale, n, a.channels, C(1));
  }

  // The spikes of the residual in plane p, for residual(); zero where it has none.
  TANDEM_INLINE Int<C, L> residual_plane(const NeuronArgs<C>& a, int64_t n, int p) const {
    if (a.residual_planes == nullptr) return Int<C, L>{};
    return convert<Lane<C>, uint8_t, L>(load<Bytes<L>>(a.residual_planes + p * a.neurons + n));
  }

  // The residual's current at step t of the plane `bytes`.
  TANDEM_INLINE Vec<C, L> residual(const NeuronArgs<C>& a, int64_t n, int t, const Int<C, L>& bytes) const {
    if (a.residual_planes == nullptr) {
      return rounded_mul(residual_scale, load<Vec<C, L>>(a.residual_currents + t * a.neurons + n));
    }
    return rounded_mul(residual_scale, __builtin_convertvector((bytes >> (t & 7)) & 1, Vec<C, L>));
  }

  // One step; sets bit t % 8 of `plane` where the neuron fires.
  TANDEM_INLINE void advance(const NeuronArgs<C>& a, const Vec<C, L>& current, int t, Int<C, L>& plane) {
    z = rounded_add(z, current);
    plane |= step(v, current, a.threshold, a.leak) & (Lane<C>{1} << (t & 7));
  }

  TANDEM_INLINE void end_plane(const NeuronArgs<C>& a, int64_t n, int p, const Int<C, L>& plane) {
    const Bytes<L> bytes = convert<uint8_t, Lane<C>, L>(plane);
    count += popcount(bytes);
    store(a.planes + p * a.neurons + n, bytes);
  }

  // After the last step: gate, counts, mask, membrane potential; "resu" silences the trains already written.
  TANDEM_INLINE void end(const NeuronArgs<C>& a, int64_t n) {
    const Bytes<L> open = convert<uint8_t, Lane<C>, L>(gate_open(z, a.gate, a.threshold * static_cast<C>(a.T)));
    if (a.gate == Gate::kResu) {
      count &= open;
      for (int p = 0; p < (a.T + 7) / 8; ++p) {
        uint8_t* train = a.planes + p * a.neurons + n;
        store(train, load<Bytes<L>>(train) & open);
      }
    }
    if (a.mask != nullptr) store_bits<L>(a.mask, n, bits_of<L>(open));
    if (a.counts != nullptr) store_counts<L>(a.counts, a.counts_dtype, n, count);
    if (a.v != nullptr) store(a.v + n, v);
  }
};

}  // namespace tandem::cpu
