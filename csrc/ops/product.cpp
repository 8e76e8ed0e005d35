// linear_if, conv_if: spikes in, spikes out.
#include "product.h"

#include <torch/csrc/stable/library.h>

#include "../kernels/cuda/digits.h"
#include "aten.h"
#include "bits.h"
#include "scan.h"

namespace tandem::ops {

namespace {

constexpr int64_t kScannedSteps = 128;             // whose currents are in memory at a time
constexpr int64_t kMostPixels = int64_t{1} << 30;  // sizes of windows are computed without a thought of overflow

bool is_integer(const Tensor& weight) { return weight.scalar_type() == ScalarType::Char; }

void check_range(int64_t value, int64_t least, const char* name) {
  TANDEM_CHECK(value >= least && value <= kMostPixels, name, " must be ", least, "..", kMostPixels, ", got ", value);
}

}  // namespace

void Synapses::check() const {
  TANDEM_CHECK(precision == "highest" || precision == "high" || precision == "medium",
               "precision must be \"highest\", \"high\" or \"medium\", got \"", precision, "\"");
  counted ? check_count_bytes(planes, T, "planes") : check_planes(planes, T, "planes");
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

namespace {

cuda::Operand operand_of(ScalarType type, const std::string& precision) {
  if (type == ScalarType::Half) return cuda::Operand::kFloat16;
  if (type == ScalarType::BFloat16) return cuda::Operand::kBFloat16;
  if (type == ScalarType::Char) return cuda::Operand::kInt8;
  if (precision == "high") return cuda::Operand::kFloat32High;
  return precision == "medium" ? cuda::Operand::kFloat32Medium : cuda::Operand::kFloat32;
}

// What the geometry has of the weight.
void set_weight(Geometry& geometry, const Tensor& weight, int64_t groups) {
  geometry.channels = weight.size(1) * groups;
  geometry.outputs = weight.size(0);
  geometry.groups = groups;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t d = axis + weight.dim() - 2;  // a line is an image of height 1
    geometry.kernel[axis] = d < 2 ? 1 : weight.size(static_cast<int32_t>(d));
  }
}

bool in_rows(const Tensor& weight) { return weight.dim() > 2 && weight.size(1) > 1 && is_channels_last(weight, 1); }

// Bytes of digits.
int64_t digits_size([[maybe_unused]] const Geometry& geometry, [[maybe_unused]] const Tensor& weight) {
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(weight) && weight.scalar_type() == ScalarType::Float) return cuda::prepared_size(geometry);
#endif
  return 0;
}

}  // namespace

Tensor prepare_digits(const Tensor& weight, int64_t groups) {
  TANDEM_CHECK(weight.dim() >= 2 && weight.dim() <= 4, "weight must be [N, K] or [N, C / groups, *], got ",
               shape_text(shape_of(weight)));
  TANDEM_CHECK(groups >= 1 && weight.size(0) % groups == 0, "groups must divide the outputs of weight, got ", groups);
  Geometry geometry{};
  set_weight(geometry, weight, groups);
  Tensor digits = empty(digits_size(geometry, weight), ScalarType::Byte, weight);
#ifdef TANDEM_WITH_CUDA
  if (digits.numel() > 0) {
    const bool last = in_rows(weight);
    const Tensor rows = last ? weight : to_contiguous(weight);
    launch(weight, "prepare", [&](void* stream) {
      return cuda::prepare(geometry, {rows.data_ptr(), DType::kFloat32, last}, digits.data_ptr(), stream);
    });
  }
#endif
  return digits;
}

FusedSynapses::FusedSynapses(const Synapses& s)
    : planes_(to_channels_last(s.planes, 2)),
      weight_(s.weight),
      operand_(operand_of(s.weight.scalar_type(), s.precision)) {
  const auto spatial = static_cast<int>(s.stride.size());
  Geometry& geometry = layer_.geometry;
  layer_.planes = static_cast<const uint8_t*>(planes_.data_ptr());
  geometry.batch = s.planes.size(1);
  set_weight(geometry, s.weight, s.groups);
  layer_.weights.dtype = is_integer(weight_) ? DType::kInt8 : kernel_dtype(weight_, "weight");
  // Where it is prepared, a weight that is channels-last already is taken as it is, any other as contiguous.
  layer_.weights.channels_last = !is_prepared() || in_rows(weight_);
  int64_t size[2] = {1, 1};
  for (int axis = 0; axis < 2; ++axis) {
    const int d = axis - (2 - spatial);  // a line is an image of height 1
    size[axis] = d < 0 ? 1 : s.planes.size(3 + d);
    geometry.stride[axis] = d < 0 ? 1 : s.stride[d];
    geometry.padding[axis] = d < 0 ? 0 : s.padding[d];
    geometry.dilation[axis] = d < 0 ? 1 : s.dilation[d];
  }
  geometry.height = size[0];
  geometry.width = size[1];
  if (s.digits.has_value() && s.digits->numel() > 0) {
    TANDEM_CHECK(s.digits->scalar_type() == ScalarType::Byte && s.digits->is_contiguous() &&
                     reinterpret_cast<uintptr_t>(s.digits->data_ptr()) % 16 == 0 &&
                     s.digits->numel() == digits_size(geometry, weight_),
                 "digits must be what frozen_digits gives for this weight");
    check_same_device(*s.digits, s.planes, "digits");
    if (is_prepared()) digits_ = s.digits;
  }
}

bool FusedSynapses::is_prepared() const { return !on_gpu(weight_) || operand_ == cuda::Operand::kFloat32; }

const OptionalTensor& FusedSynapses::digits() {
  if (!digits_.has_value() && on_gpu(weight_) && is_prepared()) {
    digits_ = prepare_digits(weight_, layer_.geometry.groups);
  }
  return digits_;
}

Layer FusedSynapses::layer(const Neuron<float>& neuron) {
  const bool last = layer_.weights.channels_last && weight_.dim() > 2;
  weight_ = last ? to_channels_last(weight_, 1) : to_contiguous(weight_);
  layer_.weights.data = weight_.data_ptr();
  layer_.prepared = digits().has_value() ? digits_->data_ptr() : nullptr;
  layer_.neuron = neuron;
  return layer_;
}

bool FusedSynapses::suits([[maybe_unused]] const NeuronLayer& neurons) {
  if (weight_.scalar_type() == ScalarType::Double) return false;
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(weight_)) {
    layer_.neuron = neurons.args<float>();
    return cuda::can_run(layer_, operand_) && cuda::prefers_run(layer_, operand_);
  }
#endif
  return true;
}

#ifdef TANDEM_WITH_CUDA
bool FusedSynapses::multiply(const Tensor& u) {
  layer_.neuron = {};
  layer_.neuron.timing = Timing::kWindow;
  if (u.numel() == 0 || !cuda::prefers_window_product(layer_, operand_)) return false;
  const Layer whole = layer(layer_.neuron);
  launch(weight_, "window_product", [&](void* stream) {
    return cuda::window_product(whole, operand_, static_cast<float*>(u.data_ptr()), stream);
  });
  return true;
}
#endif

bool FusedSynapses::fire(const NeuronLayer& neurons) {
  if (!suits(neurons)) return false;
  const Layer whole = layer(neurons.args<float>());
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(weight_)) {
    launch(weight_, "run", [&](void* stream) { return cuda::run(whole, operand_, stream); });
    return true;
  }
#endif
  cpu::run(whole, torch_parallel);
  return true;
}

namespace {

NeuronOutputs layer_if(Synapses synapses, const NeuronInputs& inputs) {
  synapses.counted = is_window(inputs.timing);
  synapses.check();
  const NeuronLayer layer(inputs, synapses.output_shape(), synapses.T, synapses.counts_type(), synapses.planes);
  if (layer.neurons() > 0 && !FusedSynapses(synapses).fire(layer)) {
    synapses.scan(layer);
  }
  return layer.outputs();
}

NeuronOutputs linear_if(Tensor planes TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER)
                            TANDEM_SCALED_NEURON_FIELDS(TANDEM_PARAMETER) TANDEM_LATER_FIELDS(TANDEM_PARAMETER),
                        OptionalTensor digits) {
  return layer_if({planes, TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT){}, {}, {}, 1, false, std::move(digits)},
                  {TANDEM_SCALED_NEURON_FIELDS(TANDEM_ARGUMENT) TANDEM_LATER_FIELDS(TANDEM_ARGUMENT)});
}

NeuronOutputs conv_if(Tensor planes TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER) TANDEM_WINDOW_FIELDS(TANDEM_PARAMETER)
                          TANDEM_SCALED_NEURON_FIELDS(TANDEM_PARAMETER) TANDEM_LATER_FIELDS(TANDEM_PARAMETER),
                      OptionalTensor digits) {
  return layer_if(
      {planes, TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT) TANDEM_WINDOW_FIELDS(TANDEM_ARGUMENT) false, std::move(digits)},
      {TANDEM_SCALED_NEURON_FIELDS(TANDEM_ARGUMENT) TANDEM_LATER_FIELDS(TANDEM_ARGUMENT)});
}

// The product of the window by the kernels' exact sums, by torch's product where they have none.
Tensor window_product(Tensor planes TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER) TANDEM_WINDOW_FIELDS(TANDEM_PARAMETER),
                      bool counted) {
  const Synapses synapses{planes, TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT) TANDEM_WINDOW_FIELDS(TANDEM_ARGUMENT) counted};
  synapses.check();
  return synapses.window_product();
}

}  // namespace

Tensor Synapses::window_product() const {
  if (weight.scalar_type() == ScalarType::Double) return counts_product();
  const Tensor u = empty_channels_last(output_shape(), 1, ScalarType::Float, planes);
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(planes)) {
    if (T > most_steps(Timing::kWindow)) return counts_product();
    Synapses bytes = *this;
    if (!counted) bytes.planes = count_bytes(planes);
    bytes.counted = true;
    return FusedSynapses(bytes).multiply(u) ? u : bytes.counts_product();
  }
#endif
  Neuron<float> window{};
  window.T = static_cast<int32_t>(T);
  window.timing = counted ? Timing::kWindow : Timing::kStep;
  FusedSynapses fused(*this);
  cpu::window_product(fused.layer(window), static_cast<float*>(u.data_ptr()), torch_parallel);
  return u;
}

Tensor Synapses::counts_product() const {
  const ScalarType compute = compute_type(counts_type());
  const Shape bytes = shape_of(planes);
  const Tensor counts = counted ? view_channels_last(aten::to_type(to_channels_last(planes, 2), compute),
                                                     {bytes.begin() + 1, bytes.end()}, 1)
                                : count_spikes(planes, compute);
  return view_channels_last(product_of(counts), output_shape(), 1);
}

void Synapses::scan(const NeuronLayer& neurons) const {
  if (counted) return run_scan(window_product(), Source::kImpulse, neurons);
  Synapses of = *this;
  Tensor all = planes;
  int64_t plane = 0;
  for (const NeuronLayer& piece : neurons.pieces(kScannedSteps)) {
    const int64_t P = (piece.T() + 7) / 8;
    of.planes = torch::stable::narrow(all, 0, plane, P);
    of.T = piece.T();
    run_scan(of.currents(), Source::kTrain, piece);
    plane += P;
  }
}

Tensor frozen_digits(Tensor weight, int64_t groups) { return prepare_digits(weight, groups); }

TANDEM_IMPLEMENT(m.impl("linear_if", TORCH_BOX(&linear_if)); m.impl("conv_if", TORCH_BOX(&conv_if));
                 m.impl("window_product", TORCH_BOX(&window_product));
                 m.impl("frozen_digits", TORCH_BOX(&frozen_digits)))

}  // namespace tandem::ops
