#include "executor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "../cpu/scratch.h"
#include "../neuron/scan.h"
#include "../planes/bits.h"
#include "../planes/moves.h"

namespace tandem::network {

namespace {

[[noreturn]] void refuse(int64_t i, const std::string& why) {
  throw std::invalid_argument("instruction " + std::to_string(i) + ": " + why);
}

constexpr int64_t kAlignment = 64;  // of the parts of what is prepared

template <class Window>
void set_window(const Instruction& i, Window& w) {
  w.kernel[0] = i.kernel_h, w.kernel[1] = i.kernel_w;
  w.stride[0] = i.stride_h, w.stride[1] = i.stride_w;
  w.padding[0] = i.padding_h, w.padding[1] = i.padding_w;
  w.dilation[0] = i.dilation_h, w.dilation[1] = i.dilation_w;
}

}  // namespace

Network::Network(const int64_t* words, int64_t count, const uint8_t* numbers, int64_t bytes)
    : program_(read(words, count, bytes)), numbers_(numbers) {
  if (!program_.not_run.empty()) throw std::invalid_argument(program_.not_run);
}

// Where each instruction's part of the prepared weights begins, and their size.
std::vector<int64_t> Network::parts() const {
  const auto n = static_cast<int64_t>(program_.instructions.size());
  std::vector<int64_t> offsets;
  int64_t size = (n + 1) * static_cast<int64_t>(sizeof(int64_t));
  for (int64_t i = 0; i < n; ++i) {
    size += -size & (kAlignment - 1);
    offsets.push_back(size);
    if (is_packed(i)) {
      size += cpu::prepared_size(geometry(i), weights_of(i));
    } else if (has_weights(i) && program_.instructions[i].few_bits != 0) {
      size += program_.instructions[i].weights() * static_cast<int64_t>(sizeof(float));
    }
  }
  offsets.push_back(size);
  return offsets;
}

bool Network::is_prepared(const uint8_t* prepared, int64_t size) const {
  const auto n = static_cast<int64_t>(program_.instructions.size());
  if (size < (n + 1) * static_cast<int64_t>(sizeof(int64_t))) return false;
  return reinterpret_cast<const int64_t*>(prepared)[n] == size;
}

const float* Network::floats(int64_t offset) const {
  return offset == kAbsent ? nullptr : reinterpret_cast<const float*>(numbers_ + offset);
}

// Without an image.
Geometry Network::geometry(int64_t number) const {
  const Instruction& i = program_.instructions[number];
  Geometry g{};
  g.outputs = i.outputs;
  g.groups = i.groups;
  g.channels = i.channels * i.groups;
  set_window(i, g);
  return g;
}

Weights Network::weights_of(int64_t number) const {
  const Instruction& i = program_.instructions[number];
  return {numbers_ + i.weight, i.few_bits != 0 ? DType::kInt8 : DType::kFloat32, false};
}

// Weights of few bits as floats: the integers, which for a readout are times their step.
void Network::widen(int64_t number, float* to) const {
  const Instruction& i = program_.instructions[number];
  const int64_t n = i.weights();
  const auto* q = reinterpret_cast<const int8_t*>(numbers_ + i.weight);
  std::copy_n(q, n, to);
  if (program_.kind(number) != Kind::readout) return;
  const float* step = floats(i.step);
  for (int64_t k = 0; k < n; ++k) to[k] *= step[k / (n / i.outputs)];
}

void Network::prepare(uint8_t* prepared, ParallelFor parallel) const {
  const std::vector<int64_t> offsets = parts();
  std::memcpy(prepared, offsets.data(), offsets.size() * sizeof(int64_t));
  for (size_t n = 0; n < program_.instructions.size(); ++n) {
    const auto i = static_cast<int64_t>(n);
    uint8_t* part = prepared + offsets[n];
    if (is_packed(i)) {
      if (cpu::prepare(geometry(i), weights_of(i), part, parallel) != cpu::Refusal::kNone) {
        refuse(i, "a weight is not finite");
      }
    } else if (has_weights(i) && program_.instructions[n].few_bits != 0) {
      widen(i, reinterpret_cast<float*>(part));
    }
  }
}

// One run. Instructions in order; those that read counts when all spikes are there, once for each answer.
class Run {
 public:
  Run(const Network& network, const Plan& plan, const Call& call)
      : network_(network),
        program_(network.program_),
        plan_(plan),
        call_(call),
        T_(call.state != nullptr ? 1 : call.T),
        real_(program_.instructions.size()),
        so_far_(program_.instructions.size()) {
    thread_local cpu::Scratch<uint8_t> workspace;
    workspace_ = workspace.reserve(plan.workspace);
  }

  void operator()() {
    for (int64_t i = 0; i < size(); ++i) {
      if (program_.values[i] < Value::kMeans) execute(i);
    }
    const bool streaming = call_.state != nullptr;
    for (int64_t t = call_.every_step ? 0 : T_ - 1; t < T_; ++t) {
      const int64_t steps = (streaming ? call_.step : t) + 1;
      float* to = call_.answer + (call_.every_step ? t : 0) * plan_.batch * network_.outputs();
      for (int64_t i = 0; i < size(); ++i) {
        if (program_.values[i] >= Value::kMeans) answer(i, t, steps, to);
      }
    }
  }

 private:
  int64_t size() const { return static_cast<int64_t>(program_.instructions.size()); }
  const Instruction& at(int64_t i) const { return program_.instructions[i]; }
  const float* floats(int64_t offset) const { return network_.floats(offset); }
  uint8_t* place(int64_t offset) const { return workspace_ + offset * plan_.batch * plan_.planes; }
  const uint8_t* spikes(int64_t value) const {
    return value >= 0 ? place(plan_.steps[value].place) : static_cast<const uint8_t*>(call_.input);
  }
  const float* real(int64_t value) const { return value >= 0 ? real_[value] : static_cast<const float*>(call_.input); }
  float* state(int64_t i) const { return call_.state + plan_.steps[i].state * plan_.batch; }
  RealWindow window(int64_t i) const { return {at(i), plan_.batch, plan_.steps[i].in, plan_.steps[i].out}; }

  void execute(int64_t i) {
    const bool from_spikes = network_.reads_spikes(i);
    const int64_t images = plan_.batch * plan_.planes;
    const Shape &in = plan_.steps[i].in, &out = plan_.steps[i].out;
    switch (program_.kind(i)) {
      case Kind::layer:
        if (program_.values[i] == Value::kCurrents) return currents(i);
        return from_spikes ? product(i) : direct(i);
      case Kind::max_pool:
        if (from_spikes) return max_pool(i, images, in, out);
        real_[i] = call_.host->maximum(window(i), real(at(i).input));
        return;
      case Kind::flatten:
        if (!from_spikes) {
          real_[i] = real(at(i).input);
        } else if (in.dims > 1) {
          cpu::to_channels_first(spikes(at(i).input), images, in.height * in.width, in.channels,
                                 place(plan_.steps[i].place), call_.parallel);
        } else if (at(i).input == kNetworkInput) {
          std::memcpy(place(plan_.steps[i].place), call_.input, images * in.features());
        }
        return;
      default:
        if (from_spikes) return product(i);  // of an average
        real_[i] = call_.host->mean(window(i), false, real(at(i).input));
    }
  }

  // Neurons without their state.
  Neuron<float> neurons(int64_t i) const {
    const Instruction& in = at(i);
    Neuron<float> a{};
    a.neurons = plan_.batch * plan_.steps[i].out.features();
    a.channels = plan_.steps[i].out.channels;
    a.T = static_cast<int32_t>(T_);
    a.steps = static_cast<int32_t>(call_.T);
    a.threshold = std::numeric_limits<float>::max();
    a.leak = 1;
    a.v_init_size = 1;
    if (program_.kind(i) != Kind::layer) return a;
    a.scale = floats(in.scale);
    a.shift = floats(in.shift);
    return a;
  }

  Neuron<float> firing(int64_t i) const {
    const Instruction& in = at(i);
    Neuron<float> a = neurons(i);
    a.threshold = static_cast<float>(network::real(in.threshold));
    a.leak = static_cast<float>(network::real(in.leak));
    a.gate = static_cast<Gate>(in.gate);
    if (program_.kind(i) == Kind::layer && in.residual != kAbsent) {
      if (program_.value(in.residual) == Value::kCurrents) {
        a.residual_currents = reinterpret_cast<const float*>(spikes(in.residual));
      } else {
        a.residual_planes = spikes(in.residual);
      }
      a.residual_scale = floats(in.residual_scale);
    }
    a.planes = place(plan_.steps[i].place);
    if (call_.state != nullptr && call_.step > 0) {
      a.v_init = state(i);
      a.v_init_size = a.neurons;
    } else {
      a.v_init = floats(in.v_init);
      if (a.v_init != nullptr && in.v_height > 0) a.v_init_size = in.v_height * in.v_width * a.channels;
    }
    if (call_.state != nullptr) a.v = state(i);
    return a;
  }

  void product(int64_t i) {
    Layer of = layer(i, firing(i));
    std::vector<float> shares;
    if (program_.kind(i) == Kind::average) {  // whose channels are known only now: prepared in this call
      Geometry& g = of.geometry;
      g.outputs = g.channels = g.groups = of.neuron.channels;
      shares.assign(g.outputs * g.taps(), static_cast<float>(1.0 / static_cast<double>(g.taps())));
      of.weights = {shares.data(), DType::kFloat32, false};
      of.prepared = nullptr;
    }
    multiply(i, of);
    call_.host->fired(i, of.neuron.planes, of.neuron.neurons * plan_.planes);
  }

  void multiply(int64_t i, const Layer& of) const {
    if (cpu::run(of, call_.parallel) != cpu::Refusal::kNone) refuse(i, "a weight is not finite");
  }

  void direct(int64_t i) {
    const Neuron<float> a = firing(i);
    const bool impulse = static_cast<Source>(program_.header.source) == Source::kImpulse;
    std::vector<float> silence;
    const float* y = nullptr;
    if (impulse && call_.state != nullptr && call_.step > 0) {
      silence.resize(a.neurons);
      y = silence.data();
    } else {
      y = constant(i, a.neurons);
    }
    cpu::if_scan(y, DType::kFloat32, impulse ? tandem::Source::kImpulse : tandem::Source::kConstant, a, call_.parallel);
    call_.host->fired(i, a.planes, a.neurons * plan_.planes);
  }

  // W x. A stream keeps it, and the x that it is of: mostly that of the next step too.
  const float* constant(int64_t i, int64_t neurons) {
    const float* x = real(at(i).input);
    if (call_.state == nullptr || !network_.keeps_product(i)) {
      return call_.host->product(window(i), weights(i), nullptr, x);
    }
    const int64_t inputs = plan_.batch * plan_.steps[i].in.features();
    float* y = state(i) + neurons;
    float* kept = y + neurons;
    if (call_.step == 0 || std::memcmp(kept, x, inputs * sizeof(float)) != 0) {
      std::copy_n(call_.host->product(window(i), weights(i), nullptr, x), neurons, y);
      std::copy_n(x, inputs, kept);
    }
    return y;
  }

  // A current is the potential, after one step, of a neuron that begins at 0 and never fires: all steps are samples of
  // one batch.
  void currents(int64_t i) {
    Layer of = layer(i, neurons(i));
    Geometry& g = of.geometry;
    of.neuron.T = 1;
    of.neuron.neurons *= T_;
    const int64_t inputs = g.batch * g.height * g.width * g.channels;
    thread_local cpu::Scratch<uint8_t> memory;
    uint8_t* steps = memory.reserve(T_ * inputs + of.neuron.neurons);
    cpu::split_steps(of.planes, static_cast<int32_t>(T_), inputs, steps, call_.parallel);
    of.neuron.planes = steps + T_ * inputs;  // silence
    of.neuron.v = reinterpret_cast<float*>(place(plan_.steps[i].place));
    of.planes = steps;
    g.batch *= T_;
    multiply(i, of);
  }

  Layer layer(int64_t i, const Neuron<float>& neuron) const {
    const Instruction& in = at(i);
    const Shape& image = plan_.steps[i].in;
    Layer of{network_.geometry(i), network_.weights_of(i), prepared(i), spikes(in.input), neuron, Way::kFastest};
    of.geometry.batch = plan_.batch;
    of.geometry.height = image.height + in.after_h;
    of.geometry.width = image.width + in.after_w;
    if (in.after_h + in.after_w > 0) {
      uint8_t* padded = place(plan_.steps[i].padded);
      cpu::pad_after(of.planes, plan_.batch * plan_.planes, image.height, image.width, image.channels, in.after_h,
                     in.after_w, padded, call_.parallel);
      of.planes = padded;
    }
    return of;
  }

  void max_pool(int64_t i, int64_t images, const Shape& in, const Shape& out) const {
    PoolWindow pool{images, in.height, in.width, in.channels, out.height, out.width, {}, {}, {}, {}};
    set_window(at(i), pool);
    cpu::max_pool(pool, spikes(at(i).input), place(plan_.steps[i].place), call_.parallel);
  }

  const uint8_t* prepared(int64_t i) const {
    return call_.prepared + reinterpret_cast<const int64_t*>(call_.prepared)[i];
  }
  // Of a layer that reads real numbers, or a readout.
  const float* weights(int64_t i) const {
    return at(i).few_bits != 0 ? reinterpret_cast<const float*>(prepared(i)) : floats(at(i).weight);
  }

  // What reads counts, after step t of this run, which is the stream's last of `steps`.
  void answer(int64_t i, int64_t t, int64_t steps, float* to) {
    const Instruction& in = at(i);
    const bool from_spikes = network_.reads_spikes(i);
    const float* x = from_spikes ? counts(i, t) : real(in.input);
    if (program_.kind(i) == Kind::flatten) {
      real_[i] = x;
    } else if (program_.kind(i) != Kind::readout) {
      real_[i] = call_.host->mean(window(i), from_spikes, x);
    } else {
      const float* bias = floats(in.shift);
      std::vector<float> bias_so_far;
      if (bias != nullptr && steps != call_.T) {
        const float share = static_cast<float>(steps) / static_cast<float>(call_.T);
        for (int64_t n = 0; n < in.outputs; ++n) bias_so_far.push_back(bias[n] * share);
        bias = bias_so_far.data();
      }
      const float* y = call_.host->product(window(i), weights(i), bias, x);
      std::copy_n(y, plan_.batch * in.outputs, to);
    }
  }

  // The counts after step t, times the gain, channels last.
  const float* counts(int64_t i, int64_t t) {
    const int64_t n = plan_.batch * plan_.steps[i].in.features();
    const uint8_t* planes = spikes(at(i).input);
    std::vector<float>& sum = so_far_[i];
    sum.resize(n);
    if (call_.every_step) {
      planes += t / 8 * n;
      for (int64_t k = 0; k < n; ++k) sum[k] += static_cast<float>(planes[k] >> (t % 8) & 1);
    } else {
      cpu::counts(planes, static_cast<int32_t>(plan_.planes), n, sum.data(), DType::kFloat32, call_.parallel);
    }
    if (call_.state != nullptr) {
      float* before = state(i);
      for (int64_t k = 0; k < n; ++k) sum[k] = before[k] = (call_.step > 0 ? before[k] : 0.f) + sum[k];
    }
    const auto gain = static_cast<float>(network::real(at(i).gain));
    if (gain == 1.f) return sum.data();
    scaled_.resize(n);
    for (int64_t k = 0; k < n; ++k) scaled_[k] = sum[k] * gain;
    return scaled_.data();
  }

  const Network& network_;
  const Program& program_;
  const Plan& plan_;
  const Call& call_;
  int64_t T_;
  std::vector<const float*> real_;          // by instruction, what is real-valued
  std::vector<std::vector<float>> so_far_;  // the counts that an instruction reads
  std::vector<float> scaled_;
  uint8_t* workspace_;  // of this thread
};

void Network::run(const Plan& plan, const Call& call) const { Run(*this, plan, call)(); }

}  // namespace tandem::network
