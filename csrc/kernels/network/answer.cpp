// The answer: what is computed from counts, after all other instructions.
#include <algorithm>
#include <numeric>

#include "../neuron/if_neuron.h"
#include "../planes/bits.h"
#include "run.h"

namespace tandem::network {

namespace {

// A number of which all numbers of values that an axis of an adaptive mean averages are divisors.
int64_t multiple_of(int64_t in, int64_t out) {
  int64_t all = 1;
  for (int64_t j = 0; j < out; ++j) all = std::lcm(all, ((j + 1) * in + out - 1) / out - j * in / out);
  return all;
}

}  // namespace

void Run::answer(int64_t t, int64_t steps, const std::vector<float*>& to) {
  for (int64_t i = 0; i < program_.size(); ++i) {
    if (program_.values[i] == Value::kMeans) values_[i] = means(i, t, steps);
  }
  for (size_t n = 0; n < to.size(); ++n) {
    const int64_t outputs = plan_.answers[n].features();
    const float* answer = real(program_.answers[n]);
    for (int64_t k = 0; k < plan_.batch * outputs; ++k) to[n][k] = answer[k] + bad_[k / outputs];
  }
}

// The result of an instruction that reads counts, after step t of this run and `steps` steps of the window.
const float* Run::means(int64_t i, int64_t t, int64_t steps) {
  const Instruction& in = instruction(i);
  const Kind kind = program_.kind(i);
  const float share = static_cast<float>(steps) / static_cast<float>(plan_.T);
  const bool from_train = program_.reads_train(i);
  switch (kind) {
    case Kind::sum:
      return sum_of_means(i, share);
    case Kind::readout:
      return read_out(i, share, t);
    case Kind::flatten:
      means_[i] = means_[in.input];
      return real(in.input);
    case Kind::output:
      return real(in.input);
    case Kind::upsample:
      return call_.host->upsampled(real_layer(i), real(in.input));
    case Kind::max_pool:
      return call_.host->maximum(real_layer(i), real(in.input));
    case Kind::gather:
      if (in.residual != kAbsent) return joined_means(i);
      return call_.host->gathered(real_layer(i), reinterpret_cast<const int32_t*>(floats(in.index)), real(in.input));
    default:
      break;
  }
  const float* y = means_[i] = call_.host->mean(real_layer(i), from_train ? counts(i, t) : real(in.input));
  const float* scales = floats(in.scale);
  const auto gain = static_cast<float>(network::real(in.gain));
  const Shape& out = plan_.steps[i].out;
  const int64_t pixels = out.height * out.width, n = plan_.batch * out.features();
  answers_[i].resize(n);
  for (int64_t k = 0; k < n; ++k) {
    const float scale = scales == nullptr ? gain : scales[k / pixels % out.channels];
    answers_[i][k] = call_.host->as_type(call_.host->as_type(y[k]) * scale);
  }
  return answers_[i].data();
}

const float* Run::joined_means(int64_t i) {
  const int64_t size = plan_.steps[i].in.features(), all = plan_.steps[i].out.features();
  const float *x = real(instruction(i).input), *other = real(instruction(i).residual);
  std::vector<float>& joined = answers_[i];
  joined.clear();
  for (int64_t b = 0; b < plan_.batch; ++b, x += size, other += all - size) {
    joined.insert(joined.end(), x, x + size);
    joined.insert(joined.end(), other, other + all - size);
  }
  return joined.data();
}

// Of values in C, H, W order, with a share of the shift.
const float* Run::sum_of_means(int64_t i, float share) {
  const Instruction& in = instruction(i);
  const Shape& shape = plan_.steps[i].out;
  const int64_t pixels = shape.height * shape.width;
  const float *scale = floats(in.scale), *shift = floats(in.shift), *residual_scale = floats(in.residual_scale);
  const float *x = real(in.input), *added = in.residual == kAbsent ? nullptr : real(in.residual);
  const auto scaled = [&](const float* by, float value, int64_t k) {
    return by == nullptr ? value : call_.host->as_type(rounded_mul(by[k / pixels % shape.channels], value));
  };
  std::vector<float>& y = answers_[i];
  y.resize(plan_.batch * shape.features());
  for (int64_t k = 0; k < static_cast<int64_t>(y.size()); ++k) {
    y[k] = scaled(scale, x[k], k);
    if (shift != nullptr) y[k] = call_.host->as_type(rounded_add(y[k], shift[k / pixels % shape.channels] * share));
    if (added != nullptr) y[k] = call_.host->as_type(rounded_add(y[k], scaled(residual_scale, added[k], k)));
  }
  return y.data();
}

// (step gain) u + share bias, channels first; u is W c, or torch's product of real numbers.
const float* Run::read_out(int64_t i, float share, int64_t t) {
  const Instruction& in = instruction(i);
  const Shape& out = plan_.steps[i].out;
  const int64_t pixels = out.height * out.width, n = plan_.batch * out.features();
  const bool exact = program_.adds_counts(i);
  const float *bias = floats(in.shift), *step = exact ? floats(in.step) : nullptr;
  const auto gain = static_cast<float>(network::real(in.gain));
  std::vector<float> u(n), so_far;
  for (int64_t c = 0; c < out.channels && bias != nullptr; ++c) so_far.push_back(rounded_mul(bias[c], share));
  if (!exact) {
    const bool adds = bias != nullptr && in.axes == 0;
    const float* x = scaled_by(i, gain);
    const float* y = call_.host->product(real_layer(i), weights(i), adds ? so_far.data() : nullptr, x);
    if (in.axes == 0) return y;
    std::copy_n(y, n, u.data());
  } else if (program_.mean_of(i) >= 0) {
    add_means(i, program_.mean_of(i), u.data());
  } else {
    add_counts(i, t, u.data());
  }
  for (int64_t k = 0; k < n; ++k) {
    const int64_t c = k % out.channels;
    float y = u[k];
    if (exact) y = rounded_mul(step == nullptr ? gain : rounded_mul(step[c], gain), y);
    if (bias != nullptr) y = rounded_add(y, exact ? so_far[c] : call_.host->as_type(so_far[c]));
    u[k] = call_.host->as_type(y);
  }
  std::vector<float>& answer = answers_[i];
  answer.resize(n);
  transpose(u.data(), pixels, out.channels, answer.data());
  return answer.data();
}

// u = W c, exact and rounded once, of the counts so far.
void Run::add_counts(int64_t i, int64_t t, float* u) {
  const int64_t from = instruction(i).input, n = plan_.batch * plan_.steps[i].out.features();
  const bool bursts = program_.value(from) == Value::kWindowTrain;
  Neuron neuron{};
  neuron.T = static_cast<int32_t>(T_);
  neuron.timing = bursts ? Timing::kWindow : Timing::kStep;
  Layer train_layer = layer(i, plan_.batch, neuron);
  if (!goes_on() && !call_.every_step) return cpu::window_product(train_layer, u, call_.parallel);
  cpu::Workspace memory(memory_);
  if (call_.every_step) {
    const int64_t inputs = train_layer.geometry.sheet_size();
    const uint8_t* plane = train_layer.stored + (bursts ? 0 : t / 8 * inputs);
    auto* spikes = memory.take<uint8_t>(inputs);
    const int64_t most = t + 1 < T_ ? 1 : UINT8_MAX;  // the last step has the rest of a burst, whose T may be longer
    for (int64_t k = 0; k < inputs; ++k) {
      spikes[k] = static_cast<uint8_t>(bursts ? std::clamp<int64_t>(plane[k] - t, 0, most) : plane[k] >> (t % 8) & 1);
    }
    train_layer.stored = spikes;
    train_layer.neuron.timing = Timing::kWindow;  // the count of one step
  }
  sums_[i].resize(goes_on() ? 0 : n);
  double* so_far = goes_on() ? all<double>(kept(i).so_far) : sums_[i].data();
  cpu::add_window_product(train_layer, so_far, call_.parallel);
  std::copy_n(so_far, n, u);
}

// u = W c / n, of mean counts c / n: an exact sum of the integers c, byte by byte, divided in double and rounded once.
void Run::add_means(int64_t i, int64_t mean, float* u) {
  const Plan::Step &of = plan_.steps[mean], &step = plan_.steps[i];
  const Instruction& averaged = instruction(mean);
  const int64_t n = program_.kind(mean) == Kind::mean
                        ? averaged.kernel_h * averaged.kernel_w
                        : multiple_of(of.in.height, of.out.height) * multiple_of(of.in.width, of.out.width);
  const int64_t inputs = plan_.batch * step.in.features(), outputs = plan_.batch * step.out.features();
  cpu::Workspace memory(memory_);
  auto* means = memory.take<float>(inputs);
  transpose(means_[instruction(i).input], step.in.channels, step.in.height * step.in.width, means);
  const auto sum_of = [n](float mean) { return static_cast<int64_t>(double{mean} * static_cast<double>(n) + 0.5); };
  float largest = 0;  // also of no samples
  for (int64_t k = 0; k < inputs; ++k) largest = std::max(largest, means[k]);
  int64_t digits = 1;
  while (digits < 7 && sum_of(largest) >> 8 * digits > 0) ++digits;
  auto* bytes = memory.take<uint8_t>(digits * inputs);
  for (int64_t k = 0; k < inputs; ++k) {
    const int64_t sum = sum_of(means[k]);
    for (int64_t d = 0; d < digits; ++d) bytes[d * inputs + k] = static_cast<uint8_t>(sum >> 8 * d);
  }
  Neuron neuron{};
  neuron.T = UINT8_MAX;
  neuron.timing = Timing::kWindow;
  auto* sums = memory.take<double>(digits * outputs);
  std::fill_n(sums, digits * outputs, 0.0);
  const Layer all_digits{geometry(i, digits * plan_.batch), network_.weights_of(i), prepared(i), bytes, neuron, {}};
  cpu::add_window_product(all_digits, sums, call_.parallel);
  for (int64_t k = 0; k < outputs; ++k) {
    double sum = 0;
    for (int64_t d = digits; d-- > 0;) sum = sum * 256 + sums[d * outputs + k];
    u[k] = static_cast<float>(sum / static_cast<double>(n));
  }
}

// Real numbers that a readout reads, times its gain.
const float* Run::scaled_by(int64_t i, float gain) {
  const float* x = real(instruction(i).input);
  if (gain == 1) return x;
  scaled_.resize(plan_.batch * plan_.steps[i].in.features());
  std::transform(x, x + scaled_.size(), scaled_.begin(), [=](float value) { return value * gain; });
  return scaled_.data();
}

// The spike counts after step t, channels last.
const float* Run::counts(int64_t i, int64_t t) {
  const int64_t n = plan_.batch * plan_.steps[i].in.features();
  const uint8_t* bytes = train(instruction(i).input);
  const bool bursts = program_.value(instruction(i).input) == Value::kWindowTrain && !goes_on();
  std::vector<float>& sum = so_far_[i];  // torch's product depends on alignment, so it does not read the state
  auto* kept_sum = goes_on() ? all<float>(kept(i).so_far) : nullptr;
  if (sum.empty() && goes_on()) sum.assign(kept_sum, kept_sum + n);
  sum.resize(n);
  if (bursts) {
    const auto most = static_cast<uint8_t>(t + 1 < T_ ? t + 1 : UINT8_MAX);  // a burst's spikes so far
    for (int64_t k = 0; k < n; ++k) sum[k] = static_cast<float>(std::min(bytes[k], most));
  } else if (goes_on() || call_.every_step) {
    const int steps = call_.every_step ? 1 << t % 8 : UINT8_MAX;
    bytes += t / 8 * n;
    for (int64_t k = 0; k < n; ++k) sum[k] += static_cast<float>(__builtin_popcount(bytes[k] & steps));
  } else {
    cpu::counts(bytes, static_cast<int32_t>(planes_), n, sum.data(), DType::kFloat32, call_.parallel);
  }
  if (goes_on()) std::copy_n(sum.data(), n, kept_sum);
  return sum.data();
}

}  // namespace tandem::network
