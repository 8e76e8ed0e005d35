#include "executor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "../cpu/scratch.h"
#include "../neuron/scan.h"
#include "../planes/bits.h"
#include "../planes/moves.h"
#include "stream.h"

namespace tandem::network {

// One run of a program: executes the instructions in order. Those that read counts run after all others, once per
// answer.
class Run {
 public:
  Run(const Network& network, const Plan& plan, const Call& call)
      : network_(network),
        program_(network.program_),
        plan_(plan),
        call_(call),
        T_(plan.stream ? 1 : plan.T),
        window_(network.waits() ? call.step / plan.T : 0),
        step_(network.waits() ? call.step % plan.T : call.step),
        values_(program_.size()),
        so_far_(program_.size()) {
    thread_local cpu::Scratch<uint8_t> workspace;
    workspace_ = workspace.reserve(plan.workspace);
    thread_local cpu::Scratch<float> bad;
    bad_ = plan.stream ? call.state : bad.reserve(plan.batch);
    if (!plan.stream || call.step == 0) std::fill_n(bad_, plan.batch, 0.f);
  }

  void operator()() {
    if (plan_.batch == 0) return;
    for (int64_t i = 0; i < program_.size(); ++i) {
      if (program_.values[i] == Value::kMeans) continue;
      values_[i] = result(i);
      plan_.stream ? stream(i) : execute(i);
    }
    for (int64_t t = call_.every_step ? 0 : T_ - 1; t < T_; ++t) {
      const int64_t steps = (plan_.stream ? step_ : t) + 1;
      const int64_t outputs = plan_.answer().features(), n = plan_.batch * outputs;
      float* to = call_.answer + (call_.every_step ? t : 0) * n;
      if (plan_.stream && window_ < plan_.steps.back().depth) {
        std::fill_n(to, n, std::numeric_limits<float>::quiet_NaN());
        continue;
      }
      for (int64_t i = 0; i < program_.size(); ++i) {
        if (program_.values[i] == Value::kMeans) values_[i] = from_counts(i, t, steps);
      }
      const float* last = real(program_.size() - 1);
      for (int64_t k = 0; k < n; ++k) to[k] = last[k] + bad_[k / outputs];
    }
  }

 private:
  const Instruction& at(int64_t i) const { return program_.instructions[i]; }
  const float* floats(int64_t offset) const { return network_.floats(offset); }
  uint8_t* place(int64_t offset) const { return workspace_ + offset * plan_.batch; }
  uint8_t* result(int64_t i) const { return place(plan_.steps[i].place); }
  float* state(int64_t offset) const { return call_.state + offset * plan_.batch; }
  const void* value(int64_t v) const { return v >= 0 ? values_[v] : call_.input; }
  const uint8_t* train(int64_t v) const { return static_cast<const uint8_t*>(value(v)); }
  const float* real(int64_t v) const { return static_cast<const float*>(value(v)); }
  const uint8_t* input(int64_t i) const { return delayed(plan_.steps[i].input, at(i).input); }
  const uint8_t* residual(int64_t i) const { return delayed(plan_.steps[i].residual, at(i).residual); }
  const uint8_t* delayed(const Delay& delay, int64_t value) const {
    return delay.windows > 0 ? place(delay.place) : value == kAbsent ? nullptr : train(value);
  }
  RealWindow window(int64_t i) const { return {at(i), plan_.batch, plan_.steps[i].in, plan_.steps[i].out}; }
  // The images that instruction i reads: one per sample and plane.
  int64_t images(int64_t i) const {
    return plan_.batch * (program_.value(at(i).input) == Value::kCounts ? 1 : plan_.planes);
  }

  void execute(int64_t i) {
    const bool from_train = program_.reads_train(i);
    const Shape &in = plan_.steps[i].in, &out = plan_.steps[i].out;
    switch (program_.kind(i)) {
      case Kind::layer:
        if (program_.values[i] == Value::kCurrents) return from_train ? currents(i, input(i)) : real_currents(i);
        return fire(i);
      case Kind::max_pool:
        if (from_train) return max_pool(i, in, out);
        values_[i] = call_.host->maximum(window(i), real(at(i).input));
        return;
      case Kind::flatten:
        if (!from_train || in.dims == 1) {
          values_[i] = value(at(i).input);
          return;
        }
        return cpu::to_channels_first(train(at(i).input), images(i), in.height * in.width, in.channels, result(i),
                                      call_.parallel);
      case Kind::popcount:
      case Kind::burst:
        return change_form(i);
      default:
        if (from_train) return fire(i);  // an average
        values_[i] = call_.host->mean(window(i), false, real(at(i).input));
    }
  }

  void change_form(int64_t i) {
    const int64_t from = at(i).input, n = plan_.batch * plan_.steps[i].in.features();
    if (plan_.stream || (from == kNetworkInput && call_.counted)) {
      values_[i] = value(from);
    } else if (program_.kind(i) == Kind::popcount) {
      cpu::count_bytes(train(from), static_cast<int32_t>(plan_.planes), n, result(i), call_.parallel);
    } else {
      cpu::burst_planes(train(from), static_cast<int32_t>(plan_.T), n, result(i), call_.parallel);
    }
  }

  // --- a step of a stream --------------------------------------------------------------------------------------------

  void stream(int64_t i) {
    const Plan::Step& s = plan_.steps[i];
    align(s.input, at(i).input);
    align(s.residual, at(i).residual);
    if (window_ < s.depth) return;
    const bool fires = program_.fires(i) || program_.values[i] == Value::kCurrents;
    return fires && program_.waits(i) ? wait(i) : execute(i);
  }

  void align(const Delay& delay, int64_t value) {
    if (delay.windows == 0) return;
    const int64_t n = plan_.batch * (value < 0 ? plan_.sample : plan_.steps[value].out).features();
    const bool currents = program_.value(value) == Value::kCurrents, once = currents && program_.waits(value);
    if (once && step_ + 1 < plan_.T) return;
    const int64_t turns = delay.windows * (once ? 1 : plan_.T), turn = once ? window_ : call_.step;
    float* ring = state(delay.state);
    uint8_t* then = place(delay.place);
    if (currents) return delay_currents(real(value), n, turns, turn, ring, reinterpret_cast<float*>(then));
    delay_spikes(train(value), n, turns, turn, reinterpret_cast<uint8_t*>(ring), then);
  }

  // One step of a layer with window timing: it integrates this window and fires the counts of the previous one.
  void wait(int64_t i) {
    const Plan::Step& s = plan_.steps[i];
    const bool first = step_ == 0, last = step_ + 1 == plan_.T, from_train = program_.reads_train(i);
    auto* memory = reinterpret_cast<uint8_t*>(state(s.state));
    const auto counters = [&](int64_t features) {
      uint8_t* bytes = memory;
      memory += bytes_as_floats(features) * sizeof(float) * plan_.batch;
      return bytes;
    };
    const int64_t inputs = plan_.batch * s.in.features(), neurons = plan_.batch * s.out.features();
    uint8_t* received = counters(from_train ? s.in.features() : s.out.features() * sizeof(float));
    if (from_train) {
      add_spikes(input(i), inputs, first, received);
    } else if (first) {
      std::memcpy(received, direct_product(i), neurons * sizeof(float));
    }
    if (program_.values[i] == Value::kCurrents) {
      if (!last) return;
      if (from_train) return currents(i, received);
      return one_current(i, reinterpret_cast<const float*>(received), reinterpret_cast<float*>(result(i)));
    }
    const uint8_t* more = residual(i);
    if (more != nullptr && program_.is_train(at(i).residual)) {
      uint8_t* sum = counters(s.out.features());
      add_spikes(more, neurons, first, sum);
      more = sum;
    }
    uint8_t* to_fire = counters(s.out.features());
    if (window_ > s.depth) {
      fire_counts(to_fire, neurons, step_, result(i));
      call_.host->fired(i, Timing::kStep, result(i), neurons);
    }
    if (last) run(i, received, firing(i, more, to_fire));
  }

  // --- layers --------------------------------------------------------------------------------------------------------

  // The neurons of instruction i without residual, state and outputs.
  Neuron<float> neurons(int64_t i) const {
    Neuron<float> a{};
    a.neurons = plan_.batch * plan_.steps[i].out.features();
    a.channels = plan_.steps[i].out.channels;
    a.T = static_cast<int32_t>(program_.waits(i) ? plan_.T : T_);
    a.steps = static_cast<int32_t>(plan_.T);
    at(i).set_neurons(a);
    a.v_init_size = 1;
    a.scale = floats(at(i).scale);
    a.shift = floats(at(i).shift);
    return a;
  }

  Neuron<float> firing(int64_t i, const uint8_t* residual, uint8_t* train) const {
    const Instruction& in = at(i);
    Neuron<float> a = neurons(i);
    if (residual != nullptr) {
      const bool currents = program_.value(in.residual) == Value::kCurrents;
      a.residual_currents = currents ? reinterpret_cast<const float*>(residual) : nullptr;
      a.residual_planes = currents ? nullptr : residual;
      a.residual_scale = floats(in.residual_scale);
    }
    a.planes = train;
    a.v_init = floats(in.v_init);
    if (a.v_init != nullptr && in.v_height > 0) a.v_init_size = in.v_height * in.v_width * a.channels;
    if (plan_.stream && !program_.waits(i)) {
      a.v = state(plan_.steps[i].state);
      if (step_ > 0) a.v_init = a.v, a.v_init_size = a.neurons;
    }
    a.bad = bad_;
    a.sample = plan_.steps[i].out.features();
    return a;
  }

  void fire(int64_t i) {
    const Neuron<float> a = firing(i, residual(i), result(i));
    run(i, program_.reads_train(i) ? static_cast<const void*>(input(i)) : now(i, a.neurons), a);
    call_.host->fired(i, a.timing, result(i), a.neurons * (program_.waits(i) ? 1 : plan_.planes));
  }

  // Runs the neurons of a layer. source: a spike train, or W x for a layer that reads real numbers.
  void run(int64_t i, const void* source, const Neuron<float>& neuron) const {
    if (!program_.reads_train(i)) return scan(static_cast<const float*>(source), neuron);
    Layer of = layer(i, static_cast<const uint8_t*>(source), neuron);
    if (program_.kind(i) != Kind::average) return cpu::run(of, call_.parallel);
    // An average is a depthwise convolution with weights of 1. The number of channels is known only here.
    Geometry& g = of.geometry;
    g.outputs = g.channels = g.groups = neuron.channels;
    const std::vector<int8_t> ones(g.outputs * g.taps(), 1);
    of.weights = {ones.data(), DType::kInt8, false};
    of.prepared = nullptr;
    cpu::run(of, call_.parallel);
  }

  bool is_impulse() const { return static_cast<Source>(program_.header.source) == Source::kImpulse; }
  const float* direct_product(int64_t i) const {
    return call_.host->product(window(i), weights(i), nullptr, real(at(i).input));
  }

  void scan(const float* y, const Neuron<float>& neuron) const {
    const auto source = is_impulse() ? tandem::Source::kImpulse : tandem::Source::kConstant;
    cpu::if_scan(y, DType::kFloat32, source, neuron, call_.parallel);
  }
  const float* silence(int64_t neurons) {
    silence_.resize(std::max<size_t>(silence_.size(), neurons));
    return silence_.data();
  }

  // The current of this step: W x, or 0 after an impulse. A stream keeps the product and x, because x is mostly the
  // same at the next step.
  const float* now(int64_t i, int64_t neurons) {
    if (is_impulse() && plan_.stream && step_ > 0) return silence(neurons);
    if (!plan_.stream || !program_.keeps_product(i)) return direct_product(i);
    const float* x = real(at(i).input);
    const int64_t inputs = plan_.batch * plan_.steps[i].in.features();
    float* y = state(plan_.steps[i].state) + (program_.fires(i) ? neurons : 0);
    float* kept = y + neurons;
    if (step_ == 0 || std::memcmp(kept, x, inputs * sizeof(float)) != 0) {
      std::copy_n(direct_product(i), neurons, y);
      std::copy_n(x, inputs, kept);
    }
    return y;
  }

  // The currents of a real-valued input at each step: W x, constant over the steps or 0 after an impulse.
  void real_currents(int64_t i) {
    const int64_t n = neurons(i).neurons, steps = program_.waits(i) ? 1 : T_;
    auto* out = reinterpret_cast<float*>(result(i));
    for (int64_t t = 0; t < steps; ++t, out += n) {
      if (t == 0 || (t == 1 && is_impulse())) {
        one_current(i, t == 0 ? now(i, n) : silence(n), out);
      } else {
        std::copy_n(out - n, n, out);
      }
    }
  }

  // The current of the product y of a real-valued input, for one step or one window.
  void one_current(int64_t i, const float* y, float* to) const {
    Neuron<float> a = neurons(i);
    if (!program_.waits(i)) a.T = 1;
    thread_local cpu::Scratch<uint8_t> no_spikes;
    a.planes = no_spikes.reserve(a.neurons);
    a.v = to;
    scan(y, a);
  }

  // The currents of a spike train: a current is the potential, after one step or window, of a neuron that starts at 0
  // and never fires. All steps are samples of one batch.
  void currents(int64_t i, const uint8_t* input) {
    Layer of = layer(i, input, neurons(i));
    Geometry& g = of.geometry;
    const int64_t inputs = g.batch * g.height * g.width * g.channels, steps = program_.waits(i) ? 1 : T_;
    of.neuron.neurons *= steps;
    thread_local cpu::Scratch<uint8_t> memory;
    uint8_t* bytes = memory.reserve((steps > 1 ? steps * inputs : 0) + of.neuron.neurons);
    of.neuron.planes = bytes;  // discarded: these neurons never fire
    of.neuron.v = reinterpret_cast<float*>(result(i));
    if (steps > 1) {
      uint8_t* spikes = bytes + of.neuron.neurons;
      cpu::unpack(of.planes, static_cast<int32_t>(steps), inputs, spikes, 1, 1, call_.parallel);
      of.planes = spikes;
      of.neuron.T = 1;
      g.batch *= steps;
    }
    cpu::run(of, call_.parallel);
  }

  Layer layer(int64_t i, const uint8_t* input, const Neuron<float>& neuron) const {
    const Instruction& in = at(i);
    const Shape& image = plan_.steps[i].in;
    Layer of{network_.geometry(i), network_.weights_of(i), prepared(i), input, neuron, Way::kFastest};
    of.geometry.batch = plan_.batch;
    of.geometry.height = image.height + in.after_h;
    of.geometry.width = image.width + in.after_w;
    if (in.after_h + in.after_w > 0) {
      uint8_t* padded = place(plan_.steps[i].padded);
      cpu::pad_after(of.planes, images(i), image.height, image.width, image.channels, in.after_h, in.after_w, padded,
                     call_.parallel);
      of.planes = padded;
    }
    return of;
  }

  void max_pool(int64_t i, const Shape& in, const Shape& out) const {
    const bool counted = program_.value(at(i).input) == Value::kCounts;
    PoolWindow pool{images(i), in.height, in.width, in.channels, out.height, out.width, {}, {}, {}, {}, counted};
    at(i).set_window(pool);
    cpu::max_pool(pool, train(at(i).input), result(i), call_.parallel);
  }

  const uint8_t* prepared(int64_t i) const { return call_.prepared + network_.parts_[i]; }
  // The float32 weights of a layer that reads real numbers, or of a readout.
  const float* weights(int64_t i) const {
    return network_.is_widened(i) ? reinterpret_cast<const float*>(prepared(i)) : floats(at(i).weight);
  }

  // The result of an instruction that reads counts, after step t of this run and `steps` steps of the window.
  const float* from_counts(int64_t i, int64_t t, int64_t steps) {
    const Instruction& in = at(i);
    const bool from_train = program_.reads_train(i);
    const float* x = from_train ? counts(i, t) : real(in.input);
    if (program_.kind(i) == Kind::flatten) return x;
    if (program_.kind(i) != Kind::readout) return call_.host->mean(window(i), from_train, x);
    const float* bias = floats(in.shift);
    const float share = static_cast<float>(steps) / static_cast<float>(plan_.T);
    std::vector<float> so_far;
    for (int64_t n = 0; n < in.outputs && bias != nullptr; ++n) so_far.push_back(bias[n] * share);
    return call_.host->product(window(i), weights(i), bias == nullptr ? nullptr : so_far.data(), x);
  }

  // The spike counts after step t times the gain, channels last.
  const float* counts(int64_t i, int64_t t) {
    const int64_t n = plan_.batch * plan_.steps[i].in.features();
    const uint8_t* bytes = train(at(i).input);
    const bool counted = program_.value(at(i).input) == Value::kCounts && !plan_.stream;
    std::vector<float>& sum = so_far_[i];  // torch's product depends on alignment, so it does not read the state
    sum.resize(n);
    if (counted) {
      const auto most = static_cast<uint8_t>(t + 1);  // a burst's spikes so far
      for (int64_t k = 0; k < n; ++k) sum[k] = static_cast<float>(std::min(bytes[k], most));
    } else if (call_.every_step) {
      bytes += t / 8 * n;
      for (int64_t k = 0; k < n; ++k) sum[k] += static_cast<float>(bytes[k] >> (t % 8) & 1);
    } else {
      cpu::counts(bytes, static_cast<int32_t>(plan_.planes), n, sum.data(), DType::kFloat32, call_.parallel);
    }
    if (plan_.stream) {
      float* before = state(plan_.steps[i].state);
      for (int64_t k = 0; k < n; ++k) sum[k] = before[k] = (step_ > 0 ? before[k] : 0.f) + sum[k];
    }
    const auto gain = static_cast<float>(network::real(at(i).gain));
    const float* each = program_.kind(i) == Kind::readout ? nullptr : floats(at(i).scale);
    if (gain == 1.f && each == nullptr) return sum.data();
    scaled_.resize(n);
    for (int64_t k = 0; k < n; ++k) scaled_[k] = sum[k] * (each == nullptr ? gain : each[k % at(i).outputs]);
    return scaled_.data();
  }

  const Network& network_;
  const Program& program_;
  const Plan& plan_;
  const Call& call_;
  int64_t T_;                               // steps of this run
  int64_t window_, step_;                   // of a stream: number of the window, and of the step in it
  std::vector<const void*> values_;         // by instruction: a train, currents or real numbers
  std::vector<std::vector<float>> so_far_;  // by instruction: the counts that it reads
  std::vector<float> scaled_, silence_;
  uint8_t* workspace_;  // of this thread
  float* bad_;          // [batch], of this thread or in a stream's state: NaN where a potential was not finite
};

void Network::run(const Plan& plan, const Call& call) const {
  if (!call.host->computes_in(program_.dtype())) throw std::invalid_argument("it computes in a half type");
  Run(*this, plan, call)();
}

}  // namespace tandem::network
