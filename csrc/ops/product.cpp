// linear_if, conv_if: spikes in, spikes out.
#include "product.h"

#include <torch/csrc/stable/library.h>

#include "aten.h"
#include "bits.h"
#include "scan.h"

namespace tandem::ops {

void Synapses::check() const {
  check_planes(planes, T, "planes");
  kernel_dtype(weight, "weight");
  check_same_device(weight, planes, "weight");
  TANDEM_CHECK(weight.dim() >= 2 && weight.dim() <= 4 && planes.dim() == weight.dim() + 1,
               "planes and weight must be [P, B, K] and [N, K], or [P, B, C, *] and [N, C / groups, *]; got ",
               shape_text(shape_of(planes)), " and ", shape_text(shape_of(weight)));
  TANDEM_CHECK(groups >= 1 && planes.size(2) == weight.size(1) * groups && weight.size(0) % groups == 0,
               "weight ", shape_text(shape_of(weight)), " with groups = ", groups, " does not fit planes ",
               shape_text(shape_of(planes)));
  const auto spatial = static_cast<size_t>(weight.dim() - 2);
  TANDEM_CHECK(stride.size() == spatial && padding.size() == spatial && dilation.size() == spatial,
               "stride, padding and dilation must have ", spatial, " elements");
  for (size_t d = 0; d < spatial; ++d) {
    TANDEM_CHECK(stride[d] >= 1, "stride must be at least 1, got ", stride[d]);
    TANDEM_CHECK(dilation[d] >= 1, "dilation must be at least 1, got ", dilation[d]);
    TANDEM_CHECK(padding[d] >= 0, "padding must not be negative, got ", padding[d]);
    TANDEM_CHECK(planes.size(3 + d) + 2 * padding[d] >= dilation[d] * (weight.size(2 + d) - 1) + 1,
                 "the kernel is larger than the padded input");
  }
}

Shape Synapses::output_shape() const {
  Shape shape{planes.size(1), weight.size(0)};
  for (size_t d = 0; d < stride.size(); ++d) {
    const int64_t reach = dilation[d] * (weight.size(2 + d) - 1) + 1;
    shape.push_back((planes.size(3 + d) + 2 * padding[d] - reach) / stride[d] + 1);
  }
  return shape;
}

Tensor Synapses::currents() const {
  const ScalarType compute = compute_type(weight.scalar_type());
  const Tensor wide = aten::to_type(weight, compute);
  const Tensor spikes = unpack_spikes(planes, T, compute);
  if (is_linear()) return to_channels_last(aten::linear(spikes, wide), 2);
  Shape shape = output_shape();
  shape.insert(shape.begin(), T);
  if (weight.numel() == 0) {  // torch's convolution gets the shape of this case wrong
    Tensor silence = empty_channels_last(shape, 2, compute, planes);
    torch::stable::fill_(silence, 0.0);
    return silence;
  }
  Shape batched = shape_of(spikes);
  batched.erase(batched.begin());
  batched[0] *= T;
  const Tensor images = view_channels_last(spikes, batched, 1);
  const Tensor out = to_channels_last(aten::convolution(images, wide, stride, padding, dilation, groups), 1);
  return view_channels_last(out, shape, 2);
}

namespace {

NeuronOutputs layer_if(const Synapses& synapses, const NeuronInputs& inputs) {
  synapses.check();
  const NeuronLayer layer(inputs, synapses.output_shape(), synapses.T, synapses.weight.scalar_type(),
                          synapses.planes);
  if (layer.neurons() > 0) run_scan(synapses.currents(), Source::kTrain, layer);
  return layer.outputs();
}

NeuronOutputs linear_if(Tensor planes, int64_t T, Tensor weight, OptionalTensor scale, OptionalTensor shift,
                        OptionalTensor residual, OptionalTensor residual_scale, OptionalTensor v_init, int64_t steps,
                        double threshold, double leak, std::string gate, bool train, bool return_v) {
  return layer_if({planes, T, weight, {}, {}, {}},
                  {scale, shift, residual, residual_scale, v_init, steps, threshold, leak, gate, train, return_v});
}

NeuronOutputs conv_if(Tensor planes, int64_t T, Tensor weight, Shape stride, Shape padding, Shape dilation,
                      int64_t groups, OptionalTensor scale, OptionalTensor shift, OptionalTensor residual,
                      OptionalTensor residual_scale, OptionalTensor v_init, int64_t steps, double threshold,
                      double leak, std::string gate, bool train, bool return_v) {
  return layer_if({planes, T, weight, stride, padding, dilation, groups},
                  {scale, shift, residual, residual_scale, v_init, steps, threshold, leak, gate, train, return_v});
}

}  // namespace

#define TANDEM_IMPLEMENT(key)                    \
  STABLE_TORCH_LIBRARY_IMPL(tandem, key, m) {    \
    m.impl("linear_if", TORCH_BOX(&linear_if));  \
    m.impl("conv_if", TORCH_BOX(&conv_if));      \
  }
TANDEM_IMPLEMENT(CPU)
#ifdef TANDEM_WITH_CUDA
TANDEM_IMPLEMENT(CUDA)
#endif

}  // namespace tandem::ops
