// The synapses: spikes times weights. Shared by the plain and the batch-normalised layers.
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
  OptionalTensor digits = std::nullopt;  // what prepare_digits() made of the weight, or it is done when it has to be
};

// The same, checked, and as the kernels take it. Holds the tensors that they read.
class Synapses {
 public:
  explicit Synapses(SynapseInputs inputs);

  int64_t T() const { return in_.T; }
  bool counted() const { return in_.counted; }
  const Tensor& planes() const { return in_.planes; }
  Shape output_shape() const;  // [B, N, spatial...]
  ScalarType counts_type() const;

  // The neurons' spikes, where there is a fused kernel and it is the faster way. False: nothing was written.
  bool fire(const NeuronLayer& neurons);

  // As fire(), before anything is known of scale and shift.
  bool suits(const NeuronLayer& neurons);

  // Makes the digits that will be multiplied, once.
  void prepare();

  // The layer with these neurons, or without any for its product alone; the weight in the order the kernels want.
  Layer layer(const Neuron<float>& neuron);

  // The neurons' spikes by torch's own product and the scan.
  void scan(const NeuronLayer& neurons);

  // The product y [T, B, N, spatial...] in float32 (float64), channels-last, by torch's own product; of planes.
  Tensor currents() const { return currents(in_.planes, in_.T); }

  // The sum of the currents over the window, W c [B, N, spatial...] in float32 (float64), channels-last: by the
  // kernels' exact sums, by torch's product where they have none.
  Tensor window_product();

 private:
  bool is_prepared() const;        // are weights, before they are multiplied
  bool multiply(const Tensor& u);  // of counts, on a GPU: by a kernel, where it is the faster way
  Tensor currents(const Tensor& planes, int64_t T) const;
  Tensor counts_product() const;
  Tensor product_of(const Tensor& images) const;  // [images, K] or [images, C, spatial...]

  SynapseInputs in_;
  cuda::Operand operand_;
  Layer layer_{};
};

}  // namespace tandem::ops
