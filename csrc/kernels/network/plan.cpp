// The shape of every value and its place in the workspace, for a batch of some size.
#include <algorithm>
#include <map>
#include <stdexcept>

#include "../product/moving.h"
#include "executor.h"

namespace tandem::network {

namespace {

std::string text(const Shape& s) {
  std::string sizes = std::to_string(s.channels);
  if (s.dims > 2) sizes += ", " + std::to_string(s.height);
  if (s.dims > 1) sizes += ", " + std::to_string(s.width);
  return "[" + sizes + "]";
}

// The number of positions of a kernel along an axis. With `ceil` the last may reach beyond the end, but begins before
// it.
int64_t extent(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t after, int64_t dilation,
               bool ceil) {
  const int64_t room = size + 2 * padding + after - dilation * (kernel - 1) - 1;
  if (room < 0) refuse("its window does not fit");
  int64_t n = (ceil ? room + stride - 1 : room) / stride + 1;
  if (ceil && (n - 1) * stride >= size + padding) --n;
  return n;
}

Shape windows(const Instruction& i, const Shape& in, int64_t channels, bool ceil = false) {
  const int64_t height = extent(in.height, i.kernel_h, i.stride_h, i.padding_h, i.after_h, i.dilation_h, ceil);
  const int64_t width = extent(in.width, i.kernel_w, i.stride_w, i.padding_w, i.after_w, i.dilation_w, ceil);
  return {in.dims, channels, height, width};
}

Shape result(const Program& program, int64_t number, const Shape& in) {
  const Instruction& i = program.instructions[number];
  const Kind kind = program.kind(number);
  switch (kind) {
    case Kind::layer:
    case Kind::readout:
      if (in.dims != i.axes + 1 || in.channels != i.channels * i.groups) {
        refuse("it wants " + std::to_string(i.channels * i.groups) + " channels and " + std::to_string(i.axes) +
               " axes, its input is " + text(in));
      }
      return windows(i, in, i.outputs);
    case Kind::popcount:
    case Kind::burst:
      return in;
    case Kind::flatten: {
      const int64_t first = i.first < 0 ? i.first + in.dims + 1 : i.first;
      const int64_t last = i.last < 0 ? i.last + in.dims + 1 : i.last;
      if (first != 1 || last != in.dims) refuse("only a Flatten of all features");
      return {1, in.features(), 1, 1};
    }
    default:  // pooling
      if (in.dims != 3) refuse("it wants images, its input is " + text(in));
      if (i.outputs > 0 && i.outputs != in.channels) refuse("scale: not of its input's channels, which is " + text(in));
      if (kind == Kind::adaptive_mean) return {3, in.channels, i.kernel_h, i.kernel_w};
      return windows(i, in, in.channels, kind == Kind::max_pool && i.ceil != 0);
  }
}

// Places in the workspace, in bytes per sample, which values share: a place is free again after its value's last
// reader.
class Places {
 public:
  explicit Places(std::vector<int64_t> last_use) : last_use_(std::move(last_use)) {}

  int64_t take(int64_t value, int64_t size, int64_t now) {
    size += -size & 3;  // currents are float32
    for (auto place = live_.begin(); place != live_.end();) {
      place = place->second.second < now ? live_.erase(place) : std::next(place);
    }
    int64_t start = 0;
    for (const auto& [begin, place] : live_) {
      if (start + size <= begin) break;
      start = std::max(start, begin + place.first);
    }
    if (size > 0) live_[start] = {size, value < 0 ? now : last_use_[value]};
    size_ = std::max(size_, start + size);
    return start;
  }
  int64_t size() const { return size_; }

 private:
  std::vector<int64_t> last_use_;                        // by value
  std::map<int64_t, std::pair<int64_t, int64_t>> live_;  // start -> size, last use
  int64_t size_ = 0;
};

// The last instruction that reads each value. Counts are read after all other instructions.
std::vector<int64_t> last_uses(const Program& program) {
  const int64_t n = program.size();
  std::vector<int64_t> last(n, 0);
  for (int64_t i = n; i-- > 0;) {
    const Instruction& reader = program.instructions[i];
    last[i] = std::max(last[i], i);
    const Kind kind = program.kind(i);
    const bool is_view = kind == Kind::flatten || kind == Kind::popcount || kind == Kind::burst;
    const bool counts = program.values[i] == Value::kMeans;
    if (reader.input >= 0) last[reader.input] = std::max(last[reader.input], counts ? n : is_view ? last[i] : i);
    if (reader.residual >= 0) last[reader.residual] = std::max(last[reader.residual], i);
  }
  return last;
}

}  // namespace

// Plans one instruction after the other.
class Planner {
 public:
  Planner(const Program& program, Plan& plan) : program_(program), plan_(plan), places_(last_uses(program)) {}

  void add(int64_t number) {
    const Instruction& i = program_.instructions[number];
    Plan::Step step{};
    step.in = shape_of(i.input);
    step.out = result(program_, number, step.in);
    const int64_t features = checked_size(step.out);
    const Value value = program_.values[number];
    check(number, step);
    if (plan_.mode == Mode::kFollowing) {
      follow(number, step);
    } else if (program_.is_train(number) || value == Value::kCurrents) {
      if (program_.reads_train(number) && i.after_h + i.after_w > 0) {
        const Shape padded{3, step.in.channels, step.in.height + i.after_h, step.in.width + i.after_w};
        step.padded = take(kAbsent, bytes_of(i.input, checked_size(padded)), number);
      }
      step.place = take(number, bytes_of(number, features), number);
    }
    if (plan_.mode == Mode::kSteps) step.state = keep_array<float>(kept_floats(number, step));
    plan_.steps.push_back(step);
  }

  int64_t workspace() const { return places_.size(); }

  // Keeps an array [batch, n] that begins at a cache line.
  template <class E>
  int64_t keep_array(int64_t n) {
    keep(-plan_.state & 63);
    return keep(n * static_cast<int64_t>(sizeof(E)));
  }

 private:
  const Plan::Step* at(int64_t value) const { return value < 0 ? nullptr : &plan_.steps[value]; }
  Shape shape_of(int64_t value) const { return value < 0 ? plan_.sample : at(value)->out; }
  static int64_t checked_size(const Shape& s) {
    return checked_product(checked_product(s.height, s.width, kMostFeatures), s.channels, kMostFeatures);
  }
  void check(int64_t number, const Plan::Step& step) const {
    const Instruction& i = program_.instructions[number];
    const Shape& out = step.out;
    if (!program_.fires(number)) return;
    if (i.residual != kAbsent && !(shape_of(i.residual) == out)) {
      refuse("its residual is " + text(shape_of(i.residual)) + ", its neurons " + text(out));
    }
    if (i.v_init != kAbsent && i.v_height * i.v_width > 1 && (i.v_height != out.height || i.v_width != out.width)) {
      refuse("v_init: not of the neurons' shape " + text(out));
    }
  }

  // The bytes per sample of a spike train or of currents.
  int64_t bytes_of(int64_t value, int64_t features) const {
    if (program_.value(value) == Value::kCounts) return features;
    if (program_.value(value) == Value::kSpikes) return checked_product(features, plan_.planes, kMostWorkspace);
    const int64_t steps = program_.has_window_timing(value) || plan_.mode != Mode::kWindow ? 1 : plan_.T;
    return checked_product(features, steps * sizeof(float), kMostWorkspace);
  }
  int64_t take(int64_t value, int64_t size, int64_t now) {
    const int64_t start = places_.take(value, size, now);
    if (places_.size() > kMostWorkspace) refuse("sizes whose product is too large");
    return start;
  }
  int64_t keep(int64_t bytes) {
    const int64_t start = plan_.state;
    plan_.state += bytes;
    if (plan_.state > kMostWorkspace) refuse("sizes whose product is too large");
    return start;
  }

  // The numbers per sample that an instruction with step timing keeps:
  //   layer             potentials; if its current is constant, also the product and the input
  //   reader of counts  the counts
  int64_t kept_floats(int64_t number, const Plan::Step& step) const {
    const Value value = program_.values[number];
    int64_t floats = 0;
    if (program_.reads_train(number) && value == Value::kMeans) floats = step.in.features();
    if (program_.fires(number)) floats = step.out.features();
    const bool constant = program_.keeps_product(number) && (program_.fires(number) || value == Value::kCurrents);
    if (constant) floats += step.out.features() + step.in.features();
    return floats;
  }

  // Neurons that follow their input: everything is of one window, and its values are kept from step to step.
  void follow(int64_t number, Plan::Step& step) {
    const Instruction& in = program_.instructions[number];
    const Value value = program_.values[number];
    const Kind kind = program_.kind(number);
    if (kind == Kind::burst || (program_.has_neurons(number) && !program_.has_window_timing(number))) {
      refuse("timing: a network runs step by step if all of its neurons have timing \"window\", or none");
    }
    if (value == Value::kMeans && program_.value(in.input) == Value::kSpikes) {
      refuse("it reads the network's input, which does not spike after the window");
    }
    const int64_t neurons = step.out.features(), rows = step.out.height * step.out.width;
    if (value == Value::kSpikes) step.place = take(number, bytes_of(number, neurons), number);
    Kept& k = step.kept;
    if (program_.has_neurons(number) && program_.reads_train(number)) {
      const bool by_channel = kind == Kind::average || (in.groups > 1 && in.channels == 1);
      k.sums_size = cpu::MovingSums::size(step.out.channels, by_channel ? 1 : in.groups, rows);
      k.sums = keep_array<double>(k.sums_size);
    } else if (program_.has_neurons(number)) {
      k.product = keep_array<float>(neurons);
    }
    k.marks = keep_array<uint8_t>(rows);
    k.lost = keep_array<float>(rows);
    k.planes = keep_array<uint8_t>(kind == Kind::popcount ? plan_.planes * neurons : 0);
    k.target = keep_array<uint8_t>(neurons);
    k.currents = keep_array<float>(value == Value::kCurrents ? neurons : 0);
    k.counts = keep_array<uint8_t>(value == Value::kCounts ? neurons : 0);
    k.answer = keep_array<float>(number + 1 == program_.size() ? neurons : 0);
  }

  const Program& program_;
  Plan& plan_;
  Places places_;
};

Plan Network::plan(const Shape& sample, int64_t batch, int64_t T, Mode mode) const {
  if (T < 1 || T > program_.most_steps()) {
    refuse("T: expected 1 to " + std::to_string(program_.most_steps()) + ", got " + std::to_string(T));
  }
  if (mode != Mode::kWindow && mode != stepwise()) refuse("its neurons do not run in this mode");
  Plan plan{{}, sample, batch, T, mode, mode == Mode::kSteps ? 1 : (T + 7) / 8, 0, 0, 0, 0, 0};
  checked_product(checked_product(sample.channels, sample.height, kMostFeatures), sample.width, kMostFeatures);
  Planner planner(program_, plan);
  if (mode == Mode::kSteps) plan.bad = planner.keep_array<float>(1);
  if (mode == Mode::kFollowing) {
    plan.rests = planner.keep_array<uint8_t>(1);
    plan.image = planner.keep_array<float>(program_.value(kNetworkInput) == Value::kReal ? sample.features() : 0);
  }
  for (int64_t n = 0; n < program_.size(); ++n) {
    try {
      planner.add(n);
    } catch (const std::invalid_argument& error) {
      refuse("instruction " + std::to_string(n) + ": " + error.what());
    }
  }
  plan.workspace = checked_product(planner.workspace(), batch, kMostWorkspace);
  plan.state = checked_product(plan.state, batch, kMostWorkspace) + (mode == Mode::kWindow ? 0 : sizeof(Stream));
  return plan;
}

}  // namespace tandem::network
