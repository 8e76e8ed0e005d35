// The synapses: spikes times weights. Shared by the plain and the batch-normalised layers.
#pragma once

#include "../kernels/spike_product.h"
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

// The synapses as the fused CPU kernels take them; holds the tensors they point to.
class FusedSynapses {
 public:
  explicit FusedSynapses(const Synapses& synapses);

  // Is there a fused kernel for this device and these types? Weights that are not finite still turn it down later.
  static bool exist_for(const Synapses& synapses);

  const SpikeProduct& product() const { return product_; }

 private:
  Tensor planes_, weight_;
  SpikeProduct product_{};
};

}  // namespace tandem::ops
