// frozen_run: runs a whole network in one call. The executor is csrc/kernels/network; this file adapts torch's tensors
// to it and lends it torch's products and pools for real-valued data.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <tuple>

#include "../kernels/cpu/halves.h"
#include "../kernels/network/executor.h"
#include "aten.h"
#include "neuron.h"

namespace tandem::ops {

namespace {

using network::Instruction;
using network::Network;
using network::Plan;
using network::RealLayer;
using network::Refusal;

Shape batched(int64_t batch, const network::Shape& s) {
  if (s.dims == 1) return {batch, s.channels};
  if (s.dims == 2) return {batch, s.channels, s.width};
  return {batch, s.channels, s.height, s.width};
}

// Both numbers, or with one axis the horizontal one.
Shape of_axes(int64_t axes, int64_t vertical, int64_t horizontal) {
  return axes == 1 ? Shape{horizontal} : Shape{vertical, horizontal};
}

// The type in which a program with weights of this type computes.
ScalarType type_of(DType weights) {
  if (weights == DType::kBFloat16) return ScalarType::BFloat16;
  return weights == DType::kFloat16 ? ScalarType::Half : ScalarType::Float;
}

// Whether torch gets the tensors of a convolution channels-last, and the layout: as in Product.direct of
// tandem_ext/functional/products.py, with the same bits. A file is not trusted to say it, since torch would write to
// foreign memory.
bool runs_channels_last(const Instruction& i) {
  if (i.axes != 2) return false;
  const bool reads_wrong = i.channels == 1 && i.stride_h == 1 && i.stride_w > 1;
  const bool strided = std::max(i.stride_h, i.stride_w) > 1;
  const bool writes_wrong = i.channels < 16 && i.kernel_h == 1 && i.kernel_w == 1 && strided;
  return !reads_wrong && !writes_wrong;
}

Tensor laid_out(const Tensor& x, bool last) {
  const int lead = last ? 1 : kContiguous;
  return view_channels_last(to_channels_last(x, lead), shape_of(x), lead);
}

// Whether torch multiplies the patches of a single image (ConvParams::use_mkldnn in its Convolution.cpp) and takes
// longer to copy them, number by number, than to multiply.
bool copies_patches(const RealLayer& layer, const Tensor& image) {
  const Instruction& i = layer.instruction;
  return layer.batch == 1 && i.groups == 1 && i.channels <= 4 && (i.kernel_h <= 3 || i.kernel_w <= 3) &&
         image.numel() <= 20480;
}

// The numbers that each output pixel reads, [pixels, kernel_h, kernel_w, channels], of an image with its channels last.
Tensor patches(const RealLayer& layer, const Tensor& image) {
  const Instruction& i = layer.instruction;
  const int64_t height = image.size(2), width = image.size(3), channels = i.channels;
  const int64_t row_size = i.kernel_h * i.kernel_w * channels;
  const Tensor rows = empty_channels_last({layer.out.height * layer.out.width, row_size}, 2, ScalarType::Float, image);
  const int64_t step = i.stride_w * channels;
  auto* to = pointer<float>(rows);
  std::fill_n(to, rows.numel(), 0.f);
  for (int64_t k = 0; k < row_size; ++k) {
    const int64_t below = k / channels / i.kernel_w * i.dilation_h - i.padding_h;
    const int64_t right = k / channels % i.kernel_w * i.dilation_w - i.padding_w;
    const int64_t first = right < 0 ? (-right + i.stride_w - 1) / i.stride_w : 0;
    const int64_t end = std::min(layer.out.width, (width - right + i.stride_w - 1) / i.stride_w);
    for (int64_t y = 0; y < layer.out.height; ++y) {
      const int64_t line = y * i.stride_h + below;
      if (line < 0 || line >= height) continue;
      const float* from = pointer<float>(image) + (line * width + right) * channels + k % channels;
      float* out = to + y * layer.out.width * row_size + k;
      for (int64_t x = first; x < end; ++x) out[x * row_size] = from[x * step];
    }
  }
  return rows;
}

class TorchNumbers : public network::Host {
 public:
  // `input` is float32 for every `type`, the type of the arithmetic. `address`: by which the executor names it, if not
  // by its own.
  TorchNumbers(const Tensor& input, ScalarType type, const float* address = nullptr)
      : input_(input), type_(type), address_(address != nullptr ? address : input.data_ptr()) {}

  bool computes_in(DType type) const override { return type != DType::kFloat64; }
  float as_type(float x) const override {
    if (type_ == ScalarType::BFloat16) return cpu::to_float(cpu::from_float<cpu::BFloat16>(x));
    return type_ == ScalarType::Half ? cpu::to_float(cpu::from_float<cpu::Float16>(x)) : x;
  }

  const float* product(const RealLayer& layer, const float* weight, const float* bias, const float* x) override {
    const Instruction& i = layer.instruction;
    Tensor images = tensor(layer, x);
    if (i.after_h + i.after_w > 0) {
      images = torch::stable::pad(images, i.axes == 1 ? Shape{0, i.after_w} : Shape{0, i.after_w, 0, i.after_h});
    }
    if (i.axes == 0) {
      OptionalTensor shift;
      if (bias != nullptr) shift = rounded(from_memory(bias, {i.outputs}));
      return keep(layer, aten::small_linear(images, rounded(from_memory(weight, {i.outputs, i.channels})), shift));
    }
    Shape size = of_axes(i.axes, i.kernel_h, i.kernel_w);
    size.insert(size.begin(), {i.outputs, i.channels});
    const bool last = runs_channels_last(i);
    const auto wide = [&](const Tensor& x) { return laid_out(aten::to_type(x, ScalarType::Float), last); };
    images = wide(images);
    const Tensor weights = wide(rounded(from_memory(weight, size)));
    if (last && copies_patches(layer, images)) {
      const Tensor flat = view_channels_last(weights, {i.outputs, i.weights() / i.outputs}, 2);
      return keep(layer, rounded(aten::small_linear(patches(layer, images), flat)));
    }
    const Tensor y = aten::convolution(images, weights, of_axes(i.axes, i.stride_h, i.stride_w),
                                       of_axes(i.axes, i.padding_h, i.padding_w),
                                       of_axes(i.axes, i.dilation_h, i.dilation_w), i.groups);
    return keep(layer, to_channels_last(rounded(y), 1));
  }

  const float* mean(const RealLayer& layer, const float* x) override {
    const Instruction& i = layer.instruction;
    const Tensor images = pooled(layer, x);
    const Shape kernel{i.kernel_h, i.kernel_w};
    if (static_cast<network::Kind>(i.kind) == network::Kind::adaptive_mean) {
      return keep(layer, to_contiguous(aten::call("aten::adaptive_avg_pool2d", images, kernel)));
    }
    return keep(layer,
                to_contiguous(aten::call("aten::avg_pool2d", images, kernel, Shape{i.stride_h, i.stride_w},
                                         Shape{i.padding_h, i.padding_w}, false, true, std::optional<int64_t>())));
  }

  const float* maximum(const RealLayer& layer, const float* x) override {
    const Instruction& i = layer.instruction;
    return keep(layer, to_contiguous(aten::call("aten::max_pool2d", pooled(layer, x), Shape{i.kernel_h, i.kernel_w},
                                                Shape{i.stride_h, i.stride_w}, Shape{i.padding_h, i.padding_w},
                                                Shape{i.dilation_h, i.dilation_w}, i.ceil != 0)));
  }

  const float* upsampled(const RealLayer& layer, const float* x) override {
    const Shape size{layer.out.height, layer.out.width};
    const std::optional<double> scale;
    return keep(layer, to_contiguous(aten::call("aten::upsample_bilinear2d", pooled(layer, x), size,
                                                layer.instruction.ceil != 0, scale, scale)));
  }

  const float* gathered(const RealLayer& layer, const int32_t* index, const float* x) override {
    const Tensor images = to_contiguous(aten::to_type(tensor(layer, x), ScalarType::Float));
    const Tensor result = empty(layer.batch * layer.out.features(), ScalarType::Float, images);
    network::gather_features(layer, index, pointer<float>(images), pointer<float>(result));
    return keep(layer, result);
  }

 private:
  Tensor pooled(const RealLayer& layer, const float* x) const {
    return layer.currents ? from_memory(x, batched(layer.batch, layer.in), 1) : tensor(layer, x);
  }
  // The network's input may have any layout; later values are contiguous, or channels last.
  Tensor tensor(const RealLayer& layer, const float* x) const {
    const Shape shape = batched(layer.batch, layer.in);
    if (layer.channels_last) return rounded(from_memory(x, shape, 1));
    if (input_.scalar_type() != ScalarType::Float || x != address_) return rounded(from_memory(x, shape));
    return rounded(shape_of(input_) == shape ? input_ : torch::stable::reshape(input_, shape));
  }
  Tensor rounded(const Tensor& x) const { return aten::to_type(x, type_); }
  const float* keep(const RealLayer& layer, const Tensor& result) {
    TANDEM_CHECK(result.numel() == layer.batch * layer.out.features(), "the plan has another size than ",
                 shape_text(shape_of(result)));
    kept_.push_back(aten::to_type(result, ScalarType::Float));
    return static_cast<const float*>(kept_.back().data_ptr());
  }

  const Tensor& input_;
  const ScalarType type_;
  const void* address_;
  std::vector<Tensor> kept_;
};

void check_program(const Tensor& program) {
  TANDEM_CHECK(program.scalar_type() == ScalarType::Long && program.is_contiguous(),
               "program must be contiguous int64");
}

uint8_t* bytes_of(const Tensor& tensor, int64_t size, int64_t alignment, const char* what) {
  TANDEM_CHECK(tensor.scalar_type() == ScalarType::Byte && tensor.is_contiguous() && tensor.numel() == size &&
                   reinterpret_cast<uintptr_t>(tensor.data_ptr()) % alignment == 0,
               what, ", ", size, " bytes, contiguous, aligned to ", alignment);
  return pointer<uint8_t>(tensor);
}

// A network that was read, and the plans of its last calls: to read and to plan take as long as a small layer.
class Held {
 public:
  Held(const Tensor& program, const Tensor& numbers)
      : network(pointer<int64_t>(program), program.numel(), bytes_of(numbers, numbers.numel(), 8, "numbers must be"),
                numbers.numel()),
        numbers_(numbers),
        prepared_(empty(network.prepared_size(), ScalarType::Byte, numbers)) {
    network.prepare(pointer<uint8_t>(prepared_), torch_parallel);
  }

  const Network network;

  const uint8_t* prepared() const { return pointer<uint8_t>(prepared_); }

  // shape: [batch, *features].
  std::shared_ptr<const Plan> plan(const Shape& shape, int64_t T, network::Mode mode) {
    TANDEM_CHECK(shape.size() > 1 && shape.size() <= 4, "input must have 1 to 3 dimensions of features, got ",
                 shape_text(shape));
    network::Shape sample{static_cast<int64_t>(shape.size()) - 1, shape[1], 1, 1};
    if (sample.dims > 1) sample.width = shape.back();
    if (sample.dims > 2) sample.height = shape[2];
    // Never waits: a forked process has no other thread that could unlock it.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    for (size_t i = 0; lock && i < plans_.size(); ++i) {
      const Plan& p = *plans_[i];
      if (p.sample == sample && p.batch == shape[0] && p.T == T && p.mode == mode) return plans_[i];
    }
    const auto planned = std::make_shared<const Plan>(network.plan(sample, shape[0], T, mode));
    if (lock && plans_.size() == kMostPlans) plans_.erase(plans_.begin());
    if (lock) plans_.push_back(planned);
    return planned;
  }

 private:
  static constexpr size_t kMostPlans = 8;

  Tensor numbers_, prepared_;
  std::mutex mutex_;  // of the plans
  std::vector<std::shared_ptr<const Plan>> plans_;
};

// The first word of a handle: handles of other processes are refused.
int64_t seal() {
  static const int64_t word = static_cast<int64_t>(std::random_device()()) << 32 | std::random_device()();
  return word;
}

int64_t* words_of(const Tensor& handle) {
  const bool fits = handle.scalar_type() == ScalarType::Long && handle.is_contiguous() && handle.numel() == 2;
  TANDEM_CHECK(fits && pointer<int64_t>(handle)[0] == seal(),
               "network must be what frozen_read gives, until it is freed");
  return pointer<int64_t>(handle);
}

Held& held(const Tensor& handle) { return *reinterpret_cast<Held*>(words_of(handle)[1]); }

// Whether they are a program, and why not, or why the executor does not support it, with the number of the instruction.
std::tuple<bool, int64_t, std::string> frozen_check(Tensor program, Tensor numbers) {
  check_program(program);
  try {
    const uint8_t* bytes = bytes_of(numbers, numbers.numel(), 8, "numbers must be");
    const auto read = network::read(pointer<int64_t>(program), program.numel(), bytes, numbers.numel());
    if (!read.not_run.has_value()) return {true, -1, ""};
    return {true, read.not_run->instruction, read.not_run->why};
  } catch (const Refusal& refusal) {
    return {false, refusal.instruction, refusal.why};
  }
}

// Reads a network and packs its weights as this processor's kernels multiply them. Returns its handle.
Tensor frozen_read(Tensor program, Tensor numbers) {
  check_program(program);
  Tensor handle = empty(2, ScalarType::Long, numbers);
  pointer<int64_t>(handle)[1] = reinterpret_cast<int64_t>(new Held(program, numbers));
  pointer<int64_t>(handle)[0] = seal();
  return handle;
}

void frozen_free(Tensor handle) {
  delete &held(handle);
  words_of(handle)[0] = 0;
}

// The input and the shape [batch, *features] of its values; checked for P sheets if it has spikes.
Shape check_input(const Network& net, const Tensor& input, int64_t P, int64_t T) {
  const network::Header& header = net.program().header;
  const int64_t least = header.any_T != 0 ? 1 : header.T, most = header.any_T != 0 ? net.program().most_steps() : least;
  TANDEM_CHECK(T >= least && T <= most, "T must be ", least, "..", most, ", got ", T);
  const bool spikes = net.program().value(network::kNetworkInput) == network::Value::kStepTrain;
  const ScalarType type = type_of(net.program().dtype());
  TANDEM_CHECK(input.scalar_type() == (spikes ? ScalarType::Byte : type), "input must be ",
               spikes ? "uint8" : "of the type of the weights");
  TANDEM_CHECK(exact_counts(type, T) == type, "T: ", T, " steps are more than the type of the weights counts");
  Shape shape = shape_of(input);
  TANDEM_CHECK(shape.size() > 1, "input must have 1 to 3 dimensions of features, got ", shape_text(shape));
  if (!spikes) return shape;
  TANDEM_CHECK(shape[0] == P, "input must be [", P, ", B, *features], got ", shape_text(shape));
  shape.erase(shape.begin());
  return shape;
}

// Memory for the answers of a run, each [batch, *features], or with T > 0 [T, batch, *features].
struct Answers {
  Answers(const Plan& plan, int64_t T, const Tensor& device_of) {
    for (const network::Shape& shape : plan.answers) {
      const Shape out = batched(plan.batch, shape);
      tensors.push_back(empty_channels_last(T > 0 ? prepend(T, out) : out, kContiguous, ScalarType::Float, device_of));
      places.push_back(pointer<float>(tensors.back()));
    }
  }
  std::vector<Tensor> as(ScalarType type) const {
    std::vector<Tensor> typed;
    for (const Tensor& tensor : tensors) typed.push_back(aten::to_type(tensor, type));
    return typed;
  }

  std::vector<Tensor> tensors;
  std::vector<float*> places;
};

// input: planes uint8 [P, B, *features], counts uint8 [1, B, *features], or numbers [B, *features] of the program's
// type. Returns the answers [B, *features], or [T, B, *features] with every_step.
std::vector<Tensor> frozen_run(Tensor input, int64_t T, std::string timing, Tensor handle, bool every_step) {
  Held& own = held(handle);
  const Network& net = own.network;
  const bool spikes = net.program().value(network::kNetworkInput) == network::Value::kStepTrain;
  const ScalarType type = type_of(net.program().dtype());
  Timing input_timing = timing_of(timing);
  TANDEM_CHECK(input_timing == Timing::kStep || spikes, "counts are of spikes");
  const Shape shape = check_input(net, input, sheets(T, input_timing), T);
  Tensor dense = spikes ? to_channels_last(input, 2) : aten::to_type(input, ScalarType::Float);
  if (input_timing == Timing::kWindow && !net.reads_counts()) {
    dense = to_channels_last(burst_planes(dense, T), 2);
    input_timing = Timing::kStep;
  }
  const auto plan = own.plan(shape, T, network::Mode::kWindow);
  Answers answers(*plan, every_step ? T : 0, input);
  TorchNumbers host(dense, type);
  const uint8_t* weights = own.prepared();
  net.run(*plan, {dense.data_ptr(), input_timing, weights, every_step, answers.places, &host, torch_parallel});
  return answers.as(type);
}

// Memory for the state of a stream of inputs [batch, *features], of any values, and whether its neurons follow; or why
// there is no stream, with the number of the instruction.
std::tuple<Tensor, bool, int64_t, std::string> frozen_state(Tensor handle, Shape shape, int64_t T) {
  Held& own = held(handle);
  const network::Mode mode = own.network.stepwise();
  const bool follows = mode == network::Mode::kFollowing;
  try {
    return {empty(own.plan(shape, T, mode)->state, ScalarType::Byte, handle), follows, -1, ""};
  } catch (const Refusal& refusal) {
    return {empty(0, ScalarType::Byte, handle), follows, refusal.instruction, refusal.why};
  }
}

// Takes steps of a stream. input: as of frozen_run, or, of neurons that follow, absent: the one before. With `advances`
// planes [1, B, *features] of one step, by which the last T steps advance. Changes the state; with `begins` the state's
// values are ignored. Returns the answers [B, *features], facts int64 [3, B]: the steps that a sample took, the neurons
// that moved in the last step, and synaptic operations; and with_moves, of a single step of neurons that follow, the
// moves by instruction, int8 [B, *features] where it has counts.
std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> frozen_step(OptionalTensor input, bool advances,
                                                                         Shape shape, int64_t T, Tensor handle,
                                                                         Tensor state, bool begins, int64_t steps,
                                                                         bool with_moves) {
  Held& own = held(handle);
  const Network& net = own.network;
  const network::Mode mode = net.stepwise();
  const bool follows = mode == network::Mode::kFollowing;
  TANDEM_CHECK(steps >= 0 && (!with_moves || steps == 1), "moves are those of a single step");
  TANDEM_CHECK(input.has_value() || (follows && !begins), "a stream begins with an input");
  const ScalarType type = type_of(net.program().dtype());
  Tensor read = input.value_or(state), dense = read;
  int64_t layout = 0;
  if (input.has_value()) {
    TANDEM_CHECK(check_input(net, read, advances || !follows ? 1 : (T + 7) / 8, T) == shape,
                 "input must have the shape ", shape_text(shape));
    if (read.scalar_type() == ScalarType::Byte) {
      dense = to_channels_last(read, 2);
    } else {
      read = aten::to_type(read, ScalarType::Float);
      dense = to_contiguous(read);
      for (int64_t d = 0; d < read.dim(); ++d) layout = layout * 1000003 + read.stride(d);
    }
  }
  const auto plan = own.plan(shape, T, mode);
  uint8_t* bytes = bytes_of(state, plan->state, 64, "state must be what frozen_state gives");
  const Answers answers(*plan, 0, state);
  Tensor facts = empty_channels_last({3, plan->batch}, kContiguous, ScalarType::Long, state);
  auto* taken = pointer<int64_t>(facts);
  std::vector<Tensor> moves;
  std::vector<int8_t*> places;
  for (size_t i = 0; with_moves && i < plan->steps.size(); ++i) {
    const bool counts = net.program().values[i] == network::Value::kWindowTrain;
    moves.push_back(
        empty_channels_last(counts ? batched(plan->batch, plan->steps[i].out) : Shape{0}, 1, ScalarType::Char, state));
    places.push_back(pointer<int8_t>(torch::stable::zero_(moves.back())));
  }
  TorchNumbers host(read, type, static_cast<const float*>(dense.data_ptr()));
  network::Frame frame;
  frame.input = input.has_value() ? dense.data_ptr() : nullptr;
  frame.prepared = own.prepared();
  frame.answers = answers.places;
  frame.host = &host;
  frame.parallel = torch_parallel;
  frame.advances = advances;
  frame.layout = layout;
  frame.state = bytes;
  frame.begins = begins;
  frame.steps = steps;
  frame.taken = taken, frame.moved = taken + plan->batch, frame.synapses = taken + 2 * plan->batch;
  frame.moves = with_moves ? places.data() : nullptr;
  net.step(*plan, frame);
  return {answers.as(type), facts, moves};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem, CompositeExplicitAutograd, m) {
  m.impl("frozen_fields", TORCH_BOX(&network::vocabulary));
}

STABLE_TORCH_LIBRARY_IMPL(tandem, CPU, m) {
  m.impl("frozen_check", TORCH_BOX(&frozen_check));
  m.impl("frozen_read", TORCH_BOX(&frozen_read));
  m.impl("frozen_free", TORCH_BOX(&frozen_free));
  m.impl("frozen_run", TORCH_BOX(&frozen_run));
  m.impl("frozen_state", TORCH_BOX(&frozen_state));
  m.impl("frozen_step", TORCH_BOX(&frozen_step));
}

}  // namespace tandem::ops
