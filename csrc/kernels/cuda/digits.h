// Weights as signed digits of exact integers, in the units of cpu::prepare(): the one operand of the products.
#pragma once

#include "../layer.h"
#include "../weights/unit.h"

namespace tandem::cuda {

// The prepared weights in memory: the digits, for each output the lowest first, each a row of the inputs in the order
// of a stage (tap, channel); the units, the value of an output's integer 1; and of each output the number of its
// digits. Digits beyond that number are not written.
struct Digits {
  int8_t* digits;  // [outputs, most_digits, row]; units and counts are [outputs]
  float* units;
  int32_t* counts;
  int64_t row;     // bytes of a digit, padded with zeros to a multiple of 16
  int64_t output;  // bytes of an output
};

inline int64_t digit_bytes(const Geometry& geometry) { return (geometry.inputs() + 15) / 16 * 16; }

inline Digits digits_at(const void* memory, const Geometry& geometry, DType dtype) {
  Digits digits{};
  digits.row = digit_bytes(geometry);
  digits.output = most_digits(dtype) * digits.row;
  digits.digits = static_cast<int8_t*>(const_cast<void*>(memory));
  digits.units = reinterpret_cast<float*>(digits.digits + geometry.outputs * digits.output);
  digits.counts = reinterpret_cast<int32_t*>(digits.units + geometry.outputs);
  return digits;
}

}  // namespace tandem::cuda
