// The synapses: spikes times weights. Shared by the plain and the batch-normalised layers.
#pragma once

#include "tensors.h"

namespace tandem::ops {

// A linear layer (no spatial dimensions) or a convolution of spike planes.
struct Synapses {
  Tensor planes;  // uint8 [P, B, K] or [P, B, C, spatial...]
  int64_t T;
  Tensor weight;  // [N, K] or [N, C / groups, kernel...]
  Shape stride, padding, dilation;
  int64_t groups = 1;

  void check() const;
  bool is_linear() const { return weight.dim() == 2; }
  Shape output_shape() const;  // [B, N, spatial...]

  // The product y [T, B, N, spatial...] in float32 (float64), channels-last, by torch's own product.
  Tensor currents() const;
};

}  // namespace tandem::ops
