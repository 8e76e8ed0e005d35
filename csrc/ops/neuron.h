// The neurons of an op: checks their arguments, allocates their outputs, and fills in the kernels' arguments.
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
    std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, Tensor>;  // planes, counts, mask, v, bad

// A layer of neurons of shape [B, *features] over T steps, ready for a kernel. Keeps alive every tensor that the kernel
// reads.
class NeuronLayer {
 public:
  NeuronLayer(const NeuronInputs& inputs, const Shape& shape, int64_t T, ScalarType counts_type,
              const Tensor& device_of);

  template <class C>
  const Neuron<C>& args() const;

  int64_t neurons() const { return neurons_; }
  NeuronOutputs outputs() const { return {*planes_, counts_, mask_, v_, *bad_}; }

  // Replaces scale and shift: batch normalisation knows them only after the product.
  void set_affine(const Tensor& scale, const Tensor& shift);

 private:
  // Calls f with the arguments in the type in which potentials are computed.
  template <class F>
  void with_args(const F& f) {
    compute_ == ScalarType::Double ? f(double_args_) : f(float_args_);
  }
  template <class C>
  void fill(Neuron<C>& args, const NeuronInputs& inputs);
  void prepare_residual(const OptionalTensor& residual);
  void prepare_v_init(const OptionalTensor& v_init);
  void prepare_bad(const OptionalTensor& bad);

  Shape shape_;
  int64_t T_, neurons_, channels_;
  bool window_;
  ScalarType compute_, counts_type_;
  Tensor device_of_;
  OptionalTensor scale_, shift_, residual_, residual_scale_, v_init_;
  OptionalTensor planes_, bad_;  // never absent; a Tensor cannot be made without an allocation
  OptionalTensor counts_, mask_, v_;
  Neuron<float> float_args_{};
  Neuron<double> double_args_{};
};

// Runs the neurons on channels-last currents.
template <class C>
void run_scan(const Tensor& currents, Source source, const Neuron<C>& neurons) {
  if (neurons.neurons == 0) return;
  TANDEM_RUN(currents, if_scan, currents.data_ptr(), kernel_dtype(currents, "currents"), source, neurons);
}
void run_scan(const Tensor& currents, Source source, const NeuronLayer& layer);

}  // namespace tandem::ops
