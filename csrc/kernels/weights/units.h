// The unit of an output's weights and the integers in that unit, in vectors for the CPU (unit.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../cpu/halves.h"
#include "../cpu/vectors.h"
#include "unit.h"

namespace tandem::cpu {

template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const int8_t* p) {
  return __builtin_convertvector(convert<int32_t, int8_t, L>(load<typename Simd<int8_t, L>::type>(p)), Vec<float, L>);
}

// Rounds to the nearest integer (unit.h).
template <class V>
TANDEM_INLINE auto to_fixed(V x) {
  using I = decltype(x < x);
  const I sign = reinterpret_cast<I>(x) & static_cast<int32_t>(0x80000000u);
  const V nearly_half = reinterpret_cast<V>(reinterpret_cast<I>(V{} + kNearlyHalf) | sign);
  return __builtin_convertvector(x + nearly_half, I);
}

// The largest magnitude, and the sum of the magnitudes times a factor, each truncated to an integer. The sum is valid
// only if these are below 2^20. Magnitudes of floats are in the order of their bits, infinity and NaN above all others.
struct Magnitudes {
  float largest;
  int64_t sum;
};

template <int L, class E>
TANDEM_INLINE Magnitudes measure_magnitudes(const E* weights, int64_t size, float factor) {
  constexpr int64_t kAtOnce = 2048 * L;  // so that no int32 overflows
  typedef typename Simd<uint32_t, L>::type Words;
  Int<L> most{};
  Words lanes{};
  const auto add = [&](const E* some) TANDEM_INLINE_LAMBDA {
    const auto magnitudes = reinterpret_cast<Int<L>>(load_floats<L>(some)) & 0x7fffffff;
    most = magnitudes > most ? magnitudes : most;
    const auto scaled = reinterpret_cast<Vec<float, L>>(magnitudes) * factor;
    lanes += reinterpret_cast<Words>(__builtin_convertvector(scaled, Int<L>));
  };
  Magnitudes seen{};
  for (int64_t k = 0; k < size;) {
    for (const int64_t end = std::min(size / L * L, k + kAtOnce); k < end; k += L) add(weights + k);
    if (size - k < L) {
      E rest[L]{};
      std::copy(weights + k, weights + size, rest);
      add(rest);
      k = size;
    }
    for (int i = 0; i < L; ++i) seen.sum += static_cast<int32_t>(lanes[i]);
    lanes = Words{};
  }
  int32_t largest = 0;
  for (int i = 0; i < L; ++i) largest = std::max<int32_t>(largest, most[i]);
  seen.largest = float_of_bits(static_cast<uint32_t>(largest));
  return seen;
}

// The unit of an output's weights (unit.h), and the largest magnitude among them.
struct OutputUnit {
  bool finite = true;
  int exponent = 0;
  float largest = 0;
};

// `scale` is a guess on entry: outputs of a layer are similar, so most weights are read only once. `half`: they are
// weights of 16 bits, or the values of such.
template <int L, class E>
TANDEM_INLINE OutputUnit measure_unit(const E* weights, int64_t size, int& scale, bool half = sizeof(E) == 2) {
  if constexpr (sizeof(E) == 1) return {true, 0, INT8_MAX};  // integers
  const auto measure = [&] { return measure_magnitudes<L>(weights, size, measure_of(scale)); };
  Magnitudes seen = measure();
  const auto largest = static_cast<uint32_t>(bits_of_float(seen.largest));
  if (largest >= kInfinity) return {false};
  const int guess = scale;
  scale = scale_of(largest);
  if (scale != guess) seen = measure();
  return {true, unit_exponent(seen.largest, scale, seen.sum, size, half), seen.largest};
}

}  // namespace tandem::cpu
