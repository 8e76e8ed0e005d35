// The synapses of a layer: spikes times weights, for layers with and without batch normalisation.
#pragma once

#include "../kernels/layer.h"
#include "neuron.h"

namespace tandem::ops {

// A linear layer (no spatial dimensions) or a convolution of spike planes, as torch passes it.
struct SynapseInputs {
  Tensor planes;  // uint8 [P, B, K] or [P, B, C, spatial...]; counts if `counted`, P = 1
  // T, weight [N, K] or [N, C / groups, kernel...], floating or int8, precision
  TANDEM_PRODUCT_FIELDS(TANDEM_MEMBER)
  TANDEM_WINDOW_FIELDS(TANDEM_MEMBER)
  bool counted;
  OptionalTensor digits = std::nullopt;  // from frozen_digits; if absent, made when needed
};

// The checked synapses, as the kernels take them. Keeps alive the tensors that the kernels read.
class Synapses {
 public:
  explicit Synapses(SynapseInputs inputs);

  int64_t T() const { return in_.T; }
  bool counted() const { return in_.counted; }
  const Tensor& planes() const { return in_.planes; }
  Shape output_shape() const;  // [B, N, spatial...]
  ScalarType counts_type() const;

  // Runs the fused kernel if there is one and it is the faster way. Returns false if nothing was written.
  bool fire(const NeuronLayer& neurons);

  // Whether fire() would run a kernel. Scale and shift need not be known yet.
  bool suits(const NeuronLayer& neurons);

  // Makes the weight's digits if the kernel needs them and they do not exist.
  void prepare();

  // The layer with these neurons, or with none for window_product(). Puts the weight in the order that the kernels
  // take.
  Layer layer(const Neuron<float>& neuron);

  // Computes the neurons' spikes by torch's own product and the scan.
  void scan(const NeuronLayer& neurons);

  // The product y [T, B, N, spatial...] of the planes by torch, in float32 (float64), channels-last.
  Tensor currents() const { return currents(in_.planes, in_.T); }

  // The sum of the currents over the window, W c [B, N, spatial...] in float32 (float64), channels-last: by the
  // kernels, whose sums are exact, or by torch where there is no kernel.
  Tensor window_product();

 private:
  bool is_prepared() const;        // whether kernels multiply prepared weights
  bool multiply(const Tensor& u);  // multiplies counts on a GPU, if a kernel is the faster way
  Tensor currents(const Tensor& planes, int64_t T) const;
  Tensor counts_product() const;
  Tensor product_of(const Tensor& images) const;  // [images, K] or [images, C, spatial...]

  SynapseInputs in_;
  cuda::Operand operand_;
  Layer layer_{};
};

}  // namespace tandem::ops
