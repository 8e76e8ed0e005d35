// linear_if, conv_if: spikes in, spikes out. Also window_product, and quantise and frozen_digits for weights.
#include "product.h"

#include <torch/csrc/stable/library.h>

#include "../kernels/weights/quantise.h"
#include "aten.h"

namespace tandem::ops {

namespace {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // keeps the sizes of receptive fields far from overflow

bool is_integer(const Tensor& weight) { return weight.scalar_type() == ScalarType::Char; }

void check_range(int64_t value, int64_t least, const char* name) {
  TANDEM_CHECK(value >= least && value <= kMostPixels, name, " must be ", least, "..", kMostPixels, ", got ", value);
}

// Sets the part of the geometry that the weight determines.
void set_weight(Geometry& geometry, const Tensor& weight, int64_t groups) {
  geometry.channels = weight.size(1) * groups;
  geometry.outputs = weight.size(0);
  geometry.groups = groups;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t d = axis + weight.dim() - 2;  // a line is an image of height 1
    geometry.kernel[axis] = d < 2 ? 1 : weight.size(static_cast<int32_t>(d));
    geometry.stride[axis] = geometry.dilation[axis] = 1;
  }
}

DType weight_dtype(const Tensor& weight) { return is_integer(weight) ? DType::kInt8 : kernel_dtype(weight, "weight"); }

bool in_rows(const Tensor& weight) { return weight.dim() > 2 && weight.size(1) > 1 && is_channels_last(weight, 1); }

// The size of the digits in bytes; 0 where there are none.
int64_t digits_size([[maybe_unused]] const Geometry& geometry, [[maybe_unused]] const Tensor& weight) {
#ifdef TANDEM_WITH_CUDA
  if (on_gpu(weight)) {
    return cuda::prepared_size(geometry, weight_dtype(weight));
  }
#endif
  return 0;
}

// The digits that a GPU's kernels multiply in place of the weights; an empty tensor where there are none.
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
      return cuda::prepare(geometry, {rows.data_ptr(), weight_dtype(weight), last}, digits.data_ptr(), stream);
    });
  }
#endif
  return digits;
}

}  // namespace

Synapses::Synapses(SynapseInputs&& inputs) : in_(std::move(inputs)) {
  const auto& [stored, T, weight, stride, padding, dilation, groups, timing, digits] = in_;
  check_trains(stored, T, timing, "stored");
  layer_.weights.dtype = weight_dtype(weight);
  check_same_device(weight, stored, "weight");
  TANDEM_CHECK(weight.dim() >= 2 && weight.dim() <= 4 && stored.dim() == weight.dim() + 1,
               "stored and weight must be [P, B, K] and [N, K], or [P, B, C, *] and [N, C / groups, *]; got ",
               shape_text(shape_of(stored)), " and ", shape_text(shape_of(weight)));
  check_range(groups, 1, "groups");
  TANDEM_CHECK(stored.size(2) == weight.size(1) * groups && weight.size(0) % groups == 0, "weight ",
               shape_text(shape_of(weight)), " with groups = ", groups, " does not fit stored ",
               shape_text(shape_of(stored)));
  const auto spatial = static_cast<size_t>(weight.dim() - 2);
  TANDEM_CHECK(stride.size() == spatial && padding.size() == spatial && dilation.size() == spatial,
               "stride, padding and dilation must have ", spatial, " elements");
  Geometry& geometry = layer_.geometry;
  geometry.batch = stored.size(1);
  geometry.height = geometry.width = 1;
  set_weight(geometry, weight, groups);
  for (size_t d = 0; d < spatial; ++d) {
    check_range(stride[d], 1, "stride");
    check_range(dilation[d], 1, "dilation");
    check_range(padding[d], 0, "padding");
    const size_t axis = d + 2 - spatial;  // a line is an image of height 1
    const int64_t size = stored.size(3 + d), reach = dilation[d] * (geometry.kernel[axis] - 1) + 1;
    TANDEM_CHECK(size + 2 * padding[d] >= reach, "weight: its kernel reaches over ", reach,
                 " positions, the input has ", size + 2 * padding[d], " with their padding");
    (axis == 0 ? geometry.height : geometry.width) = size;
    geometry.stride[axis] = stride[d];
    geometry.padding[axis] = padding[d];
    geometry.dilation[axis] = dilation[d];
  }
  layer_.weights.channels_last = in_rows(weight);  // it stays; anything else is made contiguous
  if (digits.has_value() && digits->numel() > 0) {
    TANDEM_CHECK(digits->scalar_type() == ScalarType::Byte && digits->is_contiguous() &&
                     reinterpret_cast<uintptr_t>(digits->data_ptr()) % 16 == 0 &&
                     digits->numel() == digits_size(geometry, weight),
                 "digits must be what frozen_digits gives for this weight");
    check_same_device(*digits, stored, "digits");
  } else {
    in_.digits.reset();
  }
}

Shape Synapses::output_shape() const {
  const Geometry& g = layer_.geometry;
  Shape shape{g.batch, g.outputs};
  if (in_.stride.size() == 2) shape.push_back(g.out_height());
  if (!in_.stride.empty()) shape.push_back(g.out_width());
  return shape;
}

ScalarType Synapses::counts_type() const {
  return is_integer(in_.weight) ? ScalarType::Float : in_.weight.scalar_type();
}

void Synapses::prepare() {
  if (on_gpu(in_.weight)) {
    if (!in_.digits.has_value()) in_.digits = prepare_digits(in_.weight, in_.groups);
    layer_.prepared = in_.digits->data_ptr();
  } else {
    window_layer();
    cpu::prepare_twice(layer_, workspace_, torch_parallel);
  }
}

Layer Synapses::layer(const Neuron& neuron) {
  in_.stored = to_channels_last(in_.stored, 2);
  layer_.stored = pointer<const uint8_t>(in_.stored);
  layer_.neuron = neuron;
  if (on_gpu(in_.weight)) {
#ifdef TANDEM_WITH_CUDA
    TANDEM_CHECK(cuda::can_run(layer_), "weight and input are too large for a GPU's kernels: an output has at most ",
                 (1 << 24) - 1, " inputs, an image with its padding at most 2^31 - 1 pixels; got ",
                 shape_text(shape_of(in_.weight)), " and ", shape_text(shape_of(in_.stored)));
#endif
    prepare();
  } else {
    if (!layer_.weights.channels_last) in_.weight = to_contiguous(in_.weight);
    layer_.weights.data = in_.weight.data_ptr();
  }
  return layer_;
}

void Synapses::fire(const NeuronLayer& neurons) {
  Layer whole = layer(neurons.args());
  OptionalTensor open;
  if (on_gpu(in_.weight) && whole.gate_bytes()) open = empty(neurons.neurons(), ScalarType::Byte, in_.stored);
  whole.neuron.open = pointer<uint8_t>(open);
  TANDEM_RUN(in_.weight, run, whole);
}

Tensor Synapses::window_product() {
  const Tensor u = empty_channels_last(output_shape(), 1, ScalarType::Float, in_.stored);
  if (u.numel() == 0) return u;
  if (on_gpu(in_.stored) && in_.timing == Timing::kStep) {
    if (in_.T > most_steps(Timing::kWindow)) {  // too long for the kernels: by torch in float64
      return aten::to_type(aten::call("tandem_composite::window_product", in_.stored, in_.T,
                                      aten::to_type(in_.weight, ScalarType::Double), in_.stride, in_.padding,
                                      in_.dilation, in_.groups, std::string("step")),
                           ScalarType::Float);
    }
    SynapseInputs counts = in_;
    counts.stored = count_bytes(in_.stored);
    counts.timing = Timing::kWindow;
    return Synapses(std::move(counts)).window_product();
  }
  const Layer whole = window_layer();
  TANDEM_RUN(in_.stored, window_product, whole, pointer<float>(u));
  return u;
}

namespace {

NeuronOutputs layer_if(SynapseInputs&& synapse_inputs, NeuronInputs&& inputs) {
  synapse_inputs.timing = timing_of(inputs.timing);
  Synapses synapses(std::move(synapse_inputs));
  const NeuronLayer layer(std::move(inputs), synapses.output_shape(), synapses.T(), synapses.counts_type(),
                          synapses.stored());
  if (layer.neurons() > 0) synapses.fire(layer);
  return layer.outputs();
}

NeuronOutputs linear_if(Tensor stored TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER)
                            TANDEM_SCALED_NEURON_FIELDS(TANDEM_PARAMETER),
                        OptionalTensor digits) {
  return layer_if({.stored = stored, TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT).groups = 1, .digits = std::move(digits)},
                  {TANDEM_SCALED_NEURON_FIELDS(TANDEM_ARGUMENT)});
}

NeuronOutputs conv_if(Tensor stored TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER) TANDEM_CONV_FIELDS(TANDEM_PARAMETER)
                          TANDEM_SCALED_NEURON_FIELDS(TANDEM_PARAMETER),
                      OptionalTensor digits) {
  return layer_if(
      {.stored = stored,
       TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT) TANDEM_CONV_FIELDS(TANDEM_ARGUMENT).digits = std::move(digits)},
      {TANDEM_SCALED_NEURON_FIELDS(TANDEM_ARGUMENT)});
}

Tensor window_product(Tensor stored TANDEM_PRODUCT_FIELDS(TANDEM_PARAMETER) TANDEM_CONV_FIELDS(TANDEM_PARAMETER),
                      Text timing) {
  Synapses synapses(
      {.stored = stored,
       TANDEM_PRODUCT_FIELDS(TANDEM_ARGUMENT) TANDEM_CONV_FIELDS(TANDEM_ARGUMENT).timing = timing_of(timing)});
  return synapses.window_product();
}

// Returns q, channels-last if the weight is, else contiguous, and step [N].
std::tuple<Tensor, Tensor> quantise(Tensor weight, int64_t bits) {
  TANDEM_CHECK(weight.scalar_type() == ScalarType::Float && weight.dim() >= 2, "weight must be float32 [N, ...], got ",
               shape_text(shape_of(weight)));
  TANDEM_CHECK(bits >= 2 && bits <= 8, "bits must be 2..8, got ", bits);
  const bool last = weight.dim() > 2 && !weight.is_contiguous() && is_channels_last(weight, 1);
  const Tensor dense = last ? weight : to_contiguous(weight);
  const int lead = last ? 1 : static_cast<int>(weight.dim()) - 1;
  Tensor q = empty_channels_last(shape_of(weight), lead, ScalarType::Char, weight);
  Tensor step = empty(weight.size(0), ScalarType::Float, weight);
  const int64_t rows = weight.size(0), size = rows == 0 ? 0 : weight.numel() / rows;
  cpu::quantise(pointer<float>(dense), rows, size, (1 << (bits - 1)) - 1, pointer<int8_t>(q), pointer<float>(step),
                torch_parallel);
  return {q, step};
}

}  // namespace

TANDEM_IMPLEMENT(TANDEM_OP("linear_if", &linear_if, 2); TANDEM_OP("conv_if", &conv_if, 2);
                 TANDEM_OP("window_product", &window_product, 2); TANDEM_OP("frozen_digits", &prepare_digits, 0))

STABLE_TORCH_LIBRARY_IMPL(tandem, CPU, m) { m.impl("quantise", TORCH_BOX(&quantise)); }

}  // namespace tandem::ops
