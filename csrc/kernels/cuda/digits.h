// Weights as signed digits of exact integers, in the units of cpu::prepare(): the one operand of the products.
#pragma once

#include "../layer.h"

namespace tandem::cuda {

// The most digits of a weight (product/unit.h).
constexpr int kMostDigits = 4;
constexpr int most_digits(DType dtype) {
  return dtype == DType::kInt8 ? 1 : dtype == DType::kFloat32 ? kMostDigits : 2;
}

// The layout in memory: digits [outputs, most_digits, row] int8, the lowest digit first, each row with the inputs in
// the order of a stage (tap, channel); units [outputs] float, the value of the integer 1; counts [outputs] int32, the
// number of digits of an output. Digits beyond that number are not written.
struct DigitMemory {
  int64_t outputs, row;  // row: bytes per digit, padded with zeros to a multiple of 16
  int most;              // digits of an output

  DigitMemory(const Geometry& geometry, DType dtype)
      : outputs(geometry.outputs), row((geometry.inputs() + 15) / 16 * 16), most(most_digits(dtype)) {}

  int64_t output_bytes() const { return most * row; }
  int64_t bytes() const { return outputs * (output_bytes() + int64_t{sizeof(float) + sizeof(int32_t)}); }
  template <class Memory>
  auto* units(Memory* memory) const {
    return shifted<float>(memory, outputs * output_bytes());
  }
  template <class Memory>
  auto* counts(Memory* memory) const {
    return shifted<int32_t>(memory, outputs * (output_bytes() + int64_t{sizeof(float)}));
  }

 private:
  template <class E>
  static E* shifted(void* memory, int64_t bytes) {
    return reinterpret_cast<E*>(static_cast<char*>(memory) + bytes);
  }
  template <class E>
  static const E* shifted(const void* memory, int64_t bytes) {
    return reinterpret_cast<const E*>(static_cast<const char*>(memory) + bytes);
  }
};

}  // namespace tandem::cuda
