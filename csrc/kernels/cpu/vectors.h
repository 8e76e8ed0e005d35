// Vectors of L lanes, by default sixteen, in GCC's vector extension.
//
// GCC takes comparisons of vectors wider than the processor's apart, lane by lane, so kernels that compute more than
// they stream choose L = 16, 8 or 4 floats by capability.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

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

// The first `lanes` elements; the others are zero.
template <class V, class E>
TANDEM_INLINE V load_first(const E* p, int lanes) {
  constexpr int L = sizeof(V) / sizeof(E);
  if (__builtin_expect(lanes == L, 1)) return load<V>(p);
  E out[L] = {};
  std::memcpy(out, p, lanes * sizeof(E));
  return load<V>(out);
}

template <class V, class E>
TANDEM_INLINE void store_first(E* p, const V& value, int lanes) {
  constexpr int L = sizeof(V) / sizeof(E);
  if (__builtin_expect(lanes == L, 1)) return store(p, value);
  std::memcpy(p, &value, lanes * sizeof(E));
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

// Is any lane of a mask set?
template <class V>
TANDEM_INLINE bool any(const V& mask) {
  uint64_t words[(sizeof(V) + 7) / 8] = {}, all = 0;
  std::memcpy(words, &mask, sizeof(V));
  for (const uint64_t word : words) all |= word;
  return all != 0;
}

template <class B>
TANDEM_INLINE B popcount(B x) {
  x = x - ((x >> 1) & 0x55);
  x = (x & 0x33) + ((x >> 2) & 0x33);
  return (x + (x >> 4)) & 0x0f;
}

// Writes bits [n, n + lanes) of a bit-packed mask. n is a multiple of L; half a byte is completed by the thread that
// began it, and the last byte ends in zeros.
template <int L>
TANDEM_INLINE void store_bits(uint8_t* mask, int64_t n, uint16_t bits, int lanes) {
  uint8_t* p = mask + n / 8;
  if (lanes < L) bits &= static_cast<uint16_t>((1u << lanes) - 1);
  if constexpr (L < 8) {
    if (lanes > 0) *p = static_cast<uint8_t>(n % 8 == 0 ? bits : *p | bits << (n % 8));
  } else if (__builtin_expect(lanes == L, 1)) {
    std::memcpy(p, &bits, L / 8);
  } else {
    for (int i = 0; i < lanes; i += 8) p[i / 8] = static_cast<uint8_t>(bits >> i);
  }
}

}  // namespace tandem::cpu
