// if_scan, constant_if, impulse_if: currents in, spike trains out.
#include <torch/csrc/stable/library.h>

#include "neuron.h"

namespace tandem::ops {

void run_scan(const Tensor& currents, Source source, const NeuronLayer& layer) {
  in_compute_type(currents.scalar_type(), [&](auto zero) { run_scan(currents, source, layer.args<decltype(zero)>()); });
}

namespace {

NeuronOutputs scan(const Tensor& currents, Source source, int64_t T, const NeuronInputs& inputs) {
  const bool over_time = source == Source::kTrain;
  kernel_dtype(currents, "currents");
  const Shape sizes = shape_of(currents);
  const Shape shape(sizes.begin() + (over_time ? 1 : 0), sizes.end());
  const NeuronLayer layer(inputs, shape, T, currents.scalar_type(), currents);
  run_scan(to_channels_last(currents, over_time ? 2 : 1), source, layer);
  return layer.outputs();
}

NeuronOutputs if_scan(Tensor currents TANDEM_SCALED_NEURON_FIELDS(TANDEM_PARAMETER)) {
  TANDEM_CHECK(currents.dim() >= 2, "currents must be [T, B, *features], got ", shape_text(shape_of(currents)));
  return scan(currents, Source::kTrain, currents.size(0), {TANDEM_SCALED_NEURON_FIELDS(TANDEM_ARGUMENT)});
}

template <Source source>
NeuronOutputs held_if(Tensor current, int64_t T TANDEM_SCALED_NEURON_FIELDS(TANDEM_PARAMETER)) {
  TANDEM_CHECK(current.dim() >= 1, "current must be [B, *features], got a scalar");
  return scan(current, source, T, {TANDEM_SCALED_NEURON_FIELDS(TANDEM_ARGUMENT)});
}

}  // namespace

TANDEM_IMPLEMENT(m.impl("if_scan", TORCH_BOX(&if_scan));
                 m.impl("constant_if", TORCH_BOX((&held_if<Source::kConstant>)));
                 m.impl("impulse_if", TORCH_BOX((&held_if<Source::kImpulse>))))

}  // namespace tandem::ops
