// float32 weights as digits, which Operand::kFloat32 multiplies: in the units and integers that cpu::prepare() states.
#pragma once

#include "../layer.h"

namespace tandem::cuda {

// prepare() writes prepared_size() bytes, 16-byte aligned, of float32 weights in any order. They depend on the weights
// and the geometry but for batch, height, width, stride, padding and dilation.
int64_t prepared_size(const Geometry& geometry);
int prepare(const Geometry& geometry, const Weights& weights, void* memory, void* stream);

constexpr int kMostDigits = 4;

// How they lie in memory. Of each output its digits, the lowest first, each a row of all inputs in the order of a
// stage: tap, channel; what an integer of 1 is worth; and how many digits there are. Others are not written.
struct DigitMemory {
  int64_t outputs, row;  // bytes, filled up with zeros for copies of sixteen

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
