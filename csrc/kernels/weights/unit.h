// The unit of an output's weights, and their integers in that unit: the one definition for all kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "../neuron/if_neuron.h"

namespace tandem {

// 2^n, for the n of a normal number.
TANDEM_HOST_DEVICE float power_of_two(int n) {
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// to_fixed() adds it, with the sign of the number, and truncates: this rounds to the nearest integer, halves away from
// zero, and leaves integers of any size unchanged.
constexpr float kNearlyHalf = 0.49999997f;

TANDEM_HOST_DEVICE int32_t to_fixed(float x) {
  return static_cast<int32_t>(rounded_add(x, x < 0 ? -kNearlyHalf : kNearlyHalf));
}

// Masks for the bits of a float: magnitudes are in the order of their bits, infinity and NaN above all others.
constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;

// The largest numbers of two and of three signed digits to the base 256, the bytes that tensor cores and the matrix
// unit multiply.
constexpr int kTwoDigits = 0x7f7f, kThreeDigits = 0x7f7f7f;

// The most digits of a weight.
constexpr int kMostDigits = 4;
constexpr int most_digits(DType dtype) {
  return dtype == DType::kInt8 ? 1 : dtype == DType::kFloat32 ? kMostDigits : 2;
}
// The digits of weights from -largest - 1 to largest.
TANDEM_HOST_DEVICE int digits_of(int32_t largest) {
  return largest <= 0x7f ? 1 : largest <= kTwoDigits ? 2 : largest <= kThreeDigits ? 3 : kMostDigits;
}

// Magnitudes are added as integers, so that their order does not matter: times measure_of(scale) and truncated, they
// are below 2^20.
TANDEM_HOST_DEVICE int scale_of(uint32_t largest) {
  const int exponent = static_cast<int>(largest >> 23) - 126;
  return exponent < -30 ? -30 : exponent;
}
TANDEM_HOST_DEVICE float measure_of(int scale) { return power_of_two(20 - scale); }

TANDEM_HOST_DEVICE int bit_length(uint64_t x) {  // of x > 0
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(static_cast<long long>(x));
#else
  return 64 - __builtin_clzll(x);
#endif
}

// The exponent of the unit of `size` finite weights with this sum of truncated magnitudes. No sum of the weights in
// this unit exceeds int32. float32 weights: the unit is up to four times larger than that requires, if the weights then
// have three digits instead of four. `half`, weights of 16 bits: so large that they have two. No unit is below 2^-60.
TANDEM_HOST_DEVICE int unit_exponent(float largest, int scale, int64_t sum, int64_t size, bool half) {
  const int bits = bit_length(static_cast<uint64_t>(sum + size) | 1) - 20 + scale;  // their sum is below 2^bits
  const int exponent = (bits < -30 ? -30 : bits) - 30;
  const int most = half ? 16 : 2;  // the largest weight is below 2^30 in the unit 2^exponent
  for (int spare = 0; spare <= most; ++spare) {
    const float digits = rounded_mul(largest, power_of_two(-exponent - spare));
    if (digits <= static_cast<float>(half ? kTwoDigits : kThreeDigits)) return exponent + spare;
  }
  return exponent;
}

}  // namespace tandem
