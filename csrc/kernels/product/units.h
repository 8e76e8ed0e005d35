// The unit of an output's weights, and the weights in that unit: what every way of multiplying starts from.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../cpu/halves.h"
#include "../cpu/vectors.h"

namespace tandem::cpu {

template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const float* p) {
  return load<Vec<float, L>>(p);
}
template <int L>
TANDEM_INLINE Vec<float, L> load_floats(const int8_t* p) {
  return convert<float, int8_t, L>(load<typename Simd<int8_t, L>::type>(p));
}
template <int L, class Half>
TANDEM_INLINE Vec<float, L> load_floats(const Half* p) {
  float out[L];
  for (int i = 0; i < L; ++i) out[i] = to_float(p[i]);
  return load<Vec<float, L>>(out);
}

// 2^n, for the n of a normal number.
TANDEM_INLINE float power_of_two(int n) { return float_of_bits(static_cast<uint32_t>(n + 127) << 23); }

// To the nearest integer, halves away from zero; integers stay what they are whatever their size.
template <class V>
TANDEM_INLINE auto to_fixed(V x) {
  using I = decltype(x < x);
  const I sign = reinterpret_cast<I>(x) & static_cast<int32_t>(0x80000000u);
  const V nearly_half = reinterpret_cast<V>(reinterpret_cast<I>(V{} + 0.49999997f) | sign);
  return __builtin_convertvector(x + nearly_half, I);
}

template <int L, class E>
TANDEM_INLINE Vec<float, L> load_magnitudes(const E* p) {
  return reinterpret_cast<Vec<float, L>>(reinterpret_cast<Int<float, L>>(load_floats<L>(p)) & 0x7fffffff);
}

// The largest magnitude. Those of floats are in the order of their bits, infinity and NaN above all others.
template <int L, class E>
TANDEM_INLINE float largest_magnitude(const E* weights, int64_t size) {
  Int<float, L> most{};
  int64_t k = 0;
  for (; k + L <= size; k += L) {
    const auto bits = reinterpret_cast<Int<float, L>>(load_magnitudes<L>(weights + k));
    most = bits > most ? bits : most;
  }
  int32_t largest = 0;
  for (int i = 0; i < L; ++i) largest = std::max<int32_t>(largest, most[i]);
  for (; k < size; ++k) {
    largest = std::max<int32_t>(largest, reinterpret_cast<Int<float, 1>>(load_magnitudes<1>(weights + k))[0]);
  }
  return float_of_bits(static_cast<uint32_t>(largest));
}

// The sum of the magnitudes, each below 2^20 after the factor and cut off to an integer.
template <int L, class E>
TANDEM_INLINE int64_t magnitude_sum(const E* weights, int64_t size, float factor) {
  int64_t sum = 0, k = 0;
  while (k + L <= size) {
    constexpr int64_t kAtOnce = 2048;  // of which no int32 overflows
    Int<float, L> lanes{};
    for (const int64_t end = std::min(size, k + kAtOnce * L); k + L <= end; k += L) {
      lanes += __builtin_convertvector(load_magnitudes<L>(weights + k) * factor, Int<float, L>);
    }
    for (int i = 0; i < L; ++i) sum += lanes[i];
  }
  for (; k < size; ++k) sum += static_cast<int32_t>(load_magnitudes<1>(weights + k)[0] * factor);
  return sum;
}

// The largest sum of three signed digits to the base 256, as the matrix unit multiplies them.
constexpr int kThreeDigits = 0x7f7f7f;

// The unit of an output's weights, as the exponent of a power of two; false: some weight is not finite. No sum of the
// weights in this unit exceeds int32. It is up to four times larger than that where the weights then are three digits
// to the matrix unit, and not four. Magnitudes are added up as integers, so that their order does not matter.
template <int L, class E>
TANDEM_INLINE bool unit_exponent(const E* weights, int64_t size, int& exponent) {
  exponent = 0;
  if constexpr (sizeof(E) == 1) return true;  // integers
  const float largest = largest_magnitude<L>(weights, size);
  if (!std::isfinite(largest)) return false;
  constexpr int kBits = 20, kLeast = -30;
  int scale = 0;
  std::frexp(largest, &scale);
  scale = std::max(scale, kLeast);
  const int64_t bound = magnitude_sum<L>(weights, size, power_of_two(kBits - scale)) + size + 1;
  const int sum_exponent = 64 - __builtin_clzll(static_cast<uint64_t>((bound - 1) | 1)) - kBits + scale;  // sum < 2^it
  exponent = std::max(sum_exponent, kLeast) - 30;
  for (int spare = 0; spare <= 2; ++spare) {
    if (largest * power_of_two(-exponent - spare) <= kThreeDigits) {
      exponent += spare;
      break;
    }
  }
  return true;
}

}  // namespace tandem::cpu
