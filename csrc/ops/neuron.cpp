// if_scan, constant_if, impulse_if: currents in, spike trains out.
#include "neuron.h"

#include <torch/csrc/stable/library.h>

#include "aten.h"

namespace tandem::ops {

ScalarType exact_counts(ScalarType type, int64_t T) {
  const int64_t most = type == ScalarType::BFloat16 ? 256 : type == ScalarType::Half ? 2048 : T;
  return T > most ? ScalarType::Float : type;
}

NeuronLayer::NeuronLayer(NeuronInputs&& inputs, const Shape& shape, int64_t T, ScalarType counts_type,
                         const Tensor& device_of)
    : in_(std::move(inputs)),
      timing_(timing_of(in_.timing)),
      shape_(shape),
      T_(T),
      neurons_(product(shape)),
      channels_(shape.size() > 1 ? shape[1] : 1),
      counts_type_(exact_counts(counts_type, T)),
      device_of_(device_of) {
  check_steps(T, timing_);
  const bool window = timing_ == Timing::kWindow;
  TANDEM_CHECK(in_.steps >= 1, "steps must be at least 1, got ", in_.steps);
  if (window) check_steps(in_.steps, timing_);
  TANDEM_CHECK(in_.threshold > 0, "threshold must be positive, got ", in_.threshold);
  TANDEM_CHECK(in_.leak > 0 && in_.leak <= 1, "leak must be in (0, 1], got ", in_.leak);
  TANDEM_CHECK(!window || in_.leak == 1, "leak must be 1 with timing \"window\", got ", in_.leak);
  TANDEM_CHECK(in_.gate == "relu" || in_.gate == "clip", "gate must be \"relu\" or \"clip\", got \"", in_.gate, "\"");
  prepare_affine();
  in_.residual_scale = per_channel(in_.residual_scale, channels_, device_of, "residual_scale");
  if (in_.residual.has_value()) prepare_residual();
  prepare_v_init();
  prepare_bad();

  stored_ = empty_channels_last(prepend(sheets(T, timing_), shape), 2, ScalarType::Byte, device_of);
  if (in_.train) {
    counts_ = empty_channels_last(shape, 1, counts_type_, device_of);
    mask_ = empty((neurons_ + 7) / 8, ScalarType::Byte, device_of);
  }
  if (in_.return_v) v_ = empty_channels_last(shape, 1, ScalarType::Float, device_of);
}

Neuron NeuronLayer::args() const {
  const bool spikes = in_.residual.has_value() && in_.residual->scalar_type() == ScalarType::Byte;
  return {
      .neurons = neurons_,
      .channels = channels_,
      .T = static_cast<int32_t>(T_),
      .steps = static_cast<int32_t>(in_.steps),
      .threshold = static_cast<float>(in_.threshold),
      .leak = static_cast<float>(in_.leak),
      .gate = in_.gate == "clip" ? Gate::kClip : Gate::kRelu,
      .timing = timing_,
      .scale = pointer<const float>(in_.scale),
      .shift = pointer<const float>(in_.shift),
      .residual_stored = spikes ? pointer<const uint8_t>(in_.residual) : nullptr,
      .residual_currents = spikes ? nullptr : pointer<const float>(in_.residual),
      .residual_scale = pointer<const float>(in_.residual_scale),
      .v_init = in_.v_init.has_value() ? pointer<const float>(in_.v_init)
                : start_ != 0          ? &start_
                                       : nullptr,
      .v_init_size = in_.v_init.has_value() ? in_.v_init->numel() : 1,
      .stored = pointer<uint8_t>(stored_),
      .counts = pointer<void>(counts_),
      .counts_dtype = kernel_dtype(counts_type_, "counts"),
      .mask = pointer<uint8_t>(mask_),
      .open = nullptr,
      .v = pointer<float>(v_),
      .bad = pointer<float>(bad_),
      .sample = shape_[0] > 0 ? neurons_ / shape_[0] : 0,
      .before = 0,
      .after = 0,
      .carried = {},
  };
}

void NeuronLayer::prepare_affine() {
  in_.scale = per_channel(in_.scale, channels_, device_of_, "scale");
  in_.shift = per_channel(in_.shift, channels_, device_of_, "shift");
  TANDEM_CHECK(in_.unit > 0, "unit must be positive, got ", in_.unit);
  in_.scale = combined(in_.scale, "aten::mul", in_.gain / in_.unit, channels_, device_of_);
  if (in_.shift.has_value()) in_.shift = combined(in_.shift, "aten::div", in_.unit, channels_, device_of_);
}

void NeuronLayer::prepare_residual() {
  const Tensor& residual = *in_.residual;
  check_same_device(residual, device_of_, "residual");
  const bool spikes = residual.scalar_type() == ScalarType::Byte;
  const bool window = timing_ == Timing::kWindow;
  const Shape wanted = prepend(spikes || window ? sheets(T_, timing_) : T_, shape_);
  TANDEM_CHECK(shape_of(residual) == wanted, "residual must have shape ", shape_text(wanted), ", got ",
               shape_text(shape_of(residual)));
  TANDEM_CHECK(spikes || residual.scalar_type() == ScalarType::Float, "residual must be uint8 ",
               window ? "counts" : "planes", " or float32 currents");
  in_.residual = to_channels_last(residual, 2);
}

void NeuronLayer::prepare_v_init() {
  if (!in_.v_init.has_value()) {
    start_ = timing_ == Timing::kWindow ? static_cast<float>(in_.threshold / 2) : 0.f;
    if (start_ == 0 || !on_gpu(device_of_)) return;
    in_.v_init = empty_channels_last({}, 0, ScalarType::Float, device_of_);
    torch::stable::fill_(*in_.v_init, start_);
    return;
  }
  const Tensor& v_init = *in_.v_init;
  check_same_device(v_init, device_of_, "v_init");
  TANDEM_CHECK(v_init.scalar_type() == ScalarType::Float, "v_init must be float32");
  const Shape got = shape_of(v_init);
  const Shape features(shape_.begin() + 1, shape_.end());
  TANDEM_CHECK(got.empty() || got == features || got == shape_, "v_init must have shape [], ", shape_text(features),
               " or ", shape_text(shape_), ", got ", shape_text(got));
  in_.v_init = to_channels_last(v_init, got == shape_ ? 1 : 0);
}

// Kernels only add NaN: the marks of the layer's input stay.
void NeuronLayer::prepare_bad() {
  const OptionalTensor& bad = in_.bad;
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

void run_scan(const Tensor& currents, Source source, const NeuronLayer& layer) {
  if (layer.neurons() == 0) return;
  TANDEM_RUN(currents, if_scan, currents.data_ptr(), kernel_dtype(currents, "currents"), source, layer.args());
}

namespace {

NeuronOutputs scan(const Tensor& currents, Source source, int64_t T, NeuronInputs&& inputs) {
  const bool over_time = source == Source::kTrain;
  kernel_dtype(currents, "currents");
  const Shape sizes = shape_of(currents);
  const Shape shape(sizes.begin() + (over_time ? 1 : 0), sizes.end());
  const NeuronLayer layer(std::move(inputs), shape, T, currents.scalar_type(), currents);
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

TANDEM_IMPLEMENT(TANDEM_OP("if_scan", &if_scan, 0); TANDEM_OP("constant_if", &held_if<Source::kConstant>, 0);
                 TANDEM_OP("impulse_if", &held_if<Source::kImpulse>, 0))

}  // namespace tandem::ops
