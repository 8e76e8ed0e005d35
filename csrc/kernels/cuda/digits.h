// float32 weights as signed digits for Operand::kFloat32, with the units and integers of cpu::prepare().
#pragma once

#include "../layer.h"

namespace tandem::cuda {

// prepare() converts float32 weights of either layout to prepared_size() bytes at `memory`, 16-byte aligned. The bytes
// depend on the weights and on the geometry except batch, height, width, stride, padding and dilation.
int64_t prepared_size(const Geometry& geometry);
int prepare(const Geometry& geometry, const Weights& weights, void* memory, void* stream);

constexpr int kMostDigits = 4;

// The layout in memory: digits [outputs, kMostDigits, row] int8, the lowest digit first, each row with the inputs in
// the order of a stage (tap, channel); units [outputs] float, the value of the integer 1; counts [outputs] int32, the
// number of digits of an output. Digits beyond that number are not written.
struct DigitMemory {
  int64_t outputs, row;  // row: bytes per digit, padded with zeros to a multiple of 16

  explicit DigitMemory(const Geometry& geometry) : outputs(geometry.outputs), row((geometry.inputs() + 15) / 16 * 16) {}

  int64_t output_bytes() const { return kMostDigits * row; }
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
