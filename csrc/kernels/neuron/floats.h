// Arrays of any DType as float32.
#pragma once

#include "../cpu/halves.h"
#include "if_neuron.h"

namespace tandem::cpu {

// Elements [first, first + size): in place, or in `scratch`.
TANDEM_INLINE const float* floats(const void* data, DType dtype, int64_t first, int64_t size, float* scratch) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data) + first;
  const auto widen_all = [&](const auto* from) TANDEM_INLINE_LAMBDA {
    for (int64_t i = 0; i < size; ++i) scratch[i] = to_float(from[first + i]);
  };
  dtype == DType::kBFloat16 ? widen_all(static_cast<const BFloat16*>(data))
                            : widen_all(static_cast<const Float16*>(data));
  return scratch;
}

// Calls use(zero) with a zero of the type.
template <class Use>
TANDEM_INLINE void of_type(DType dtype, const Use& use) {
  if (dtype == DType::kFloat32) return use(float{});
  if (dtype == DType::kBFloat16) return use(BFloat16{});
  use(Float16{});
}

}  // namespace tandem::cpu
