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
  int64_t units_at() const { return outputs * output_bytes(); }  // bytes before the units
  int64_t bytes() const { return units_at() + outputs * int64_t{sizeof(float) + sizeof(int32_t)}; }
};

}  // namespace tandem::cuda
