// The arithmetic of batch normalisation on small per-channel tensors, as the forward and the backward pass share it.
#pragma once

#include "tensors.h"

namespace tandem::ops {

// Everything per channel, [channels], in the compute type.
struct BatchNorm {
  Tensor mean, var;     // of the product u, biased
  OptionalTensor gain;  // 0-dim or [channels]: the product is seen as gain u
  OptionalTensor gamma, beta;
  double eps;

  Tensor gain_or_one() const;
  Tensor rstd() const;   // 1 / sqrt(gain^2 var + eps)
  Tensor slope() const;  // gamma rstd
  // The currents' scale and shift: slope gain, and beta - gain mean slope.
  Tensor scale() const;
  Tensor shift() const;
};

}  // namespace tandem::ops
