// Vectors of L lanes, by default sixteen, in GCC's vector extension.
//
// GCC compares vectors wider than the processor's lane by lane, so compute-bound kernels choose L = 16, 8 or 4 floats
// by capability.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "capability.h"
#include "halves.h"

#if TANDEM_MULTIVERSION
#include <emmintrin.h>
#endif

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
template <int L = kLanes>
using Int = typename Simd<int32_t, L>::type;
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

// Loads the first `lanes` elements; the other lanes are zero.
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

// Converts lane by lane. A loop, because __builtin_convertvector gives scalar code where sizes differ.
template <class To, class From, int L>
TANDEM_INLINE typename Simd<To, L>::type convert(typename Simd<From, L>::type x) {
  From in[L];
  To out[L];
  std::memcpy(in, &x, sizeof(in));
  for (int i = 0; i < L; ++i) out[i] = static_cast<To>(in[i]);
  return load<typename Simd<To, L>::type>(out);
}

// L elements as float32.
template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const float* p) {
  return load<Vec<float, L>>(p);
}
template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const BFloat16* p) {
  const auto words = convert<int32_t, uint16_t, L>(load<typename Simd<uint16_t, L>::type>(p));
  return reinterpret_cast<Vec<float, L>>(words << 16);
}
template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const Float16* p) {
  float out[L];
  for (int i = 0; i < L; ++i) out[i] = to_float(p[i]);
  return load<Vec<float, L>>(out);
}

template <class V, size_t... lanes>
TANDEM_INLINE auto join_lanes(V low, V high, std::index_sequence<lanes...>) {
  return __builtin_shufflevector(low, high, lanes...);
}

// Joins two halves in registers: through memory, the load would wait for the stores of the halves.
template <class E, int L>
TANDEM_INLINE typename Simd<E, L>::type join(typename Simd<E, L / 2>::type low, typename Simd<E, L / 2>::type high) {
  return join_lanes(low, high, std::make_index_sequence<L>());
}

// The low bytes of sixteen integers in vectors of L lanes.
template <int L>
TANDEM_INLINE ByteLanes low_bytes(const Int<L> (&parts)[kLanes / L]) {
#if TANDEM_MULTIVERSION
  if constexpr (L < kLanes) {
    __m128i words[4];
    std::memcpy(words, parts, sizeof(words));
#pragma GCC unroll 4
    for (__m128i& word : words) word = _mm_and_si128(word, _mm_set1_epi32(0xff));
    return reinterpret_cast<ByteLanes>(
        _mm_packus_epi16(_mm_packs_epi32(words[0], words[1]), _mm_packs_epi32(words[2], words[3])));
  }
#endif
  Int<> all;
  std::memcpy(&all, parts, sizeof(all));
  return convert<uint8_t, int32_t, kLanes>(all);
}

// Sixteen bytes as integers in vectors of L lanes.
template <int L>
TANDEM_INLINE void widen(ByteLanes bytes, Int<L> (&parts)[kLanes / L]) {
#if TANDEM_MULTIVERSION
  if constexpr (L < kLanes) {
    const auto x = reinterpret_cast<__m128i>(bytes), zero = _mm_setzero_si128();
    const __m128i halves[2] = {_mm_unpacklo_epi8(x, zero), _mm_unpackhi_epi8(x, zero)};
    Int<4> words[4];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      words[2 * i] = reinterpret_cast<Int<4>>(_mm_unpacklo_epi16(halves[i], zero));
      words[2 * i + 1] = reinterpret_cast<Int<4>>(_mm_unpackhi_epi16(halves[i], zero));
    }
    if constexpr (L == 4) {
      std::memcpy(parts, words, sizeof(words));
    } else {
      parts[0] = join<int32_t, L>(words[0], words[1]);
      parts[1] = join<int32_t, L>(words[2], words[3]);
    }
    return;
  }
#endif
  const auto all = convert<int32_t, uint8_t, kLanes>(bytes);
  std::memcpy(parts, &all, sizeof(all));
}

// Copies elements [first, first + lanes) of a periodic array. Out of line because it is rare and its caller is inlined
// everywhere.
[[gnu::noinline]] inline void copy_periodic(const float* p, int64_t first, int64_t period, int lanes, float* out) {
  for (int64_t i = 0, j = first; i < lanes; ++i, j = j + 1 == period ? 0 : j + 1) out[i] = p[j];
}

// L elements of a periodic array: lane i gets p[(n + i) % period], or the neutral value if p is null.
template <int L>
TANDEM_INLINE Vec<float, L> load_periodic(const float* p, int64_t n, int64_t period, float neutral) {
  if (p == nullptr) return Vec<float, L>{} + neutral;
  if (period == 1) return Vec<float, L>{} + *p;
  const int64_t first = n < period ? n : n % period;
  if (first + L <= period) return load<Vec<float, L>>(p + first);
  float out[L];
  copy_periodic(p, first, period, L, out);
  return load<Vec<float, L>>(out);
}

// Bit 0 of each byte.
TANDEM_INLINE uint16_t bits_of(ByteLanes mask) {
#if TANDEM_MULTIVERSION
  return static_cast<uint16_t>(_mm_movemask_epi8(_mm_slli_epi16(reinterpret_cast<__m128i>(mask), 7)));
#else
  const ByteLanes one = mask & 1;
  uint64_t half[2];
  std::memcpy(half, &one, sizeof(one));
  constexpr uint64_t gather = 0x0102040810204080ull;  // moves bit 0 of byte i to bit 56 + i
  return static_cast<uint16_t>(((half[0] * gather) >> 56) | (((half[1] * gather) >> 56) << 8));
#endif
}

// Whether any bit is set in a vector of 16 bytes or more.
template <class V>
TANDEM_INLINE bool any(const V& bits) {
  typedef typename Simd<uint64_t, 2>::type Words;
  Words words[sizeof(V) / sizeof(Words)], all{};
  std::memcpy(words, &bits, sizeof(V));
  for (const Words& word : words) all |= word;
  return (all[0] | all[1]) != 0;
}

template <class B>
TANDEM_INLINE B popcount(B x) {
  x = x - ((x >> 1) & 0x55);
  x = (x & 0x33) + ((x >> 2) & 0x33);
  return (x + (x >> 4)) & 0x0f;
}

// Writes bits [n, n + lanes) of a bit mask, n a multiple of 16. The last byte ends in zeros.
TANDEM_INLINE void store_bits(uint8_t* mask, int64_t n, uint16_t bits, int lanes) {
  uint8_t* p = mask + n / 8;
  if (__builtin_expect(lanes == kLanes, 1)) {
    std::memcpy(p, &bits, 2);
  } else {
    bits &= static_cast<uint16_t>((1u << lanes) - 1);
    for (int i = 0; i < lanes; i += 8) p[i / 8] = static_cast<uint8_t>(bits >> i);
  }
}

// The gate of the backward pass: out = open ? change(grad) : 0 for neurons [begin, end), begin a multiple of 8. Sixteen
// neurons at a time: their bits of the mask become masks of whole elements.
template <class E, class Change>
TANDEM_INLINE void gate_elements(const E* grad, const uint8_t* mask, float* out, int64_t begin, int64_t end,
                                 const Change& change) {
  Int<> lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  int64_t n = begin;
  for (; n + kLanes <= end; n += kLanes) {
    uint16_t open;
    std::memcpy(&open, mask + n / 8, sizeof(open));
    const Int<> shut = ((Int<>{} + open) >> lane & 1) - 1;
    store(out + n, reinterpret_cast<Int<>>(change(load_floats<kLanes>(grad + n))) & ~shut);
  }
  for (; n < end; ++n) out[n] = (mask[n / 8] >> (n % 8)) & 1 ? change(to_float(grad[n])) : 0.f;
}

}  // namespace tandem::cpu
