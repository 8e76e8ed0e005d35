// quantise: float32 weights to integers of few bits.
#include "../kernels/product/quantise.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "tensors.h"

namespace tandem::ops {

namespace {

// Returns q, channels-last if the weight is, else contiguous, and step [N].
std::tuple<Tensor, Tensor> quantise(Tensor weight, int64_t bits) {
  TANDEM_CHECK(weight.scalar_type() == ScalarType::Float && weight.dim() >= 2, "weight must be float32 [N, ...], got ",
               shape_text(shape_of(weight)));
  TANDEM_CHECK(bits >= 2 && bits <= 8, "bits must be 2..8, got ", bits);
  const bool in_rows = weight.dim() > 2 && !weight.is_contiguous() && is_channels_last(weight, 1);
  const Tensor dense = in_rows ? weight : to_contiguous(weight);
  const int lead = in_rows ? 1 : static_cast<int>(weight.dim()) - 1;
  Tensor q = empty_channels_last(shape_of(weight), lead, ScalarType::Char, weight);
  Tensor step = empty(weight.size(0), ScalarType::Float, weight);
  const int64_t rows = weight.size(0), size = rows == 0 ? 0 : weight.numel() / rows;
  cpu::quantise(pointer<float>(dense), rows, size, (1 << (bits - 1)) - 1, pointer<int8_t>(q), pointer<float>(step),
                torch_parallel);
  return {q, step};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem, CPU, m) { m.impl("quantise", TORCH_BOX(&quantise)); }

}  // namespace tandem::ops
