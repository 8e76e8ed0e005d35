// Reads and writes numbers of the kernels' element types.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/neuron/if_neuron.h"

namespace tandem::test {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

inline double read(const void* data, DType dtype, int64_t i) {
  const auto* p = static_cast<const char*>(data) + i * size_of(dtype);
  const auto as = [p](auto value) {
    std::memcpy(&value, p, sizeof(value));
    return value;
  };
  switch (dtype) {
    case DType::kFloat64:
      return as(double{});
    case DType::kFloat32:
      return as(float{});
    case DType::kFloat16: {
      const int bits = as(uint16_t{}), exponent = bits >> 10 & 31, fraction = bits & 1023;
      const double size = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                          : exponent == 0 ? std::ldexp(fraction, -24)
                                          : std::ldexp(1024 + fraction, exponent - 25);
      return bits & 0x8000 ? -size : size;
    }
    default: {
      const uint32_t bits = static_cast<uint32_t>(as(uint16_t{})) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    }
  }
}

// The float16 nearest to a value that is not infinite, ties to even.
inline uint16_t half_of(double value) {
  if (std::isnan(value)) return 0x7e00;
  const double size = std::fabs(value);
  const int exponent = size == 0 ? -14 : std::max(-14, std::ilogb(size));
  const double fraction = std::nearbyint(std::ldexp(size, 10 - exponent));  // 1024..2048, less if subnormal
  const int bits = (exponent + 14) * 1024 + static_cast<int>(std::min(fraction, 65536.0));
  return static_cast<uint16_t>(std::min(bits, 31 * 1024) | (std::signbit(value) ? 0x8000 : 0));
}

// Encodes `values` in another type. bfloat16 is truncated: the result is a bfloat16 number all the same.
inline std::vector<char> encode(const std::vector<double>& values, DType dtype) {
  std::vector<char> out(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    char* p = out.data() + i * size_of(dtype);
    const double value = values[i];
    const float single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof(bits));
    const uint16_t upper = static_cast<uint16_t>(bits >> 16);
    if (dtype == DType::kInt8) *p = static_cast<char>(static_cast<int8_t>(value));
    if (dtype == DType::kFloat64) std::memcpy(p, &value, sizeof(value));
    if (dtype == DType::kFloat32) std::memcpy(p, &single, sizeof(single));
    if (dtype == DType::kFloat16) {
      const uint16_t half = half_of(single);
      std::memcpy(p, &half, sizeof(half));
    }
    if (dtype == DType::kBFloat16) std::memcpy(p, &upper, sizeof(upper));
  }
  return out;
}

// Whether a and b have equal bits; all NaNs count as equal.
template <class C>
bool same(C a, C b) {
  return std::memcmp(&a, &b, sizeof(C)) == 0 || (std::isnan(a) && std::isnan(b));
}

}  // namespace tandem::test
