// The shape of every value and its place in the workspace, for a batch of some size.
#include <algorithm>
#include <map>

#include "../product/moving.h"
#include "executor.h"

namespace tandem::network {

namespace {

constexpr int64_t kStepsOfPiece = 8;  // of a window: a plane

// Whether there are currents of every step, so many numbers that a window runs piece by piece. Not with counts, whose
// readers wait for the whole window.
bool runs_in_pieces(const Program& program) {
  const std::vector<Value>& values = program.values;
  const bool has_currents = std::find(values.begin(), values.end(), Value::kCurrents) != values.end();
  return has_currents && program.most_steps() == most_steps(Timing::kStep);
}

std::string text(const Shape& s) {
  std::string sizes = std::to_string(s.channels);
  if (s.dims > 2) sizes += ", " + std::to_string(s.height);
  if (s.dims > 1) sizes += ", " + std::to_string(s.width);
  return "[" + sizes + "]";
}

// The shape of the only samples that a network answers, of one of its inputs.
std::optional<Shape> fixed_shape(const Program& program, size_t input) {
  const Header& header = program.header;
  if (header.fixed == 0) return std::nullopt;
  if (input == 0) return Shape{header.dims, header.channels, header.height, header.width};
  const Instruction& i = program.instructions[program.inputs[input]];
  return Shape{i.axes + 1, i.outputs, i.kernel_h, i.kernel_w};
}

// Places the kernel on its images; returns the shape of the results. With `ceil` the last place may reach beyond the
// end, but begins before it.
Shape place_kernel(Geometry& g, const Shape& in, bool ceil = false) {
  g.height = in.height;
  g.width = in.width;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t end = (axis == 0 ? g.height : g.width) + g.padding[axis], stride = g.stride[axis],
                  room = g.room(axis);
    if (room < 0) refuse("its kernel is larger than its padded input");
    const int64_t last = (room + stride - 1) / stride * stride;  // where one begins that may reach beyond the end
    if (ceil) g.after[axis] = last - room - (last < end ? 0 : stride);
  }
  return {in.dims, g.outputs, g.out_height(), g.out_width()};
}

Shape gathered(const Instruction& i, const Shape& in, const Shape* joined) {
  if (i.by_channel == 0) {
    if (in.features() != i.channels) {
      refuse("it takes " + std::to_string(i.channels) + " features, its input is " + text(in));
    }
    return {i.axes + 1, i.outputs, i.kernel_h, i.kernel_w};
  }
  if (joined != nullptr && (joined->dims != in.dims || joined->height != in.height || joined->width != in.width)) {
    refuse("it joins channels of " + text(in) + " and " + text(*joined) + ", which differ in other sizes");
  }
  const int64_t channels = in.channels + (joined == nullptr ? 0 : joined->channels);
  if (channels != i.channels) {
    refuse("it takes " + std::to_string(i.channels) + " channels, its inputs have " + std::to_string(channels));
  }
  return {in.dims, i.outputs, in.height, in.width};
}

// `other`: the shape of the residual, or null.
Shape result(const Program& program, int64_t number, const Shape& in, const Shape* other, Geometry& g) {
  const Instruction& i = program.instructions[number];
  const Kind kind = program.kind(number);
  switch (kind) {
    case Kind::gather:
      return gathered(i, in, other);
    case Kind::neurons:
    case Kind::sum:
      if (in.channels != i.outputs) {
        refuse("it takes " + std::to_string(i.outputs) + " channels, its input is " + text(in));
      }
      if (other != nullptr && !(*other == in)) refuse("it adds " + text(*other) + " to " + text(in));
      return in;
    case Kind::layer:
    case Kind::readout:
      if (in.dims != i.axes + 1 || in.channels != i.channels * i.groups) {
        refuse("it takes " + std::to_string(i.channels * i.groups) + " channels and " + std::to_string(i.axes) +
               " axes, its input is " + text(in));
      }
      return place_kernel(g, in);
    case Kind::popcount:
    case Kind::burst:
    case Kind::output:
      return in;
    case Kind::attention: {
      const int64_t keys = in.channels - i.outputs;  // of q and k
      if (in.dims != 2 || keys <= 0 || keys % (2 * i.groups) != 0) {
        refuse("it takes q, k and v of tokens in " + std::to_string(i.groups) + " heads, its input is " + text(in));
      }
      return {2, i.outputs, 1, in.width};
    }
    case Kind::flatten: {
      const int64_t first = i.first < 0 ? i.first + in.dims + 1 : i.first;
      const int64_t last = i.last < 0 ? i.last + in.dims + 1 : i.last;
      if (first != 1 || last != in.dims) refuse("a Flatten of some features is not supported: flatten all");
      return {1, in.features(), 1, 1};
    }
    default:  // pooling
      if (in.dims != i.axes + 1 || in.dims == 1) {
        refuse("it takes " + std::string(i.axes == 1 ? "lines" : "images") + ", its input is " + text(in));
      }
      if (i.outputs > 0 && i.outputs != in.channels) {
        refuse("scale: expected one value for each channel of its input " + text(in));
      }
      if (kind == Kind::adaptive_mean || kind == Kind::upsample) {
        if (in.dims != 3) refuse("it takes images, its input is " + text(in));
        return {3, in.channels, i.kernel_h, i.kernel_w};
      }
      g.outputs = g.channels = g.groups = in.channels;
      return place_kernel(g, in, kind == Kind::max_pool && i.ceil != 0);
  }
}

// Whether its result may be its input.
bool is_view(const Program& program, int64_t i) {
  const Kind kind = program.kind(i);
  return kind == Kind::flatten || kind == Kind::popcount || kind == Kind::burst;
}

// The last instruction that reads each value. Counts are read after all other instructions.
std::vector<int64_t> last_uses(const Program& program) {
  const int64_t n = program.size();
  std::vector<int64_t> last(n, 0);
  for (int64_t i = n; i-- > 0;) {
    const Instruction& reader = program.instructions[i];
    last[i] = std::max(last[i], i);
    const int64_t read = program.values[i] == Value::kMeans ? n : is_view(program, i) ? last[i] : i;
    if (reader.input >= 0) last[reader.input] = std::max(last[reader.input], read);
    if (reader.residual >= 0) last[reader.residual] = std::max(last[reader.residual], i);
  }
  return last;
}

// Whether an instruction reads and makes one sheet of each value, without the host: so it runs for any samples alone.
bool is_of_samples(const Program& program, int64_t i, const Plan& plan) {
  const Instruction& in = program.instructions[i];
  const Kind kind = program.kind(i);
  for (const int64_t v : {i, in.input, in.residual}) {
    if (v == kAbsent) continue;
    const Value value = program.value(v);
    const bool steps = value == Value::kStepTrain ? plan.planes > 1 : !(v >= 0 && program.has_window_timing(v));
    if (value == Value::kReal || (value != Value::kWindowTrain && steps)) return false;
  }
  const bool moves = kind == Kind::neurons || kind == Kind::sum || kind == Kind::gather || kind == Kind::flatten;
  return kind != Kind::input && (moves || !program.reads_currents(i));
}

// Finds the longest run of such instructions. Answers between them are computed later.
void cut(const Program& program, Plan& plan) {
  for (int64_t first = 0, i = 0; i < program.size(); ++i) {
    if (program.values[i] != Value::kMeans && !is_of_samples(program, i, plan)) first = i + 1;
    if (i + 1 - first > plan.end - plan.first) plan.first = first, plan.end = i + 1;
  }
}

// Which values are stored for the whole batch: those that are made or read outside of the cut. A view is as its input.
std::vector<bool> whole_values(const Program& program, const Plan& plan) {
  const int64_t n = program.size();
  std::vector<bool> whole(n);
  const auto is_cut = [&](int64_t i) { return i >= plan.first && i < plan.end && program.values[i] != Value::kMeans; };
  for (const int64_t answer : program.answers) whole[answer] = true;
  for (int64_t i = n; i-- > 0;) {
    const Instruction& reader = program.instructions[i];
    whole[i] = whole[i] || !is_cut(i);
    if (reader.input >= 0 && (!is_cut(i) || (is_view(program, i) && whole[i]))) whole[reader.input] = true;
    if (reader.residual >= 0 && !is_cut(i)) whole[reader.residual] = true;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t input = program.instructions[i].input;
    if (is_view(program, i) && (input < 0 || whole[input])) whole[i] = true;
  }
  return whole;
}

}  // namespace

// Plans one instruction after the other.
class Planner {
 public:
  Planner(const Program& program, Plan& plan)
      : program_(program), plan_(plan), last_use_(last_uses(program)), whole_(whole_values(program, plan)) {
    for (int64_t i = 0; i < program.size(); ++i) {  // the last piece reads it last
      if (whole_[i] && last_use_[i] >= plan.first) last_use_[i] = std::max(last_use_[i], plan.end - 1);
    }
  }

  void add(int64_t number) {
    Plan::Step step{};
    step.in = shape_of(program_.instructions[number].input);
    step.geometry = program_.instructions[number].geometry();
    step.whole = whole_[number];
    const int64_t residual = program_.instructions[number].residual;
    const Shape other = residual == kAbsent ? Shape{} : shape_of(residual);
    const bool is_input = program_.kind(number) == Kind::input;
    step.out = is_input ? plan_.samples[program_.roots[number]]
                        : result(program_, number, step.in, residual == kAbsent ? nullptr : &other, step.geometry);
    step.out.check();
    if (program_.kind(number) == Kind::attention) {  // float64 holds its sums
      const int64_t own = program_.instructions[number].own_T, T = own > 0 ? own : plan_.T;
      checked_product({step.in.features(), T, T, T}, int64_t{1} << 53);
      checked_product({step.in.channels, step.in.channels + step.in.width}, kMostFeatures);  // its scratch
    }
    if (program_.fires(number)) check_neurons(program_.instructions[number], step.out);
    if (plan_.mode == Mode::kFollowing) {
      follow(number, step);
    } else if (program_.kind(number) == Kind::input) {
      // its place is the caller's
    } else if (program_.is_train(number) || program_.values[number] == Value::kCurrents) {
      step.place = take(number, step.out.features());
    }
    if (plan_.goes_on()) keep_steps(number, step);
    plan_.steps.push_back(step);
  }

  // Keeps an array [batch, n] that begins at a cache line.
  template <class E>
  int64_t keep_array(int64_t n) {
    const int64_t start = (plan_.state + 63) & ~int64_t{63};
    plan_.state = start + n * static_cast<int64_t>(sizeof(E));
    return start;
  }

 private:
  Shape shape_of(int64_t value) const { return value < 0 ? plan_.samples[0] : plan_.steps[value].out; }
  void check_neurons(const Instruction& i, const Shape& out) const {
    if (i.residual != kAbsent && !(shape_of(i.residual) == out)) {
      refuse("its residual has shape " + text(shape_of(i.residual)) + ", its neurons " + text(out));
    }
    if (i.v_init != kAbsent && i.v_size_h * i.v_size_w > 1 && (i.v_size_h != out.height || i.v_size_w != out.width)) {
      refuse("v_init: expected the shape of the neurons, " + text(out));
    }
  }

  // A place in the workspace for a spike train or for currents, in bytes per sample. It is free again after the value's
  // last reader.
  int64_t take(int64_t number, int64_t features) {
    const Value value = program_.values[number];
    int64_t bytes = value == Value::kWindowTrain ? 1 : plan_.planes;  // bytes
    if (value == Value::kCurrents) bytes = (program_.has_window_timing(number) ? 1 : plan_.piece) * sizeof(float);
    int64_t size = checked_product({features, bytes}, kMostWorkspace);
    size += -size & 3;  // currents are float32
    for (auto place = live_.begin(); place != live_.end();) {
      place = place->second.second < number ? live_.erase(place) : std::next(place);
    }
    const bool remains = whole_[number] && number >= plan_.first && number < plan_.end;  // while a piece follows
    int64_t start = remains ? plan_.workspace : 0;
    for (const auto& [begin, place] : live_) {
      if (remains || start + size <= begin) break;
      start = std::max(start, begin + place.first);
    }
    if (size > 0) live_[start] = {size, last_use_[number]};
    plan_.workspace = std::max(plan_.workspace, start + size);
    return start;
  }

  void keep_steps(int64_t number, Plan::Step& step) {
    const bool counts = program_.reads_train(number) && program_.values[number] == Value::kMeans;
    const bool constant = program_.keeps_product(number);
    step.kept.potentials = keep_array<float>(program_.fires(number) ? step.out.features() : 0);
    step.kept.product = keep_array<float>(constant ? step.out.features() : 0);
    step.kept.x = keep_array<float>(constant ? step.in.features() : 0);
    const bool adds = counts && program_.adds_counts(number);
    step.kept.so_far = adds     ? keep_array<double>(step.out.features())
                       : counts ? keep_array<float>(step.in.features())
                                : keep_array<float>(0);
  }

  // Neurons that follow their input: everything is of one window, and its values are kept from step to step.
  void follow(int64_t number, Plan::Step& step) {
    const Instruction& in = program_.instructions[number];
    const Value value = program_.values[number];
    const Kind kind = program_.kind(number);
    if (kind == Kind::input) return;
    if (value == Value::kStepTrain && in.residual != kAbsent && program_.root(in.residual) != program_.roots[number]) {
      refuse("it joins spikes of two inputs, which do not come together: put layers before");
    }
    const bool in_time = program_.has_neurons(number) || value == Value::kCurrents;
    if (kind == Kind::burst || (in_time && !program_.has_window_timing(number))) {
      refuse("timing: a network runs step by step if all of its neurons have timing \"window\", or none");
    }
    if (value == Value::kMeans && program_.value(in.input) == Value::kStepTrain) {
      refuse("it reads the network's input, which does not spike after the window");
    }
    const int64_t neurons = step.out.features(), rows = step.out.height * step.out.width;
    if (value == Value::kStepTrain || program_.derives(number)) step.place = take(number, neurons);
    Kept& k = step.kept;
    if (kind == Kind::neurons) {
      // their input is kept as currents
    } else if (program_.has_neurons(number) && program_.reads_train(number) && !program_.jumps[in.input]) {
      const bool by_channel = kind == Kind::average || (in.groups > 1 && in.channels == 1);
      k.sums_size = cpu::MovingSums::size(step.out.channels, by_channel ? 1 : in.groups, rows);
      k.sums = keep_array<double>(k.sums_size);
    } else if (program_.has_neurons(number)) {
      k.product = keep_array<float>(neurons);
    }
    k.marks = keep_array<uint8_t>(rows);
    k.lost = keep_array<float>(rows);
    k.planes = keep_array<uint8_t>(kind == Kind::popcount ? plan_.planes * neurons : 0);
    k.oldest = keep_array<int64_t>(kind == Kind::popcount ? 1 : 0);
    k.target = keep_array<uint8_t>(neurons);
    k.currents = keep_array<float>(value == Value::kCurrents ? neurons : 0);
    k.counts = keep_array<uint8_t>(value == Value::kWindowTrain ? neurons : 0);
    const auto& answers = program_.answers;
    const bool is_answer = std::find(answers.begin(), answers.end(), number) != answers.end();
    k.answer = keep_array<float>(is_answer ? neurons : 0);
  }

  const Program& program_;
  Plan& plan_;
  std::vector<int64_t> last_use_;                        // by value
  std::vector<bool> whole_;                              // by value
  std::map<int64_t, std::pair<int64_t, int64_t>> live_;  // places in use: start -> size, last use
};

Plan Network::plan(const std::vector<Shape>& samples, int64_t batch, int64_t T, Mode mode) const {
  if (T < 1 || T > program_.most_steps()) {
    refuse("T: expected 1 to " + std::to_string(program_.most_steps()) + ", got " + std::to_string(T));
  }
  if (mode != Mode::kWindow && mode != stepwise()) refuse("its neurons do not run in this mode");
  if (samples.size() != program_.inputs.size()) {
    refuse("it takes " + std::to_string(program_.inputs.size()) + " inputs, got " + std::to_string(samples.size()));
  }
  for (size_t k = 0; k < samples.size(); ++k) {
    samples[k].check();
    if (const std::optional<Shape> only = fixed_shape(program_, k); only && !(samples[k] == *only)) {
      refuse("it answers samples of " + text(*only) + " alone, got " + text(samples[k]));
    }
  }
  int64_t piece = mode == Mode::kSteps ? 1 : T;
  if (mode == Mode::kWindow && runs_in_pieces(program_)) piece = std::min<int64_t>(T, kStepsOfPiece);
  Plan plan{{}, {}, samples, batch, T, mode, piece, (piece + 7) / 8};
  if (mode == Mode::kWindow && !plan.goes_on()) cut(program_, plan);
  Planner planner(program_, plan);
  if (plan.goes_on()) plan.bad = planner.keep_array<float>(1);
  if (mode == Mode::kFollowing) {
    plan.rests = planner.keep_array<uint8_t>(1);
    for (size_t k = 0; k < samples.size(); ++k) {
      const bool spikes = program_.is_spiking(static_cast<int64_t>(k));
      plan.images.push_back(planner.keep_array<float>(spikes ? 0 : samples[k].features()));
      plan.layouts.push_back(planner.keep_array<int64_t>(1));
    }
  }
  for (int64_t n = 0; n < program_.size(); ++n) {
    try {
      planner.add(n);
    } catch (const Refusal& refusal) {
      throw Refusal(n, refusal.why);
    }
  }
  for (const int64_t answer : program_.answers) plan.answers.push_back(plan.steps[answer].out);
  plan.of_sample = plan.workspace;
  plan.workspace = checked_product({batch, plan.workspace}, kMostWorkspace);
  plan.state = checked_product({batch, plan.state}, kMostWorkspace) + sizeof(Stream);
  return plan;
}

}  // namespace tandem::network
