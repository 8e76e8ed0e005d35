// The synapses: spikes times weights. Shared by the plain and the batch-normalised layers.
#pragma once

#include "../kernels/spike_product.h"
#include "neuron.h"

namespace tandem::ops {

// A linear layer (no spatial dimensions) or a convolution of spike planes.
struct Synapses {
  Tensor planes;  // uint8 [P, B, K] or [P, B, C, spatial...]
  int64_t T;
  Tensor weight;          // [N, K] or [N, C / groups, kernel...], floating or int8
  std::string precision;  // "highest", "high" or "medium": how a GPU multiplies float32 weights
  Shape stride, padding, dilation;
  int64_t groups = 1;

  void check() const;
  bool is_linear() const { return weight.dim() == 2; }
  Shape output_shape() const;  // [B, N, spatial...]
  ScalarType counts_type() const;

  // The product y [T, B, N, spatial...] in float32 (float64), channels-last, by torch's own product.
  Tensor currents() const;

  // The sum of the currents over the window, W c [B, N, spatial...], by torch's product of the counts.
  Tensor window_sum() const;

 private:
  Tensor product_of(const Tensor& images) const;  // [images, K] or [images, C, spatial...]
};

// The synapses as the fused kernels take them; holds the tensors they point to.
class FusedSynapses {
 public:
  explicit FusedSynapses(const Synapses& synapses);

  // Is there a fused kernel for these neurons, and is it the faster way? On the CPU weights that are not finite still
  // turn it down later.
  bool suit(const NeuronLayer& layer) const;

  // The neurons' spikes. False: nothing was written.
  bool fire(const NeuronLayer& layer);

  // What the kernels read, the weight in their order.
  const SpikeProduct& product();

 private:
  Tensor planes_, weight_;
  cuda::Weights weights_{};
  SpikeProduct product_{};
};

}  // namespace tandem::ops
