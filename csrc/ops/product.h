// The synapses: spikes times weights. Shared by the plain and the batch-normalised layers.
#pragma once

#include "../kernels/layer.h"
#include "neuron.h"

namespace tandem::ops {

// A linear layer (no spatial dimensions) or a convolution of spike planes.
struct Synapses {
  Tensor planes;  // uint8 [P, B, K] or [P, B, C, spatial...]; counts if `counted`, P = 1
  // T, weight [N, K] or [N, C / groups, kernel...], floating or int8, precision
  TANDEM_PRODUCT_FIELDS(TANDEM_MEMBER)
  Shape stride, padding, dilation;
  int64_t groups = 1;
  bool counted = false;
  OptionalTensor digits = std::nullopt;  // what prepare_digits() made of the weight, or it is done when it has to be

  void check() const;
  bool is_linear() const { return weight.dim() == 2; }
  Shape output_shape() const;  // [B, N, spatial...]
  ScalarType counts_type() const;

  // The product y [T, B, N, spatial...] in float32 (float64), channels-last, by torch's own product; of planes.
  Tensor currents() const;

  // The sum of the currents over the window, W c [B, N, spatial...] in float32 (float64), channels-last.
  Tensor window_product() const;

  // The neurons' spikes by torch's own product and the scan.
  void scan(const NeuronLayer& neurons) const;

 private:
  Tensor counts_product() const;
  Tensor product_of(const Tensor& images) const;  // [images, K] or [images, C, spatial...]
};

// What the kernels of a GPU multiply in place of float32 weights, empty where there is no such thing.
Tensor prepare_digits(const Tensor& weight, int64_t groups);

// The synapses as the fused kernels take them; holds the tensors they point to.
class FusedSynapses {
 public:
  explicit FusedSynapses(const Synapses& synapses);

  // The neurons' spikes, where there is a fused kernel and it is the faster way. False: nothing was written.
  bool fire(const NeuronLayer& neurons);

  // As fire(), before anything is known of scale and shift.
  bool suits(const NeuronLayer& neurons);

  // u, the product of planes that are counts, on the GPU, where there is a kernel and it is the faster way.
  bool multiply(const Tensor& u);

  // Those of prepare_digits(), where they will be multiplied; made once.
  const OptionalTensor& digits();

  // The layer with these neurons, or without any for its product alone; the weight in the order the kernels want.
  Layer layer(const Neuron<float>& neuron);

 private:
  bool is_prepared() const;  // are weights, before they are multiplied

  Tensor planes_, weight_;
  OptionalTensor digits_;
  cuda::Operand operand_{};
  Layer layer_{};
};

}  // namespace tandem::ops
