// linear_if, conv_if: spikes in, spikes out.
#include "product.h"

#include <torch/csrc/stable/library.h>

#include "aten.h"
#include "bits.h"
#include "scan.h"

namespace tandem::ops {

namespace {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // sizes of windows are computed without a thought of overflow

bool is_integer(const Tensor& weight) { return weight.scalar_type() == ScalarType::Char; }

void check_range(int64_t value, int64_t least, const char* name) {
  TANDEM_CHECK(value >= least && value <= kMostPixels, name, " must be ", least, "..", kMostPixels, ", got ", value);
}

}  // namespace

void Synapses::check() const {
  TANDEM_CHECK(precision == "highest" || precision == "high" || precision == "medium",
               "precision must be \"highest\", \"high\" or \"medium\", got \"", precision, "\"");
  check_planes(planes, T, "planes");
  if (!is_integer(weight)) kernel_dtype(weight, "weight");
  check_same_device(weight, planes, "weight");
  TANDEM_CHECK(weight.dim() >= 2 && weight.dim() <= 4 && planes.dim() == weight.dim() + 1,
               "planes and weight must be [P, B, K] and [N, K], or [P, B, C, *] and [N, C / groups, *]; got ",
               shape_text(shape_of(planes)), " and ", shape_text(shape_of(weight)));
  check_range(groups, 1, "groups");
  TANDEM_CHECK(planes.size(2) == weight.size(1) * groups && weight.size(0) % groups == 0, "weight ",
               shape_text(shape_of(weight)), " with groups = ", groups, " does not fit planes ",
               shape_text(shape_of(planes)));
  const auto spatial = static_cast<size_t>(weight.dim() - 2);
  TANDEM_CHECK(stride.size() == spatial && padding.size() == spatial && dilation.size() == spatial,
               "stride, padding and dilation must have ", spatial, " elements");
  for (size_t d = 0; d < spatial; ++d) {
    check_range(stride[d], 1, "stride");
    check_range(dilation[d], 1, "dilation");
    check_range(padding[d], 0, "padding");
    const int64_t reach = dilation[d] * (weight.size(2 + d) - 1) + 1, padded = planes.size(3 + d) + 2 * padding[d];
    TANDEM_CHECK(padded >= reach, "weight: its window reaches over ", reach, " positions, the planes have ", padded,
                 " with their padding");
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

ScalarType Synapses::counts_type() const { return is_integer(weight) ? ScalarType::Float : weight.scalar_type(); }

Tensor Synapses::product_of(const Tensor& images) const {
  const Tensor wide = aten::to_type(weight, images.scalar_type());
  if (is_linear()) return aten::linear(images, wide);
  if (weight.numel() == 0) {  // torch's convolution gets the shape of this case wrong
    Shape shape = output_shape();
    shape[0] = images.size(0);
    const Tensor silence = empty_channels_last(shape, 1, images.scalar_type(), planes);
    torch::stable::fill_(silence, 0.0);
    return silence;
  }
  return to_channels_last(aten::convolution(images, wide, stride, padding, dilation, groups), 1);
}

Tensor Synapses::currents() const {
  const Tensor spikes = unpack_spikes(planes, T, compute_type(weight.scalar_type()));
  Shape batched = shape_of(spikes);
  batched.erase(batched.begin());
  batched[0] *= T;
  return view_channels_last(product_of(view_channels_last(spikes, batched, 1)), prepend(T, output_shape()), 2);
}

Tensor Synapses::window_sum() const { return product_of(count_spikes(planes, compute_type(weight.scalar_type()))); }

namespace {

cuda::Weights weights_of(ScalarType type, const std::string& precision) {
  if (type == ScalarType::Half) return cuda::Weights::kFloat16;
  if (type == ScalarType::BFloat16) return cuda::Weights::kBFloat16;
  if (type == ScalarType::Char) return cuda::Weights::kInt8;
  if (precision == "high") return cuda::Weights::kFloat32High;
  return precision == "medium" ? cuda::Weights::kFloat32Medium : cuda::Weights::kFloat32;
}

}  // namespace

FusedSynapses::FusedSynapses(const Synapses& s)
    : planes_(to_channels_last(s.planes, 2)),
      weight_(on_gpu(s.weight) ? s.weight : aten::to_type(s.weight, s.counts_type())),
      weights_(weights_of(s.weight.scalar_type(), s.precision)) {
  const auto spatial = static_cast<int>(s.stride.size());
  product_.planes = static_cast<const uint8_t*>(planes_.data_ptr());
  product_.batch = s.planes.size(1);
  product_.channels = s.planes.size(2);
  product_.outputs = s.weight.size(0);
  product_.groups = s.groups;
  if (!on_gpu(weight_)) product_.weight_dtype = kernel_dtype(weight_, "weight");
  // On the CPU a weight that is channels-last already is taken as it is, any other as contiguous.
  product_.weight_channels_last =
      on_gpu(weight_) || (!s.is_linear() && s.weight.size(1) > 1 && is_channels_last(weight_, 1));
  int64_t size[2] = {1, 1};
  for (int axis = 0; axis < 2; ++axis) {
    const int d = axis - (2 - spatial);  // a line is an image of height 1
    size[axis] = d < 0 ? 1 : s.planes.size(3 + d);
    product_.kernel[axis] = d < 0 ? 1 : s.weight.size(2 + d);
    product_.stride[axis] = d < 0 ? 1 : s.stride[d];
    product_.padding[axis] = d < 0 ? 0 : s.padding[d];
    product_.dilation[axis] = d < 0 ? 1 : s.dilation[d];
  }
  product_.height = size[0];
  product_.width = size[1];
}

const SpikeProduct& FusedSynapses::product() {
  const bool in_rows = product_.weight_channels_last && weight_.dim() > 2;
  weight_ = in_rows ? to_channels_last(weight_, 1) : to_contiguous(weight_);
  product_.weight = weight_.data_ptr();
  return product_;
}

bool FusedSynapses::suit([[maybe_unused]] const NeuronLayer& layer) const {
  if (weight_.scalar_type() == ScalarType::Double) return false;
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(weight_)) {
    return cuda::has_product_if(product_, weights_, layer.args<float>()) &&
           cuda::favours_product_if(product_, weights_, layer.args<float>().T);
  }
#endif
  return true;
}

bool FusedSynapses::fire(const NeuronLayer& layer) {
  if (!suit(layer)) return false;
  const SpikeProduct& read = product();
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(weight_)) {
    launch(weight_, "product_if",
           [&](void* stream) { return cuda::product_if(read, weights_, layer.args<float>(), stream); });
    return true;
  }
#endif
  return cpu::product_if(read, layer.args<float>(), torch_parallel);
}

namespace {

NeuronOutputs layer_if(const Synapses& synapses, const NeuronInputs& inputs) {
  synapses.check();
  const NeuronLayer layer(inputs, synapses.output_shape(), synapses.T, synapses.counts_type(), synapses.planes);
  if (layer.neurons() > 0 && !FusedSynapses(synapses).fire(layer)) {
    run_scan(synapses.currents(), Source::kTrain, layer);
  }
  return layer.outputs();
}

NeuronOutputs linear_if(Tensor planes, int64_t T, Tensor weight, std::string precision, OptionalTensor scale,
                        OptionalTensor shift, OptionalTensor residual, OptionalTensor residual_scale,
                        OptionalTensor v_init, int64_t steps, double threshold, double leak, std::string gate,
                        bool train, bool return_v) {
  return layer_if({planes, T, weight, precision, {}, {}, {}},
                  {scale, shift, residual, residual_scale, v_init, steps, threshold, leak, gate, train, return_v});
}

NeuronOutputs conv_if(Tensor planes, int64_t T, Tensor weight, std::string precision, Shape stride, Shape padding,
                      Shape dilation, int64_t groups, OptionalTensor scale, OptionalTensor shift,
                      OptionalTensor residual, OptionalTensor residual_scale, OptionalTensor v_init, int64_t steps,
                      double threshold, double leak, std::string gate, bool train, bool return_v) {
  return layer_if({planes, T, weight, precision, stride, padding, dilation, groups},
                  {scale, shift, residual, residual_scale, v_init, steps, threshold, leak, gate, train, return_v});
}

}  // namespace

#define TANDEM_IMPLEMENT(key)                   \
  STABLE_TORCH_LIBRARY_IMPL(tandem, key, m) {   \
    m.impl("linear_if", TORCH_BOX(&linear_if)); \
    m.impl("conv_if", TORCH_BOX(&conv_if));     \
  }
TANDEM_IMPLEMENT(CPU)
#ifdef TANDEM_WITH_CUDA
TANDEM_IMPLEMENT(CUDA)
#endif

}  // namespace tandem::ops
