// The shape of every value and its place in the workspace, for a batch of some size.
#include <algorithm>
#include <map>
#include <stdexcept>

#include "executor.h"

namespace tandem::network {

namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

std::string text(const Shape& s) {
  std::string sizes = std::to_string(s.channels);
  if (s.dims > 2) sizes += ", " + std::to_string(s.height);
  if (s.dims > 1) sizes += ", " + std::to_string(s.width);
  return "[" + sizes + "]";
}

// How often a window fits; with `ceil` it may hang over the end, but begins before it.
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
  const auto image = [&] {
    if (in.dims != 3) refuse("it wants images, its input is " + text(in));
  };
  switch (program.kind(number)) {
    case Kind::layer:
    case Kind::readout:
      if (in.dims != i.axes + 1 || in.channels != i.channels * i.groups) {
        refuse("it wants " + std::to_string(i.channels * i.groups) + " channels and " + std::to_string(i.axes) +
               " axes, its input is " + text(in));
      }
      return windows(i, in, i.outputs);
    case Kind::average:
      image();
      return windows(i, in, in.channels);
    case Kind::max_pool:
      image();
      return windows(i, in, in.channels, i.ceil != 0);
    case Kind::mean:
      image();
      return windows(i, in, in.channels);
    case Kind::adaptive_mean:
      image();
      return {3, in.channels, i.kernel_h, i.kernel_w};
    default: {
      const int64_t dims = in.dims + 1, first = (i.first % dims + dims) % dims, last = (i.last % dims + dims) % dims;
      if (in.dims > 1 && (first != 1 || last != in.dims)) refuse("only a Flatten of all features");
      return {1, in.features(), 1, 1};
    }
  }
}

// Bytes per sample and plane that values share: a place is free when the last reader is done.
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
  std::map<int64_t, std::pair<int64_t, int64_t>> live_;  // where it begins -> size, last use
  int64_t size_ = 0;
};

// The instruction after which nothing reads a value; counts are read when all else is done.
std::vector<int64_t> last_uses(const Program& program) {
  const auto n = static_cast<int64_t>(program.instructions.size());
  std::vector<int64_t> last(n, 0);
  for (int64_t i = n; i-- > 0;) {
    const Instruction& reader = program.instructions[i];
    last[i] = std::max(last[i], i);
    const bool is_view = program.kind(i) == Kind::flatten;
    const bool counts = program.values[i] == Value::kMeans || program.values[i] == Value::kAnswer;
    if (reader.input >= 0) last[reader.input] = std::max(last[reader.input], counts ? n : is_view ? last[i] : i);
    const bool has_residual = program.kind(i) == Kind::layer && reader.fires != 0 && reader.residual >= 0;
    if (has_residual) last[reader.residual] = std::max(last[reader.residual], i);
  }
  return last;
}

}  // namespace

Plan Network::plan(const Shape& sample, int64_t batch, int64_t planes) const {
  Plan plan{{}, batch, planes, 0, 0};
  Places places(last_uses(program_));
  const auto shape_of = [&](int64_t value) { return value < 0 ? sample : plan.steps[value].out; };
  checked_product(checked_product(sample.channels, sample.height, kMostFeatures), sample.width, kMostFeatures);
  for (size_t n = 0; n < program_.instructions.size(); ++n) {
    const auto number = static_cast<int64_t>(n);
    const Instruction& i = program_.instructions[n];
    try {
      Plan::Step step{shape_of(i.input), {}, 0, 0, plan.state};
      step.out = result(program_, number, step.in);
      const Shape& out = step.out;
      const int64_t pixels = checked_product(out.height, out.width, kMostFeatures);
      const int64_t features = checked_product(out.channels, pixels, kMostFeatures);
      const bool is_average = program_.kind(number) == Kind::average;
      const bool fires = is_layer(number) && (is_average || i.fires != 0);
      if (fires && !is_average && i.residual != kAbsent && !(shape_of(i.residual) == out)) {
        refuse("its residual is " + text(shape_of(i.residual)) + ", its neurons " + text(out));
      }
      if (fires && i.v_init != kAbsent && i.v_height * i.v_width > 1 &&
          (i.v_height != out.height || i.v_width != out.width)) {
        refuse("v_init: not of the neurons' shape " + text(out));
      }
      const bool is_view = program_.kind(number) == Kind::flatten && step.in.dims == 1;
      if (is_view && i.input >= 0) {
        step.place = plan.steps[i.input].place;
      } else if (program_.values[n] == Value::kSpikes || program_.values[n] == Value::kCurrents) {
        const bool currents = program_.values[n] == Value::kCurrents;
        if (is_layer(number) && reads_spikes(number) && i.after_h + i.after_w > 0) {
          const int64_t lines = checked_product(step.in.height + i.after_h, step.in.width + i.after_w, kMostFeatures);
          step.padded = places.take(-1, checked_product(lines, step.in.channels, kMostFeatures), number);
        }
        step.place = places.take(number, (currents ? 8 * sizeof(float) : 1) * features, number);  // 8 steps a plane
      }
      const bool counts = reads_spikes(number) && program_.values[n] >= Value::kMeans;
      plan.state += fires ? features : counts ? step.in.features() : 0;
      if (fires && keeps_product(number)) plan.state += features + step.in.features();
      plan.steps.push_back(step);
    } catch (const std::invalid_argument& error) {
      refuse("instruction " + std::to_string(n) + ": " + error.what());
    }
  }
  plan.workspace = checked_product(checked_product(places.size(), planes, kMostWorkspace), batch, kMostWorkspace);
  plan.state = checked_product(plan.state, batch, kMostWorkspace / 4);
  return plan;
}

}  // namespace tandem::network
