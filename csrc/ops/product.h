// The synapses of a layer: spikes times weights, for layers with and without batch normalisation.
#pragma once

#include "../kernels/cpu/workspace.h"
#include "../kernels/layer.h"
#include "neuron.h"

namespace tandem::ops {

// A linear layer (no spatial dimensions) or a convolution of spike trains, as torch passes it.
struct SynapseInputs {
  Tensor stored;  // uint8 [P, B, K] or [P, B, C, spatial...], of this timing
  // T, weight [N, K] or [N, C / groups, kernel...], floating or int8
  TANDEM_PRODUCT_FIELDS(TANDEM_MEMBER)
  TANDEM_CONV_FIELDS(TANDEM_MEMBER)
  Timing timing = Timing::kStep;
  OptionalTensor digits{};  // from frozen_digits; if absent, made when needed
};

// The checked synapses, as the kernels take them. Keeps alive the tensors that the kernels read.
class Synapses {
 public:
  explicit Synapses(SynapseInputs&& inputs);

  int64_t T() const { return in_.T; }
  Timing timing() const { return in_.timing; }
  const Tensor& stored() const { return in_.stored; }
  Shape output_shape() const;  // [B, N, spatial...]
  ScalarType counts_type() const;

  // Runs the neurons.
  void fire(const NeuronLayer& neurons);

  // Prepares the weight: for layers with two products, and on a GPU for all.
  void prepare();

  // The sum of the currents over the window, W c [B, N, spatial...] in float32, channels-last.
  Tensor window_product();

 private:
  // The layer with these neurons, or with none but their window.
  Layer layer(const Neuron& neuron);
  Layer window_layer() { return layer({.T = static_cast<int32_t>(in_.T), .timing = in_.timing}); }

  SynapseInputs in_;
  Layer layer_{};
  cpu::Workspace workspace_;
};

}  // namespace tandem::ops
