// Conversions of bfloat16 and float16 by their bits, because not every compiler has these types. Without branches, so
// that loops over them are vectorised.
#pragma once

#include <cstdint>
#include <cstring>

#include "capability.h"

namespace tandem::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

TANDEM_INLINE uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
TANDEM_INLINE float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

TANDEM_INLINE float to_float(float value) { return value; }

TANDEM_INLINE float to_float(BFloat16 half) { return float_of_bits(uint32_t{half.bits} << 16); }

TANDEM_INLINE float to_float(Float16 half) {
  const uint32_t magnitude = half.bits & 0x7fffu, sign = uint32_t{half.bits & 0x8000u} << 16;
  const uint32_t subnormal = bits_of_float(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + (112u << 23), not_finite = magnitude << 13 | 0x7f800000u;
  return float_of_bits((magnitude < 0x0400u ? subnormal : magnitude < 0x7c00u ? normal : not_finite) | sign);
}

// Rounds to nearest even; NaN stays NaN.
template <class E>
E from_float(float value);

template <>
TANDEM_INLINE float from_float(float value) {
  return value;
}

template <>
TANDEM_INLINE BFloat16 from_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
TANDEM_INLINE Float16 from_float(float value) {
  const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  // 0.5 + magnitude rounds a magnitude below 2^-14 to a multiple of 2^-24.
  const uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t not_finite = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : 0x7c00u;
  const uint32_t half = magnitude < 0x38800000u ? subnormal : magnitude < 0x477ff000u ? normal : not_finite;
  return {static_cast<uint16_t>(half | sign)};
}

}  // namespace tandem::cpu
