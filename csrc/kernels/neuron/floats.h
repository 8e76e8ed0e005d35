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

// Where elements from `first` on are written before round_to().
TANDEM_INLINE float* unrounded(void* data, DType dtype, int64_t first, float* scratch) {
  return dtype == DType::kFloat32 ? static_cast<float*>(data) + first : scratch;
}

// Rounds what was written to scratch; of float32 there is nothing left to do.
TANDEM_INLINE void round_to(void* data, DType dtype, int64_t first, int64_t size, const float* scratch) {
  const auto round_all = [&](auto* to) TANDEM_INLINE_LAMBDA {
    for (int64_t i = 0; i < size; ++i) to[first + i] = from_float<std::decay_t<decltype(*to)>>(scratch[i]);
  };
  if (dtype == DType::kBFloat16) round_all(static_cast<BFloat16*>(data));
  if (dtype == DType::kFloat16) round_all(static_cast<Float16*>(data));
}

}  // namespace tandem::cpu
