#include "neuron.h"

#include <algorithm>

#include "aten.h"

namespace tandem::ops {

namespace {

Gate parse_gate(const std::string& gate) {
  if (gate == "relu") return Gate::kRelu;
  if (gate == "clip") return Gate::kClip;
  TANDEM_CHECK(false, "gate must be \"relu\" or \"clip\", got \"", gate, "\"");
}

}  // namespace

ScalarType exact_counts(ScalarType type, int64_t T) {
  const int64_t most = type == ScalarType::BFloat16 ? 256 : type == ScalarType::Half ? 2048 : T;
  return T > most ? ScalarType::Float : type;
}

NeuronLayer::NeuronLayer(const NeuronInputs& inputs, const Shape& shape, int64_t T, ScalarType counts_type,
                         const Tensor& device_of)
    : shape_(shape),
      T_(T),
      neurons_(product(shape)),
      channels_(shape.size() > 1 ? shape[1] : 1),
      window_(inputs.window),
      compute_(compute_type(counts_type)),
      counts_type_(exact_counts(counts_type, T)),
      device_of_(device_of) {
  check_steps(T, window_ ? Timing::kWindow : Timing::kStep);
  TANDEM_CHECK(inputs.steps >= 1, "steps must be at least 1, got ", inputs.steps);
  TANDEM_CHECK(inputs.threshold > 0, "threshold must be positive, got ", inputs.threshold);
  TANDEM_CHECK(inputs.leak > 0 && inputs.leak <= 1, "leak must be in (0, 1], got ", inputs.leak);
  TANDEM_CHECK(!window_ || inputs.leak == 1, "leak must be 1 with timing \"window\", got ", inputs.leak);
  TANDEM_CHECK(!window_ || inputs.steps == T, "steps must be T = ", T, " with timing \"window\", got ", inputs.steps);
  scale_ = per_channel(inputs.scale, channels_, compute_, device_of, "scale");
  shift_ = per_channel(inputs.shift, channels_, compute_, device_of, "shift");
  residual_scale_ = per_channel(inputs.residual_scale, channels_, compute_, device_of, "residual_scale");
  prepare_residual(inputs.residual);
  prepare_v_init(inputs.v_init);
  prepare_bad(inputs.bad);

  planes_ = empty_channels_last(prepend(window_ ? 1 : (T + 7) / 8, shape), 2, ScalarType::Byte, device_of);
  if (inputs.train) {
    counts_ = empty_channels_last(shape, 1, counts_type_, device_of);
    mask_ = empty((neurons_ + 7) / 8, ScalarType::Byte, device_of);
  }
  if (inputs.return_v) v_ = empty_channels_last(shape, 1, compute_, device_of);

  with_args([&](auto& args) { fill(args, inputs); });
}

template <>
const Neuron<float>& NeuronLayer::args() const {
  return float_args_;
}
template <>
const Neuron<double>& NeuronLayer::args() const {
  return double_args_;
}

void NeuronLayer::set_affine(const Tensor& scale, const Tensor& shift) {
  scale_ = scale, shift_ = shift;
  with_args([&](auto& args) {
    using C = std::decay_t<decltype(args.threshold)>;
    args.scale = pointer<const C>(scale_);
    args.shift = pointer<const C>(shift_);
  });
}

template <class C>
void NeuronLayer::fill(Neuron<C>& args, const NeuronInputs& inputs) {
  const bool spikes = residual_.has_value() && residual_->scalar_type() == ScalarType::Byte;
  args.neurons = neurons_;
  args.channels = channels_;
  args.T = static_cast<int32_t>(T_);
  args.steps = static_cast<int32_t>(inputs.steps);
  args.threshold = static_cast<C>(inputs.threshold);
  args.leak = static_cast<C>(inputs.leak);
  args.gate = parse_gate(inputs.gate);
  args.timing = window_ ? Timing::kWindow : Timing::kStep;
  args.scale = pointer<const C>(scale_);
  args.shift = pointer<const C>(shift_);
  args.residual_planes = spikes ? pointer<const uint8_t>(residual_) : nullptr;
  args.residual_currents = spikes ? nullptr : pointer<const C>(residual_);
  args.residual_scale = pointer<const C>(residual_scale_);
  args.v_init = pointer<const C>(v_init_);
  args.v_init_size = v_init_.has_value() ? v_init_->numel() : 1;
  args.planes = pointer<uint8_t>(planes_);
  args.counts = pointer<void>(counts_);
  args.counts_dtype = kernel_dtype(counts_type_, "counts");
  args.mask = pointer<uint8_t>(mask_);
  args.v = pointer<C>(v_);
  args.bad = pointer<float>(bad_);
  args.sample = shape_[0] > 0 ? neurons_ / shape_[0] : 0;
}

void NeuronLayer::prepare_residual(const OptionalTensor& residual) {
  if (!residual.has_value()) return;
  check_same_device(*residual, device_of_, "residual");
  const bool spikes = residual->scalar_type() == ScalarType::Byte;
  const Shape wanted = prepend(window_ ? 1 : spikes ? (T_ + 7) / 8 : T_, shape_);
  TANDEM_CHECK(shape_of(*residual) == wanted, "residual must have shape ", shape_text(wanted), ", got ",
               shape_text(shape_of(*residual)));
  TANDEM_CHECK(spikes || residual->scalar_type() == compute_, "residual must be uint8 ", window_ ? "counts" : "planes",
               " or ", compute_ == ScalarType::Double ? "float64" : "float32", " currents");
  residual_ = to_channels_last(*residual, 2);
}

void NeuronLayer::prepare_v_init(const OptionalTensor& v_init) {
  if (!v_init.has_value()) return;
  check_same_device(*v_init, device_of_, "v_init");
  TANDEM_CHECK(v_init->scalar_type() == compute_, "v_init must be ",
               compute_ == ScalarType::Double ? "float64" : "float32");
  const Shape got = shape_of(*v_init);
  const Shape features(shape_.begin() + 1, shape_.end());
  TANDEM_CHECK(got.empty() || got == features || got == shape_, "v_init must have shape [], ", shape_text(features),
               " or ", shape_text(shape_), ", got ", shape_text(got));
  v_init_ = to_channels_last(*v_init, got == shape_ ? 1 : 0);
}

// Kernels only add NaN: the marks of the layer's input stay.
void NeuronLayer::prepare_bad(const OptionalTensor& bad) {
  bad_ = empty(shape_[0], ScalarType::Float, device_of_);
  if (bad.has_value()) {
    check_same_device(*bad, device_of_, "bad");
    kernel_dtype(*bad, "bad");
    TANDEM_CHECK(bad->dim() == 1 && (bad->numel() == shape_[0] || bad->numel() == 1),
                 "bad must hold one value per sample (", shape_[0], "), or one for all, got shape ",
                 shape_text(shape_of(*bad)));
  }
  if (on_gpu(device_of_)) {
    bad.has_value() ? torch::stable::copy_(*bad_, *bad) : torch::stable::zero_(*bad_);
    return;
  }
  auto* to = pointer<float>(*bad_);  // on the CPU torch's operators would be slower
  if (!bad.has_value()) {
    std::fill_n(to, shape_[0], 0.f);
    return;
  }
  const Tensor from = to_contiguous(aten::to_type(*bad, ScalarType::Float));
  for (int64_t b = 0; b < shape_[0]; ++b) to[b] = pointer<float>(from)[from.numel() == 1 ? 0 : b];
}

}  // namespace tandem::ops
