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
// Measures magnitudes, L weights at a time.
template <int L>
struct MagnitudeSums {
  static constexpr int64_t kAtOnce = 2048;  // calls of add() between two flush(), so that no int32 overflows

  Int<float, L> most{};
  typename Simd<uint32_t, L>::type lanes{};
  int64_t sum = 0;

  TANDEM_INLINE void add(const Vec<float, L>& weights, float factor) {
    const auto magnitudes = reinterpret_cast<Int<float, L>>(weights) & 0x7fffffff;
    most = magnitudes > most ? magnitudes : most;
    lanes += reinterpret_cast<decltype(lanes)>(
        __builtin_convertvector(reinterpret_cast<Vec<float, L>>(magnitudes) * factor, Int<float, L>));
  }
  TANDEM_INLINE void flush() {
    for (int i = 0; i < L; ++i) sum += static_cast<int32_t>(lanes[i]);
    lanes = decltype(lanes){};
  }
  TANDEM_INLINE Magnitudes result() {
    flush();
    int32_t largest = 0;
    for (int i = 0; i < L; ++i) largest = std::max<int32_t>(largest, most[i]);
    return {float_of_bits(static_cast<uint32_t>(largest)), sum};
  }
};

template <int L, class E>
TANDEM_INLINE Magnitudes measure_magnitudes(const E* weights, int64_t size, float factor) {
  MagnitudeSums<L> sums;
  MagnitudeSums<1> rest;
  int64_t k = 0;
  while (k + L <= size) {
    for (const int64_t end = std::min(size, k + sums.kAtOnce * L); k + L <= end; k += L) {
      sums.add(load_floats<L>(weights + k), factor);
    }
    sums.flush();
  }
  for (; k < size; ++k) rest.add(load_floats<1>(weights + k), factor);
  const Magnitudes whole = sums.result(), others = rest.result();
  const bool within = bits_of_float(whole.largest) >= bits_of_float(others.largest);
  return {within ? whole.largest : others.largest, whole.sum + others.sum};
}

// Sets the exponent of the unit of an output's weights (unit.h). Returns false if a weight is not finite. `scale` is a
// guess on entry: outputs of a layer are similar, so most weights are read only once. `half`: they
// are weights of 16 bits, or the values of such.
template <int L, class E>
TANDEM_INLINE bool unit_exponent(const E* weights, int64_t size, int& exponent, int& scale,
                                 bool half = sizeof(E) == 2) {
  exponent = 0;
  if constexpr (sizeof(E) == 1) return true;  // integers
  const auto measure = [&] { return measure_magnitudes<L>(weights, size, measure_of(scale)); };
  Magnitudes seen = measure();
  const auto largest = static_cast<uint32_t>(bits_of_float(seen.largest));
  if (largest >= kInfinity) return false;
  const int guess = scale;
  scale = scale_of(largest);
  if (scale != guess) seen = measure();
  exponent = tandem::unit_exponent(seen.largest, scale, seen.sum, size, half);
  return true;
}

}  // namespace tandem::cpu
