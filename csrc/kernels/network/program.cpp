#include "program.h"

#include <cstring>
#include <limits>

namespace tandem::network {

namespace {

constexpr double kLargest = std::numeric_limits<double>::max();

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  refuse(std::string(name) + ": expected " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
         std::to_string(value));
}

// Checks one instruction after its inputs have been checked.
class Checker {
 public:
  Checker(Program& program, int64_t number, const uint8_t* numbers, int64_t bytes)
      : program_(program), i_(program.instructions[number]), number_(number), numbers_(numbers), bytes_(bytes) {}

  Value check() const {
    check_range("kind", i_.kind, 0, static_cast<int64_t>(Kind::input));
    const Kind kind = static_cast<Kind>(i_.kind);
    check_value("input", i_.input);
    if (i_.residual != kAbsent) check_value("residual", i_.residual);
    check_range("fires", i_.fires, kind == Kind::layer ? 0 : 1, 1);
    check_range("ceil", i_.ceil, 0, 1);
    check_range("few_bits", i_.few_bits, 0, 1);
    check_range("axes", i_.axes, 0, 2);
    check_axis(i_.kernel_h, i_.stride_h, i_.padding_h, i_.after_h, i_.dilation_h);
    check_axis(i_.kernel_w, i_.stride_w, i_.padding_w, i_.after_w, i_.dilation_w);
    check_range("start_dim", i_.first, -8, 8);
    check_range("end_dim", i_.last, -8, 8);
    check_double("threshold", i_.threshold, std::numeric_limits<double>::denorm_min(), kLargest);
    check_double("leak", i_.leak, std::numeric_limits<double>::denorm_min(), 1);
    check_double("gain", i_.gain, -kLargest, kLargest);
    check_range("timing", i_.timing, 0, static_cast<int64_t>(Timing::kWindow));
    if (has_window_timing() && real(i_.leak) != 1) refuse("timing: neurons that integrate a window have no leak");
    check_range("T", i_.own_T, 0, has_window_timing() ? most_steps(Timing::kWindow) : 0);
    check_range("by_channel", i_.by_channel, 0, 1);
    if (kind != Kind::gather && i_.index != kAbsent) refuse("index: only a gather has one");
    if (kind == Kind::layer || kind == Kind::readout) {
      check_weights();
    } else if (kind == Kind::neurons || kind == Kind::sum) {
      check_range("outputs", i_.outputs, 1, kLargestSize);
      if (i_.weight != kAbsent || i_.step != kAbsent) refuse("weight, step: only layers and readouts have them");
      check_numbers("scale", i_.scale, i_.outputs);
      check_numbers("shift", i_.shift, i_.outputs);
      check_numbers("residual_scale", i_.residual_scale, i_.outputs);
    } else if (kind == Kind::gather) {
      check_gather();
    } else if (kind == Kind::attention) {
      for (const int64_t numbers : {i_.weight, i_.step, i_.scale, i_.shift, i_.residual_scale, i_.residual}) {
        if (numbers != kAbsent) refuse("weight, step, scale, shift, residual: attention has none");
      }
      check_range("outputs", i_.outputs, 1, kLargestSize);
      check_range("groups", i_.groups, 1, i_.outputs);
      if (i_.outputs % i_.groups != 0) refuse("groups: expected a divisor of the outputs");
    } else if (kind == Kind::input) {
      check_axes();
      check_range("source", i_.first, 0, static_cast<int64_t>(InputSource::kPixels));
      check_range("outputs", i_.outputs, 0, kLargestSize);
      checked_product({i_.outputs, i_.kernel_h, i_.kernel_w}, kMostFeatures);
    } else {
      check_axes();
      const bool scales = i_.scale != kAbsent;
      for (const int64_t numbers : {i_.weight, i_.step, i_.shift, i_.residual_scale, i_.residual}) {
        if (numbers != kAbsent) refuse("weight, step, shift, residual: only layers and readouts have them");
      }
      if (scales && kind != Kind::mean && kind != Kind::adaptive_mean) {
        refuse("scale: only layers, readouts and means have one");
      }
      if (i_.after_h + i_.after_w != 0) refuse("padding: a pooling has the same on both sides");
      if (kind != Kind::max_pool && i_.dilation_h * i_.dilation_w != 1) refuse("dilation: a mean has none");
      check_range("channels", i_.channels, 0, 0);
      check_range("outputs", i_.outputs, scales ? 1 : 0, scales ? kLargestSize : 0);
      check_numbers("scale", i_.scale, i_.outputs);
    }
    check_v_init();
    return value(kind, program_.value(i_.input));
  }

 private:
  // The kind of value that the instruction makes of x.
  Value value(Kind kind, Value x) const {
    if (x == Value::kCurrents) check_currents("input", i_.input);
    switch (kind) {
      case Kind::layer:
        return check_layer(x);
      case Kind::neurons:
        if (x != Value::kCurrents) refuse("input: expected currents");
        return has_window_timing() ? Value::kWindowTrain : Value::kStepTrain;
      case Kind::input:
        return static_cast<InputSource>(i_.first) >= InputSource::kSpikes ? Value::kStepTrain : Value::kReal;
      case Kind::output:
        if (x != Value::kMeans) not_run("an answer that does not come from a Readout or means");
        return Value::kMeans;
      case Kind::sum:
        if (x == Value::kMeans) {
          if (i_.residual != kAbsent && program_.value(i_.residual) != x) refuse("residual: expected means");
          return x;
        }
        check_term(x);
        if (i_.residual != kAbsent) check_term(program_.value(i_.residual), "residual", i_.residual);
        return Value::kCurrents;
      case Kind::gather:
        if (i_.residual != kAbsent && program_.value(i_.residual) != x)
          refuse("residual: expected a value like the input");
        if (x == Value::kReal || x == Value::kMeans) {
          const bool joins = x == Value::kMeans && i_.index == kAbsent && i_.residual != kAbsent;
          if (i_.by_channel != 0 && !joins) refuse("by_channel: real numbers are moved by feature");
          return x;
        }
        check_term(x);
        return x;
      case Kind::attention:
        if (x != Value::kWindowTrain || !has_window_timing()) refuse("input: expected spikes with timing window");
        return Value::kCurrents;
      case Kind::average:
        if (x == Value::kReal || x == Value::kMeans) return x;
        if (x == Value::kCurrents) refuse("input: expected spikes or real numbers, got currents");
        check_timing(x);
        if (real(i_.threshold) != static_cast<double>(i_.kernel_h * i_.kernel_w)) {
          refuse("threshold: expected the number of values in a pooling kernel");
        }
        return x;
      case Kind::flatten:
        return x;
      case Kind::popcount:
      case Kind::burst:
        if (x != (kind == Kind::popcount ? Value::kStepTrain : Value::kWindowTrain)) {
          refuse(std::string("input: expected spikes with timing ") + (kind == Kind::popcount ? "step" : "window"));
        }
        return kind == Kind::popcount ? Value::kWindowTrain : Value::kStepTrain;
      case Kind::max_pool:
        if (x == Value::kCurrents && !has_window_timing()) refuse("timing: the maximum of the currents of steps");
        return x;
      case Kind::upsample:
        if (program_.is_train(i_.input)) refuse("input: expected real numbers");
        return x;
      case Kind::mean:
      case Kind::adaptive_mean:
        return x == Value::kReal || x == Value::kCurrents ? x : Value::kMeans;
      default:
        if (x == Value::kReal) not_run("nothing in the network spikes");
        if (x == Value::kCurrents && !has_window_timing()) refuse("timing: a readout of the currents of steps");
        return Value::kMeans;
    }
  }

  // Checks what is added or moved: a train or currents.
  void check_term(Value x, const char* name = "input", int64_t value = kAbsent) const {
    if (x == Value::kReal || x == Value::kMeans) refuse(std::string(name) + ": expected spikes or currents");
    x == Value::kCurrents ? check_currents(name, value == kAbsent ? i_.input : value) : check_timing(x);
  }

  void check_currents(const char* name, int64_t value) const {
    if (program_.has_window_timing(value) != has_window_timing()) {
      refuse(std::string(name) + ": it is currents with another timing");
    }
  }

  void check_gather() const {
    for (const int64_t numbers : {i_.weight, i_.step, i_.scale, i_.shift, i_.residual_scale}) {
      if (numbers != kAbsent) refuse("weight, scale, shift: a gather has none");
    }
    check_range("outputs", i_.outputs, 1, kLargestSize);
    check_range("channels", i_.channels, 1, kMostFeatures);
    if (i_.residual != kAbsent && i_.by_channel == 0) refuse("residual: it is joined by channel");
    const int64_t pixels = i_.by_channel != 0 ? 1 : checked_product({i_.kernel_h, i_.kernel_w}, kMostFeatures);
    const int64_t size = checked_product({pixels, i_.outputs}, kMostFeatures);
    check_numbers("index", i_.index, size, sizeof(int32_t));
    if (i_.index == kAbsent) {
      if (i_.by_channel == 0 || i_.channels != i_.outputs)
        refuse("index: without one all channels are joined in order");
      return;
    }
    const auto* index = reinterpret_cast<const int32_t*>(numbers_ + i_.index);
    for (int64_t k = 0; k < size; ++k) check_range("index", index[k], -1, i_.channels - 1);
  }

  Value check_layer(Value x) const {
    if (x == Value::kMeans) not_run("it reads mean counts, which only a Readout may read");
    if (x == Value::kStepTrain || x == Value::kWindowTrain) check_timing(x);
    if (i_.fires == 0) return Value::kCurrents;
    if (x == Value::kCurrents) refuse("fires: neurons on a product of currents are an instruction of their own");
    if (i_.residual != kAbsent) {
      const Value residual = program_.value(i_.residual);
      if (program_.is_train(i_.residual)) {
        check_timing(residual);
      } else if (residual != Value::kCurrents) {
        not_run("its residual is real numbers: expected spikes or currents");
      } else if (program_.has_window_timing(i_.residual) != has_window_timing()) {
        not_run("its residual is currents with another timing");
      }
    }
    return has_window_timing() ? Value::kWindowTrain : Value::kStepTrain;
  }

  bool has_window_timing() const { return program_.has_window_timing(number_); }

  void check_timing(Value train) const {
    if (train != (has_window_timing() ? Value::kWindowTrain : Value::kStepTrain)) {
      refuse("timing: it reads spikes with the other timing");
    }
  }

  void not_run(const char* why) const {
    if (!program_.not_run.has_value()) program_.not_run.emplace(number_, why);
  }

  void check_value(const char* name, int64_t value) const {
    if (value != kNetworkInput && (value < 0 || value >= number_)) {
      refuse(std::string(name) + ": expected the number of an earlier instruction, got " + std::to_string(value));
    }
  }

  // Checks `size` numbers of `width` bytes each, by default of the type of the arithmetic. They may be absent.
  void check_numbers(const char* name, int64_t offset, int64_t size, int64_t width = 0) const {
    if (offset == kAbsent) return;
    if (width == 0) width = program_.dtype() == DType::kFloat64 ? 8 : 4;
    const int64_t length = checked_product({size, width}, bytes_);
    if (offset < 0 || offset % width != 0 || offset > bytes_ - length) {
      refuse(std::string(name) + ": its numbers lie outside of those of the network");
    }
  }

  void check_double(const char* name, int64_t bits, double least, double most) const {
    const double value = real(bits);
    if (value >= least && value <= most) return;
    refuse(std::string(name) + ": expected a finite number" + (least > 0 ? " above 0" : "") +
           (most == 1 ? " and at most 1" : "") + ", got " + std::to_string(value));
  }

  static void check_axis(int64_t kernel, int64_t stride, int64_t padding, int64_t after, int64_t dilation) {
    check_range("kernel_size", kernel, 1, kLargestKernel);
    check_range("stride", stride, 1, kLargestKernel);
    check_range("dilation", dilation, 1, kLargestKernel);
    check_range("padding", padding, 0, padding <= dilation * (kernel - 1) ? kLargestSize : kLargestPadding);
    check_range("padding", after, 0, 1);
  }

  void check_axes() const {
    if ((i_.axes < 2 && (i_.kernel_h * i_.stride_h * i_.dilation_h != 1 || i_.padding_h + i_.after_h != 0)) ||
        (i_.axes < 1 && (i_.kernel_w * i_.stride_w * i_.dilation_w != 1 || i_.padding_w + i_.after_w != 0))) {
      refuse("kernel_size, stride, padding, dilation: expected 1, 1, 0, 1 for axes that it does not have");
    }
  }

  void check_weights() const {
    check_axes();
    check_range("groups", i_.groups, 1, i_.axes == 0 ? 1 : kLargestSize);
    check_range("outputs", i_.outputs, 1, kLargestSize);
    check_range("channels", i_.channels, 1, kLargestSize);
    checked_product({i_.channels, i_.groups}, kLargestSize);
    if (i_.outputs % i_.groups != 0) refuse("groups: expected a divisor of the outputs");
    if (i_.weight == kAbsent) refuse("weight: layers and readouts need one");
    if (i_.few_bits != 0 && i_.step == kAbsent) refuse("step: weights of few bits need one");
    const int64_t weights = checked_product({i_.channels, i_.kernel_h, i_.kernel_w, i_.outputs}, bytes_);
    check_numbers("weight", i_.weight, weights, i_.few_bits != 0 ? 1 : size_of(program_.dtype()));
    check_numbers("step", i_.step, i_.outputs);
    check_numbers("scale", i_.scale, i_.outputs);
    check_numbers("shift", i_.shift, i_.outputs);
    check_numbers("residual_scale", i_.residual_scale, i_.outputs);
  }

  void check_v_init() const {
    check_range("v_init", i_.v_size_h, 0, i_.outputs > 0 ? kLargestSize : 0);
    check_range("v_init", i_.v_size_w, i_.v_size_h == 0 ? 0 : 1, i_.v_size_h == 0 ? 0 : kLargestSize);
    if ((i_.axes < 2 && i_.v_size_h > 1) || (i_.axes < 1 && i_.v_size_w > 1))
      refuse("v_init: it has more axes than the neurons");
    const int64_t size = checked_product({i_.v_size_h, i_.v_size_w, i_.outputs}, kMostFeatures);
    check_numbers("v_init", i_.v_init, i_.v_size_h == 0 ? 1 : size);
  }

  Program& program_;
  const Instruction& i_;
  const int64_t number_;
  const uint8_t* numbers_;
  const int64_t bytes_;
};

void check_header(const Header& header) {
  check_range("dtype", header.dtype, 0, static_cast<int64_t>(DType::kFloat64));
  check_range("weight_bits", header.weight_bits, 0, 8);
  check_range("source", header.source, 0, static_cast<int64_t>(InputSource::kPixels));
  check_range("any_T", header.any_T, 0, header.source == static_cast<int64_t>(InputSource::kSpikes) ? 1 : 0);
  check_range("T", header.T, 1 - header.any_T, tandem::most_steps(Timing::kStep));
  check_range("dims", header.dims, 0, 3);
  for (const int64_t size : {header.channels, header.height, header.width}) {
    check_range("shape", size, header.dims == 0 ? 0 : 1, header.dims == 0 ? 0 : kLargestSize);
  }
  check_range("fixed", header.fixed, 0, header.dims == 0 ? 0 : 1);
  if ((header.dims < 3 && header.height > 1) || (header.dims < 2 && header.width > 1))
    refuse("shape: it has more sizes than dims");
  checked_product({header.channels, header.height, header.width}, kMostFeatures);
}

}  // namespace

double real(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

Geometry Instruction::geometry() const {
  Geometry g{};
  g.outputs = outputs;
  g.groups = groups;
  g.channels = channels * groups;
  g.kernel[0] = kernel_h, g.kernel[1] = kernel_w;
  g.stride[0] = stride_h, g.stride[1] = stride_w;
  g.padding[0] = padding_h, g.padding[1] = padding_w;
  g.dilation[0] = dilation_h, g.dilation[1] = dilation_w;
  g.after[0] = after_h, g.after[1] = after_w;
  return g;
}

void refuse(const std::string& why) { throw Refusal(-1, why); }

int64_t checked_product(std::initializer_list<int64_t> sizes, int64_t most) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size < 0 || (size > 0 && product > most / size)) refuse("sizes whose product is too large");
    product *= size;
  }
  return product;
}

std::string vocabulary() {
  std::string names;
#define TANDEM_NAME(name) names += #name " ";
  TANDEM_HEADER_FIELDS(TANDEM_NAME) names += "\n";
  TANDEM_INSTRUCTION_FIELDS(TANDEM_NAME) names += "\n";
  TANDEM_KINDS(TANDEM_NAME)
#undef TANDEM_NAME
  const auto say = [&](const char* name, int64_t value) { names += name + ("=" + std::to_string(value)) + " "; };
  names += "\n";
  say("format", kFormat), say("absent", kAbsent), say("input", kNetworkInput);
  return names;
}

int64_t Program::mean_of(int64_t i) const {
  int64_t v = instructions[i].input;
  while (v >= 0 && kind(v) == Kind::flatten && values[v] == Value::kMeans) v = instructions[v].input;
  if (v < 0 || (kind(v) != Kind::mean && kind(v) != Kind::adaptive_mean) || !reads_train(v)) return -1;
  return instructions[v].scale == kAbsent && real(instructions[v].gain) == 1 ? v : -1;
}

int64_t Program::most_steps() const {
  for (int64_t i = 0; i < size(); ++i) {
    if (has_window_timing(i) || values[i] == Value::kWindowTrain) return tandem::most_steps(Timing::kWindow);
  }
  return tandem::most_steps(Timing::kStep);
}

Program read(const int64_t* words, int64_t count, const uint8_t* numbers, int64_t bytes) {
  constexpr int64_t header_words = sizeof(Header) / sizeof(int64_t), row = sizeof(Instruction) / sizeof(int64_t);
  Program program;
  if (count < header_words) refuse("the program is too short");
  std::memcpy(&program.header, words, sizeof(Header));
  if (program.header.format != kFormat) refuse("it is a program of another version");
  const int64_t n = program.header.instructions;
  check_range("instructions", n, 1, kMostInstructions);
  if (count != header_words + n * row) refuse("the program has another length than its header says");
  check_header(program.header);
  program.inputs.push_back(kNetworkInput);
  program.instructions.resize(n);
  std::memcpy(program.instructions.data(), words + header_words, n * sizeof(Instruction));
  for (int64_t i = 0; i < n; ++i) {
    try {
      program.values.push_back(Checker(program, i, numbers, bytes).check());
      Instruction& read = program.instructions[i];
      const bool joins = program.kind(i) == Kind::sum || program.kind(i) == Kind::gather;
      if (!joins && (program.kind(i) != Kind::layer || read.fires == 0)) read.residual = kAbsent;
      if (read.fires == 0) read.v_init = kAbsent;
      const Value made = program.values[i];
      const bool moved = made == Value::kReal || (made == Value::kStepTrain && !program.fires(i));
      program.roots.push_back(moved && program.kind(i) != Kind::burst ? program.root(read.input) : -1);
      if (program.kind(i) == Kind::input) {
        program.roots[i] = static_cast<int64_t>(program.inputs.size());
        program.inputs.push_back(i);
      }
      const auto jumps = [&](int64_t v) { return v >= 0 && program.jumps[v]; };
      const int64_t root = program.root(read.input);  // -1 of spikes that neurons fire
      const bool of_pixels = program.kind(i) == Kind::popcount ? root >= 0 && program.is_pixels(root)
                                                               : jumps(read.input) || jumps(read.residual);
      program.jumps.push_back(made == Value::kWindowTrain && !program.fires(i) && of_pixels);
    } catch (const Refusal& refusal) {
      throw Refusal(i, refusal.why);
    }
  }
  check_range("T", program.header.T, 0, program.most_steps());
  for (int64_t i = 0; i < n; ++i) {
    if (program.kind(i) == Kind::output) program.answers.push_back(i);
  }
  if (program.answers.empty()) program.answers.push_back(n - 1);
  if (program.values[program.answers.back()] != Value::kMeans) {
    program.not_run.emplace(-1, "the network does not end in a Readout or in means");
  }
  if (program.dtype() == DType::kFloat64) program.not_run.emplace(-1, "it does not compute in float64");
  return program;
}

}  // namespace tandem::network
