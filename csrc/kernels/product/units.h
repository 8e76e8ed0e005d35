// The unit of an output's weights, and the weights in that unit: what every way of multiplying starts from.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../cpu/halves.h"
#include "../cpu/vectors.h"
#include "unit.h"

namespace tandem::cpu {

template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const float* p) {
  return load<Vec<float, L>>(p);
}
template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const int8_t* p) {
  return __builtin_convertvector(convert<int32_t, int8_t, L>(load<typename Simd<int8_t, L>::type>(p)), Vec<float, L>);
}
template <int L, class Half>
TANDEM_INLINE Vec<float, L> load_floats(const Half* p) {
  float out[L];
  for (int i = 0; i < L; ++i) out[i] = to_float(p[i]);
  return load<Vec<float, L>>(out);
}

// To the nearest integer (unit.h).
template <class V>
TANDEM_INLINE auto to_fixed(V x) {
  using I = decltype(x < x);
  const I sign = reinterpret_cast<I>(x) & static_cast<int32_t>(0x80000000u);
  const V nearly_half = reinterpret_cast<V>(reinterpret_cast<I>(V{} + kNearlyHalf) | sign);
  return __builtin_convertvector(x + nearly_half, I);
}

template <int L, class E>
TANDEM_INLINE Vec<float, L> load_magnitudes(const E* p) {
  return reinterpret_cast<Vec<float, L>>(reinterpret_cast<Int<float, L>>(load_floats<L>(p)) & 0x7fffffff);
}

// The largest magnitude, and the sum of the magnitudes, each cut off to an integer after the factor and to be below
// 2^20 then, or the sum has no meaning. Magnitudes of floats are in the order of their bits, infinity and NaN above all
// others.
struct Magnitudes {
  float largest;
  int64_t sum;
};
template <int L, class E>
TANDEM_INLINE Magnitudes measure_magnitudes(const E* weights, int64_t size, float factor) {
  Int<float, L> most{};
  int64_t sum = 0, k = 0;
  while (k + L <= size) {
    constexpr int64_t kAtOnce = 2048;  // of which no int32 overflows
    typename Simd<uint32_t, L>::type lanes{};
    for (const int64_t end = std::min(size, k + kAtOnce * L); k + L <= end; k += L) {
      const Vec<float, L> magnitudes = load_magnitudes<L>(weights + k);
      const auto bits = reinterpret_cast<Int<float, L>>(magnitudes);
      most = bits > most ? bits : most;
      lanes += reinterpret_cast<decltype(lanes)>(__builtin_convertvector(magnitudes * factor, Int<float, L>));
    }
    for (int i = 0; i < L; ++i) sum += static_cast<int32_t>(lanes[i]);
  }
  int32_t largest = 0;
  for (int i = 0; i < L; ++i) largest = std::max<int32_t>(largest, most[i]);
  for (; k < size; ++k) {
    const Vec<float, 1> magnitude = load_magnitudes<1>(weights + k);
    largest = std::max<int32_t>(largest, reinterpret_cast<Int<float, 1>>(magnitude)[0]);
    sum += __builtin_convertvector(magnitude * factor, Int<float, 1>)[0];
  }
  return {float_of_bits(static_cast<uint32_t>(largest)), sum};
}

// The unit of an output's weights, as the exponent of a power of two (unit.h); false: some weight is not finite.
// Magnitudes are added up as integers, so that their order does not matter. `scale` is a guess on entry: outputs of a
// layer are much alike, and most are read but once.
template <int L, class E>
TANDEM_INLINE bool unit_exponent(const E* weights, int64_t size, int& exponent, int& scale) {
  exponent = 0;
  if constexpr (sizeof(E) == 1) return true;  // integers
  const auto measure = [&] { return measure_magnitudes<L>(weights, size, measure_of(scale)); };
  Magnitudes seen = measure();
  const auto largest = static_cast<uint32_t>(bits_of_float(seen.largest));
  if (largest >= kInfinity) return false;
  const int guess = scale;
  scale = scale_of(largest);
  if (scale != guess) seen = measure();
  exponent = tandem::unit_exponent(seen.largest, scale, seen.sum, size);
  return true;
}

}  // namespace tandem::cpu
