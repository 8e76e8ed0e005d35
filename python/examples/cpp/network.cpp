#include "network.h"

#include <kernels/if_scan.h>
#include <kernels/spike_bits.h>

#include <cmath>
#include <numeric>
#include <stdexcept>

namespace {

constexpr int kInput = -1, kNoResidual = -2;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

// A setting that is one number or one per axis.
void axes(const Json& value, int64_t (&to)[2]) {
  for (int axis = 0; axis < 2; ++axis) {
    const Json& one = value.kind == Json::kList ? value.items.at(axis) : value;
    if (one.kind != Json::kNumber || one.number < 0 || one.number > 65535) fail("a size is out of range");
    to[axis] = static_cast<int64_t>(one.number);
  }
}

// y = W x of real numbers, once for the window; x [B, C, H, W], y [B, H', W', N].
std::vector<float> dense_product(const tandem::SpikeProduct& p, const std::vector<float>& weight, const float* x) {
  std::vector<float> y(p.rows() * p.outputs);
  float* out = y.data();
  for (int64_t b = 0; b < p.batch; ++b, x += p.channels * p.height * p.width) {
    for (int64_t i = 0; i < p.out_height(); ++i) {
      for (int64_t j = 0; j < p.out_width(); ++j) {
        for (int64_t n = 0; n < p.outputs; ++n) {
          const float* w = weight.data() + n * p.inputs();
          double sum = 0;
          for (int64_t c = 0; c < p.group_channels(); ++c) {
            const float* image = x + (n / p.group_outputs() * p.group_channels() + c) * p.height * p.width;
            for (int64_t k = 0; k < p.kernel[0]; ++k) {
              for (int64_t l = 0; l < p.kernel[1]; ++l, ++w) {
                const int64_t row = i * p.stride[0] - p.padding[0] + k * p.dilation[0];
                const int64_t column = j * p.stride[1] - p.padding[1] + l * p.dilation[1];
                if (row < 0 || row >= p.height || column < 0 || column >= p.width) continue;
                sum += static_cast<double>(*w) * image[row * p.width + column];
              }
            }
          }
          *out++ = static_cast<float>(sum);
        }
      }
    }
  }
  return y;
}

const float* or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

}  // namespace

Network::Network(const FrozenFile& file) : T_(file.T), planes_((file.T + 7) / 8) {
  for (const Json& use : file.uses.items) steps_.push_back(prepare(file, use));
  if (steps_.empty() || steps_.back().kind != "Readout") fail("the network does not end in a Readout");
  inputs_ = std::accumulate(file.shape.begin(), file.shape.end(), int64_t{1}, std::multiplies<>());
  outputs_ = steps_.back().out.size.channels;
  for (const Step& step : steps_) impulse_ |= step.kind == "Encoder" && step.gate == tandem::Gate::kClip;
}

Network::Step Network::prepare(const FrozenFile& file, const Json& use) const {
  const auto& row = use.items;
  if (row.size() != 4 || row[1].number < kInput || row[1].number >= static_cast<double>(steps_.size())) {
    fail("a use of a layer does not make sense");
  }
  Step step{};
  step.name = row[0].text;
  if (row[3].number != 1) fail(step.name + ": a shortcut with weights is more than this program runs");
  const Json& settings = file.layers[step.name];
  step.kind = settings["kind"].text;
  step.input = static_cast<int>(row[1].number);
  step.residual = row[2].kind == Json::kNull ? kNoResidual : static_cast<int>(row[2].number);
  if (step.residual >= static_cast<int>(steps_.size())) fail(step.name + ": its shortcut comes after it");
  if (step.input != kInput) {
    step.in = steps_[step.input].out;
  } else {
    const auto& s = file.shape;
    if (s.size() != 1 && s.size() != 3) fail("this program takes vectors and images");
    step.in = {{s[0], s.size() == 3 ? s[1] : 1, s.size() == 3 ? s[2] : 1}, false, 1.0f};
  }
  step.out = step.in;
  Size& size = step.out.size;

  if (step.kind == "Encoder") {
    if (settings["mode"].text == "events") fail("this program takes images, not events");
    if (settings["mode"].text == "zero_expand") step.gate = tandem::Gate::kClip;  // marks it for the constructor
    step.out.gain = static_cast<float>(settings["gain"].number);
  } else if (step.kind == "Dropout") {  // does nothing in evaluation
  } else if (step.kind == "Flatten") {
    size = {size.numel(), 1, 1};
  } else if (step.kind == "Linear" || step.kind == "Conv2d") {
    add_synapses(file, settings, step);
    add_neurons(file, settings, step);
  } else if (step.kind == "AvgPool2d" && step.in.spikes && settings["spiking"].number == 1) {
    add_synapses(file, settings, step);
    step.gain = step.in.gain;
    if (settings.has("v_init")) step.v_init = {static_cast<float>(settings["v_init"].number)};
  } else if (step.kind == "MaxPool2d" && step.in.spikes && settings["ceil_mode"].number == 0) {
    tandem::PoolWindow& w = step.pool;
    axes(settings["kernel_size"], w.kernel), axes(settings["stride"], w.stride);
    axes(settings["padding"], w.padding), axes(settings["dilation"], w.dilation);
    const int64_t in[2] = {size.height, size.width};
    int64_t out[2];
    for (int a = 0; a < 2; ++a) {
      const int64_t room = in[a] + 2 * w.padding[a] - w.dilation[a] * (w.kernel[a] - 1) - 1;
      if (w.kernel[a] < 1 || w.stride[a] < 1 || room < 0) fail(step.name + ": its window does not fit");
      out[a] = room / w.stride[a] + 1;
    }
    w.height = in[0], w.width = in[1], w.channels = size.channels;
    w.out_height = size.height = out[0], w.out_width = size.width = out[1];
  } else if (step.kind == "Readout") {
    const auto& s = file.shape_of(step.name + ".weight");
    if (!step.in.spikes || s.size() != 2 || s[1] != size.numel()) fail(step.name + ": its input does not fit");
    step.weight = file.floats(step.name + ".weight");
    if (file.has(step.name + ".bias")) step.shift = file.floats(step.name + ".bias");
    if (!step.shift.empty() && static_cast<int64_t>(step.shift.size()) != s[0]) fail(step.name + ": its bias");
    size = {s[0], 1, 1};
    step.out.spikes = false;
  } else {
    fail(step.name + ": this program does not run " + step.kind + " as it is set here");
  }
  if (!step.packed.empty() || step.product.outputs > 0) step.out.spikes = true, step.out.gain = step.gain;
  if (step.residual != kNoResidual) {
    const Known& r = step.residual == kInput ? step.in : steps_[step.residual].out;
    if (!r.spikes || r.size.numel() != size.numel()) fail(step.name + ": its shortcut does not fit");
  }
  return step;
}

void Network::add_synapses(const FrozenFile& file, const Json& settings, Step& step) const {
  tandem::SpikeProduct& p = step.product;
  p.height = step.in.size.height, p.width = step.in.size.width, p.channels = step.in.size.channels;
  p.groups = 1;
  for (int a = 0; a < 2; ++a) p.kernel[a] = p.stride[a] = p.dilation[a] = 1;
  if (step.kind == "AvgPool2d") {
    axes(settings["kernel_size"], p.kernel), axes(settings["stride"], p.stride), axes(settings["padding"], p.padding);
    p.outputs = p.groups = p.channels;
    step.weight.assign(p.outputs * p.taps(), static_cast<float>(1.0 / static_cast<double>(p.taps())));
  } else {
    const auto& s = file.shape_of(step.name + ".weight");
    const bool conv = step.kind == "Conv2d";
    if (s.size() != (conv ? 4u : 2u)) fail(step.name + ": its weight has the wrong shape");
    p.outputs = s[0];
    if (conv) {
      p.groups = static_cast<int64_t>(settings["groups"].number);
      p.kernel[0] = s[2], p.kernel[1] = s[3];
      axes(settings["stride"], p.stride), axes(settings["dilation"], p.dilation);
      if (settings["padding"].kind != Json::kText) axes(settings["padding"], p.padding);
      for (int a = 0; a < 2 && settings["padding"].text == "same"; ++a) {
        if (p.dilation[a] * (p.kernel[a] - 1) % 2 != 0) fail(step.name + ": padding that differs between sides");
        p.padding[a] = p.dilation[a] * (p.kernel[a] - 1) / 2;
      }
    }
    if (p.groups < 1 || p.outputs % p.groups != 0 || s[1] * p.groups != p.channels) {
      fail(step.name + ": its weight does not fit its input");
    }
    step.weight = file.floats(step.name + ".weight");
  }
  for (int a = 0; a < 2; ++a) {
    if (p.kernel[a] < 1 || p.stride[a] < 1 || p.dilation[a] < 1) fail(step.name + ": a size of 0");
  }
  if (p.outputs < 1 || p.out_height() < 1 || p.out_width() < 1) fail(step.name + ": its window does not fit");
  step.out.size = {p.outputs, p.out_height(), p.out_width()};
  if (step.in.spikes) {
    p.weight = step.weight.data();
    step.packed.resize(tandem::cpu::packed_size(p));
    if (!tandem::cpu::pack_weights(p, step.packed.data(), tandem::serial_for)) fail(step.name + ": not finite");
  }
}

// Batch norm, gains and thresholds in scale and shift, in the order of tandem_ext.functional.neuron.fold.
void Network::add_neurons(const FrozenFile& file, const Json& settings, Step& step) const {
  const size_t channels = step.product.outputs;
  const auto numbers = [&](const std::string& name) {
    std::vector<float> values = file.floats(step.name + "." + name);
    if (values.size() == 1) values.assign(channels, values[0]);
    if (values.size() != channels) fail(step.name + "." + name + ": expected a number per channel");
    return values;
  };
  std::vector<float>&scale = step.scale, &shift = step.shift;
  if (file.has(step.name + ".norm.weight")) {
    const auto gamma = numbers("norm.weight"), beta = numbers("norm.bias");
    const auto mean = numbers("norm.running_mean"), var = numbers("norm.running_var");
    const float eps = static_cast<float>(settings["eps"].number);
    for (size_t n = 0; n < channels; ++n) {
      scale.push_back(gamma[n] / std::sqrt(var[n] + eps));
      shift.push_back(beta[n] - mean[n] * scale[n]);
    }
  }
  if (file.has(step.name + ".bias")) {
    std::vector<float> bias = numbers("bias");
    for (size_t n = 0; n < channels; ++n) {
      if (!scale.empty()) bias[n] *= scale[n];
      if (!shift.empty()) bias[n] += shift[n];
    }
    shift = bias;
  }
  if (step.in.gain != 1) {
    if (scale.empty()) scale.assign(channels, 1);
    for (float& s : scale) s *= step.in.gain;
  }
  const bool tensor = file.has(step.name + ".threshold");
  const std::vector<float> theta = tensor ? numbers("threshold") : std::vector<float>();
  step.threshold = tensor ? 1 : static_cast<float>(settings["threshold"].number);
  if (tensor) {
    if (scale.empty()) scale.assign(channels, 1);
    for (size_t n = 0; n < channels; ++n) scale[n] /= theta[n];
    for (size_t n = 0; n < shift.size(); ++n) shift[n] /= theta[n];
  }
  if (step.residual != kNoResidual && step.residual != kInput) {
    const float worth = steps_[step.residual].out.gain;
    if (worth != 1 || tensor) step.residual_scale.assign(channels, worth);
    for (size_t n = 0; n < theta.size(); ++n) step.residual_scale[n] /= theta[n];
  }
  step.v_init = file.has(step.name + ".v_init") ? file.floats(step.name + ".v_init")
                                                : std::vector<float>{static_cast<float>(settings["v_init"].number)};
  if (step.v_init.size() != 1) fail(step.name + ": an initial potential for each neuron");
  if (tensor) {
    step.v_init.assign(channels, step.v_init[0]);
    for (size_t n = 0; n < channels; ++n) step.v_init[n] /= theta[n];
  }
  step.leak = static_cast<float>(settings["leak"].number);
  const Json& gain = settings["gain"];
  step.gain = gain.kind == Json::kNumber ? static_cast<float>(gain.number) : tensor ? theta[0] : step.threshold;
  const std::string& gate = settings["gate"].text;
  step.gate = gate == "resu" ? tandem::Gate::kResu : gate == "clip" ? tandem::Gate::kClip : tandem::Gate::kRelu;
  if (settings["analog"].number != 0) fail(step.name + ": a layer without spikes");
}

Answer Network::run(const std::vector<float>& x) const {
  if (x.size() % inputs_ != 0) fail("the input is not a number of samples of " + std::to_string(inputs_) + " floats");
  const auto batch = static_cast<int64_t>(x.size()) / inputs_;
  const Value input{{}, x};
  std::vector<Value> values(steps_.size());
  Answer answer;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    const Value& in = step.input == kInput ? input : values[step.input];
    Value& out = values[i];
    if (step.kind == "Readout") {
      answer.readout = readout(step, in, batch);
    } else if (step.product.outputs > 0) {
      fire(step, in, step.residual == kNoResidual ? nullptr : &values[step.residual], batch, out, answer);
    } else if (step.kind == "MaxPool2d") {
      tandem::PoolWindow window = step.pool;
      window.images = planes_ * batch;
      out.planes.resize(planes_ * batch * step.out.size.numel());
      tandem::cpu::max_pool(window, in.planes.data(), out.planes.data(), tandem::serial_for);
    } else if (step.kind == "Flatten" && step.in.spikes) {
      out.planes.resize(in.planes.size());
      const Size& size = step.in.size;
      tandem::cpu::to_channels_first(in.planes.data(), planes_ * batch, size.height * size.width, size.channels,
                                     out.planes.data(), tandem::serial_for);
    } else {
      out = in;
    }
  }
  return answer;
}

void Network::fire(const Step& step, const Value& x, const Value* residual, int64_t batch, Value& y,
                   Answer& answer) const {
  tandem::SpikeProduct p = step.product;
  p.batch = batch;
  const int64_t neurons = batch * step.out.size.numel();
  y.planes.resize(planes_ * neurons);
  std::vector<float> counts(neurons);
  tandem::NeuronArgs<float> a{};
  a.neurons = neurons;
  a.channels = p.outputs;
  a.T = a.steps = T_;
  a.threshold = step.threshold;
  a.leak = step.leak;
  a.gate = step.gate;
  a.scale = or_null(step.scale);
  a.shift = or_null(step.shift);
  a.residual_planes = residual == nullptr ? nullptr : residual->planes.data();
  a.residual_scale = or_null(step.residual_scale);
  a.v_init = or_null(step.v_init);
  a.v_init_size = static_cast<int64_t>(step.v_init.size());
  if (a.v_init == nullptr) a.v_init_size = 1;
  a.planes = y.planes.data();
  a.counts = counts.data();
  a.counts_dtype = tandem::DType::kFloat32;
  if (step.in.spikes) {
    p.planes = x.planes.data();
    p.packed = step.packed.data();
    if (!tandem::cpu::product_if(p, a, tandem::serial_for)) fail(step.name + ": its kernel is too large");
  } else {
    const std::vector<float> currents = dense_product(p, step.weight, x.numbers.data());
    const auto source = impulse_ ? tandem::Source::kImpulse : tandem::Source::kConstant;
    tandem::cpu::if_scan(currents.data(), tandem::DType::kFloat32, source, a, tandem::serial_for);
  }
  answer.layers.push_back(step.name);
  answer.counts.push_back(static_cast<int64_t>(std::accumulate(counts.begin(), counts.end(), 0.0)));
}

std::vector<float> Network::readout(const Step& step, const Value& x, int64_t batch) const {
  const int64_t features = step.in.size.numel(), outputs = step.out.size.channels;
  std::vector<float> counts(batch * features), answer;
  tandem::cpu::counts(x.planes.data(), planes_, batch * features, counts.data(), tandem::DType::kFloat32,
                      tandem::serial_for);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = step.shift.empty() ? 0.0 : step.shift[n];
      for (int64_t k = 0; k < features; ++k) {
        sum += static_cast<double>(step.weight[n * features + k]) * (counts[b * features + k] * step.in.gain);
      }
      answer.push_back(static_cast<float>(sum));
    }
  }
  return answer;
}
