// The neurons of an op: checks their arguments, allocates their outputs, and makes the kernels' arguments.
#pragma once

#include <tuple>

#include "../kernels/neuron/scan.h"
#include "fields.h"
#include "tensors.h"

namespace tandem::ops {

// The arguments after the currents that ops share, in the order of their schemas.
struct NeuronInputs {
  TANDEM_SCALED_NEURON_FIELDS(TANDEM_MEMBER)
};

// The type for counts up to T: `type`, or float32 if `type` is a half type that does not represent them exactly.
ScalarType exact_counts(ScalarType type, int64_t T);

using NeuronOutputs =
    std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, Tensor>;  // stored, counts, mask, v, bad

// A layer of neurons of shape [B, *features] over T steps, ready for a kernel. Keeps alive every tensor that the kernel
// reads.
class NeuronLayer {
 public:
  NeuronLayer(NeuronInputs&& inputs, const Shape& shape, int64_t T, ScalarType counts_type, const Tensor& device_of);

  Neuron args() const;

  int64_t neurons() const { return neurons_; }
  NeuronOutputs outputs() const { return {*stored_, counts_, mask_, v_, *bad_}; }

  // Replaces scale and shift: batch normalisation knows them only after the product.
  void set_affine(const Tensor& scale, const Tensor& shift) { in_.scale = scale, in_.shift = shift; }

 private:
  void prepare_affine();
  void prepare_residual();
  void prepare_v_init();
  void prepare_bad();

  NeuronInputs in_;  // its tensors as the kernels read them
  Timing timing_;
  Shape shape_;
  int64_t T_, neurons_, channels_;
  float start_ = 0;  // the potential before the first step, without v_init
  ScalarType counts_type_;
  Tensor device_of_;
  OptionalTensor stored_, bad_;  // never absent; a Tensor cannot be made without an allocation
  OptionalTensor counts_, mask_, v_;
};

// planes [P, B, *features] -> counts uint8 [1, B, *features], channels-last.
Tensor count_bytes(Tensor planes);

// counts uint8 [1, B, *features] -> planes [P, B, *features] of bursts, channels-last.
Tensor burst_planes(Tensor counts, int64_t T);

// Runs the neurons on channels-last currents.
void run_scan(const Tensor& currents, Source source, const NeuronLayer& layer);

}  // namespace tandem::ops
