#include "run.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "../neuron/if_neuron.h"
#include "../neuron/scan.h"
#include "../planes/bits.h"
#include "../planes/pool.h"

namespace tandem::network {

namespace {

// Bytes of a piece's values for each thread: what the second cache of a core holds. Less, and the weights are read more
// often than the cache saves.
constexpr int64_t kCache = int64_t{1} << 21;

}  // namespace

Run::Run(const Network& network, const Plan& plan, const Call& call, int64_t steps, uint8_t* state)
    : network_(network),
      program_(network.program_),
      plan_(plan),
      call_(call),
      state_(state),
      T_(steps),
      planes_(plan.planes),
      batch_(plan.batch),
      values_(program_.size()),
      so_far_(program_.size()),
      sums_(program_.size()),
      answers_(program_.size()),
      means_(program_.size()) {
  if (!call.host->computes_in(program_.dtype())) refuse("dtype: this host does not compute in the type of its weights");
  results_ = memory_.take<uint8_t>(plan.workspace);
  bad_ = goes_on() ? all<float>(plan.bad) : memory_.take<float>(plan.batch);
  if (!goes_on()) std::fill_n(bad_, plan.batch, 0.f);
}

void Run::operator()() {
  if (plan_.batch == 0) return;
  execute(0, plan_.first);
  // So few samples at once that their values are still in the cache when they are read.
  const int64_t most = std::max<int64_t>(1, kCache * call_.threads / std::max<int64_t>(1, plan_.of_sample));
  const int64_t pieces = (plan_.batch + most - 1) / most, size = (plan_.batch + pieces - 1) / pieces;
  for (; first_ < plan_.batch; first_ += size) {
    batch_ = std::min(size, plan_.batch - first_);
    execute(plan_.first, plan_.end);
  }
  first_ = 0, batch_ = plan_.batch;
  execute(plan_.end, program_.size());
  std::vector<float*> to = call_.answers;
  for (int64_t t = call_.every_step ? 0 : T_ - 1; t < T_; ++t) {
    answer(t, before() + t + 1, to);
    for (size_t k = 0; k < to.size(); ++k) to[k] += plan_.batch * plan_.answers[k].features();
  }
}

void Run::execute(int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (program_.values[i] != Value::kMeans) execute(i);
  }
}

void Run::execute(int64_t i) {
  const bool from_train = program_.reads_train(i);
  const Shape& in = plan_.steps[i].in;
  values_[i] = place(i);
  switch (program_.kind(i)) {
    case Kind::layer:
      return program_.values[i] == Value::kCurrents ? currents(i) : fire(i);
    case Kind::neurons:
      return fire(i);
    case Kind::sum:
      return sum(i);
    case Kind::input:
      values_[i] = call_.inputs[program_.roots[i]];
      return;
    case Kind::gather:
      return gather(i);
    case Kind::attention:
      return attend(i);
    case Kind::max_pool:
      if (program_.reads_currents(i)) return move_currents(i);
      if (from_train) {
        const Timing timing =
            program_.value(instruction(i).input) == Value::kWindowTrain ? Timing::kWindow : Timing::kStep;
        return cpu::max_pool(geometry(i, images(i)), timing, train(instruction(i).input), result(i), call_.parallel);
      }
      values_[i] = call_.host->maximum(real_layer(i), real(instruction(i).input));
      return;
    case Kind::flatten:
      if ((!from_train && !program_.reads_currents(i)) || in.dims == 1) {
        values_[i] = stored(instruction(i).input);
        return;
      }
      if (!from_train) return move_currents(i);
      return cpu::to_channels_first(train(instruction(i).input), images(i), in.height * in.width, in.channels,
                                    result(i), call_.parallel);
    case Kind::popcount:
    case Kind::burst:
      return change_timing(i);
    case Kind::upsample:
      if (program_.reads_currents(i)) return move_currents(i);
      values_[i] = call_.host->upsampled(real_layer(i), real(instruction(i).input));
      return;
    default:
      if (from_train) return fire(i);  // an average
      if (program_.reads_currents(i)) return move_currents(i);
      values_[i] = call_.host->mean(real_layer(i), real(instruction(i).input));
  }
}

void Run::change_timing(int64_t i) {
  const int64_t from = instruction(i).input, n = batch_ * plan_.steps[i].in.features();
  const bool is_input = from == kNetworkInput || program_.kind(from) == Kind::input;
  const bool counts = is_input && (call_.timing == Timing::kWindow || program_.is_pixels(program_.root(from)));
  if (goes_on() || counts) {
    values_[i] = stored(from);
  } else if (program_.kind(i) == Kind::popcount) {
    cpu::count_bytes(train(from), static_cast<int32_t>(planes_), n, result(i), call_.parallel);
  } else {
    cpu::burst_planes(train(from), static_cast<int32_t>(plan_.T), n, result(i), call_.parallel);
  }
}

// --- layers ----------------------------------------------------------------------------------------------------------

Neuron Run::neurons(int64_t i) const {
  const Instruction& in = instruction(i);
  const Shape& out = plan_.steps[i].out;
  const bool fires = in.fires != 0;  // otherwise the threshold is out of reach, and v is the sum of the currents
  Neuron a{};
  a.neurons = batch_ * out.features();
  a.channels = out.channels;
  a.T = static_cast<int32_t>(program_.has_window_timing(i) ? plan_.T : T_);
  a.steps = static_cast<int32_t>(own_T(i));
  a.threshold = fires ? static_cast<float>(network::real(in.threshold)) : std::numeric_limits<float>::max();
  a.leak = fires ? static_cast<float>(network::real(in.leak)) : 1.f;
  a.timing = static_cast<Timing>(in.timing);
  a.scale = floats(in.scale);
  a.shift = floats(in.shift);
  a.residual_scale = floats(in.residual_scale);
  a.v_init = floats(in.v_init);
  a.v_init_size = a.v_init != nullptr && in.v_size_h > 0 ? in.v_size_h * in.v_size_w * a.channels : 1;
  a.sample = out.features();
  return a;
}

void Run::fire(int64_t i) {
  const Instruction& in = instruction(i);
  Neuron a = neurons(i);
  if (in.residual != kAbsent) {
    const bool currents = program_.value(in.residual) == Value::kCurrents;
    a.residual_currents = currents ? real(in.residual) : nullptr;
    a.residual_stored = currents ? nullptr : train(in.residual);
  }
  a.stored = result(i);
  a.bad = bad_ + first_;
  if (goes_on()) {
    a.v = all<float>(kept(i).potentials);
    if (before() > 0) a.v_init = a.v, a.v_init_size = a.neurons;
  }
  if (program_.reads_train(i)) {
    cpu::run(layer(i, batch_, a), call_.parallel);
  } else if (program_.kind(i) == Kind::neurons) {
    const Source source = program_.has_window_timing(i) ? Source::kImpulse : Source::kTrain;
    cpu::if_scan(real(in.input), DType::kFloat32, source, a, call_.parallel);
  } else {
    scan(i, now(i, a.neurons), a, call_.parallel);
  }
  call_.host->fired(i, a.timing, result(i), a.neurons * (program_.has_window_timing(i) ? 1 : planes_));
}

void Run::scan(int64_t i, const float* y, const Neuron& neuron, ParallelFor parallel) const {
  const auto source = program_.reads_impulse(i) ? Source::kImpulse : Source::kConstant;
  cpu::if_scan(y, DType::kFloat32, source, neuron, parallel);
}

// The current of this step: W x, or 0 after an impulse. A stream keeps the product and x, because x is mostly the same
// at the next step.
const float* Run::now(int64_t i, int64_t neurons) {
  if (program_.reads_impulse(i) && before() > 0) {
    silence_.assign(neurons, 0.f);
    return silence_.data();
  }
  if (!goes_on() || !program_.keeps_product(i)) return direct_product(i);
  const float* x = real(instruction(i).input);
  const int64_t inputs = batch_ * plan_.steps[i].in.features();
  auto *y = all<float>(kept(i).product), *shown = all<float>(kept(i).x);
  if (before() == 0 || std::memcmp(shown, x, inputs * sizeof(float)) != 0) {
    std::copy_n(direct_product(i), neurons, y);
    std::copy_n(x, inputs, shown);
  }
  return y;
}

// The products of a spike train. All steps are samples of one batch.
void Run::multiply_steps(Layer train_layer, int64_t steps, float* y) {
  const int64_t inputs = train_layer.geometry.sheet_size();
  cpu::Workspace memory(memory_);
  if (steps > 1) {
    auto* spikes = memory.take<uint8_t>(steps * inputs);
    cpu::unpack(train_layer.stored, static_cast<int32_t>(steps), inputs, spikes, 1, 1, call_.parallel);
    train_layer.stored = spikes;
    train_layer.neuron.timing = Timing::kWindow;  // the count of one step
    train_layer.geometry.batch *= steps;
  }
  cpu::window_product(train_layer, y, call_.parallel);
}

Layer Run::layer(int64_t i, int64_t batch, const Neuron& neuron) {
  Layer train_layer{geometry(i, batch), network_.weights_of(i), prepared(i), train(instruction(i).input), neuron, {}};
  if (program_.kind(i) == Kind::average) {
    const int64_t weights = train_layer.geometry.outputs * train_layer.geometry.taps();
    auto* ones = memory_.take<int8_t>(weights);
    std::fill_n(ones, weights, int8_t{1});
    train_layer.weights = {ones, DType::kInt8, false};
    train_layer.prepared = nullptr;
  }
  return train_layer;
}

void Network::run(const Plan& plan, const Call& call) const {
  if (!plan.goes_on()) return Run(*this, plan, call, plan.T)();
  cpu::Workspace memory;
  auto* state = memory.take<uint8_t>(plan.state);
  std::memset(state, 0, plan.state);
  Call piece = call;
  for (int64_t steps, first = 0; first < plan.T; first += steps) {
    steps = std::min(plan.piece, plan.T - first);
    Run(*this, plan, piece, steps, state)();
    call.host->forget(std::numeric_limits<int64_t>::max());
    reinterpret_cast<Stream*>(state)->steps += steps;
    for (size_t k = 0; k < call.inputs.size(); ++k) {
      const int64_t bytes = program_.is_spiking(k) ? plan.planes * plan.batch * plan.samples[k].features() : 0;
      piece.inputs[k] = static_cast<const uint8_t*>(piece.inputs[k]) + bytes;
    }
    for (size_t k = 0; k < call.answers.size() && call.every_step; ++k) {
      piece.answers[k] += steps * plan.batch * plan.answers[k].features();
    }
  }
}

void Network::step(const Plan& plan, const Frame& frame) const {
  if (plan.mode == Mode::kFollowing) return follow(plan, frame);
  auto& stream = *reinterpret_cast<Stream*>(frame.state);
  if (frame.begins) std::memset(frame.state, 0, plan.state);
  Run(*this, plan, frame, 1, frame.state)();
  ++stream.steps;
  std::fill_n(frame.taken, plan.batch, 1);
  for (int64_t* none : {frame.moved, frame.synapses}) std::fill_n(none, plan.batch, 0);
}

}  // namespace tandem::network
