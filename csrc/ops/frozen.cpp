// frozen_run: runs a whole network in one call. The executor is csrc/kernels/network; this file adapts torch's tensors
// to it.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <tuple>

#include "../kernels/network/executor.h"
#include "aten.h"
#include "neuron.h"
#include "torch_numbers.h"

namespace tandem::ops {

namespace {

using network::Network;
using network::Plan;
using network::Refusal;

// The type in which a program with weights of this type computes.
ScalarType type_of(DType weights) {
  if (weights == DType::kBFloat16) return ScalarType::BFloat16;
  return weights == DType::kFloat16 ? ScalarType::Half : ScalarType::Float;
}

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

  // shapes: [batch, *features], of each input.
  std::shared_ptr<const Plan> plan(const std::vector<Shape>& shapes, int64_t T, network::Mode mode) {
    std::vector<network::Shape> samples;
    const int64_t batch = shapes.at(0).at(0);
    for (const Shape& shape : shapes) {
      TANDEM_CHECK(shape.size() > 1 && shape.size() <= 4, "input must have 1 to 3 dimensions of features, got ",
                   shape_text(shape));
      TANDEM_CHECK(shape[0] == batch, "inputs must have one batch, got ", batch, " and ", shape[0]);
      network::Shape& sample =
          samples.emplace_back(network::Shape{static_cast<int64_t>(shape.size()) - 1, shape[1], 1, 1});
      if (sample.dims > 1) sample.width = shape.back();
      if (sample.dims > 2) sample.height = shape[2];
    }
    // Never waits: a forked process has no other thread that could unlock it.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    for (size_t i = 0; lock && i < plans_.size(); ++i) {
      const Plan& p = *plans_[i];
      if (p.samples == samples && p.batch == batch && p.T == T && p.mode == mode) return plans_[i];
    }
    const auto planned = std::make_shared<const Plan>(network.plan(samples, batch, T, mode));
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

// Checks an input, for P sheets if it has spikes; returns the shape [batch, *features] of its values.
Shape check_input(const Network& net, int64_t k, const Tensor& input, int64_t P, int64_t T) {
  const network::Header& header = net.program().header;
  const int64_t least = header.any_T != 0 ? 1 : header.T, most = header.any_T != 0 ? net.program().most_steps() : least;
  TANDEM_CHECK(T >= least && T <= most, "T must be ", least, "..", most, ", got ", T);
  const bool spikes = net.program().is_spiking(k);
  const ScalarType type = type_of(net.program().dtype());
  TANDEM_CHECK(input.scalar_type() == (spikes ? ScalarType::Byte : type), "input must be ",
               spikes ? "uint8" : "of the type of the weights");
  TANDEM_CHECK(exact_counts(type, T) == type, "T: ", T, " steps are more than the type of the weights counts");
  Shape shape = shape_of(input);
  TANDEM_CHECK(shape.size() > 1, "input must have 1 to 3 dimensions of features, got ", shape_text(shape));
  if (!spikes) return shape;
  if (net.program().is_pixels(k)) P = 1;
  TANDEM_CHECK(shape[0] == P, "input must be [", P, ", B, *features], got ", shape_text(shape));
  shape.erase(shape.begin());
  return shape;
}

// Inputs as the executor takes them, contiguous or as they are; absent ones have the shapes that are known.
struct Inputs {
  Inputs(const Network& net, const std::vector<OptionalTensor>& given, int64_t P, int64_t T, bool contiguous,
         std::vector<Shape> known = {})
      : shapes(std::move(known)), layouts(given.size()) {
    TANDEM_CHECK(given.size() == net.program().inputs.size(), "the network takes ", net.program().inputs.size(),
                 " inputs, got ", given.size());
    for (size_t k = 0; k < given.size(); ++k) {
      addresses.push_back(nullptr);
      images.emplace_back();
      if (!given[k].has_value()) continue;
      const Shape shape = check_input(net, k, *given[k], P, T);
      TANDEM_CHECK(shapes.size() <= k || shapes[k] == shape, "input must have the shape ", shape_text(shape));
      if (shapes.size() <= k) shapes.push_back(shape);
      const bool spikes = net.program().is_spiking(k);
      images[k] = spikes ? *given[k] : aten::to_type(*given[k], ScalarType::Float);
      dense.push_back(spikes ? to_channels_last(images[k], 2) : contiguous ? to_contiguous(images[k]) : images[k]);
      addresses[k] = dense.back().data_ptr();
      for (int64_t d = 0; d < images[k].dim(); ++d) layouts[k] = layouts[k] * 1000003 + images[k].stride(d);
    }
  }

  std::vector<Shape> shapes;
  std::vector<int64_t> layouts;
  std::vector<Tensor> images, dense;
  std::vector<const void*> addresses;
};

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

// Each input: planes uint8 [P, B, *features], counts uint8 [1, B, *features], or numbers [B, *features] of the
// program's type; `timing` is that of all that spike, pixels are counts. Returns the answers [B, *features], or
// [T, B, *features] with every_step.
std::vector<Tensor> frozen_run(std::vector<OptionalTensor> given, int64_t T, Text timing, Tensor handle,
                               bool every_step) {
  Held& own = held(handle);
  const Network& net = own.network;
  const ScalarType type = type_of(net.program().dtype());
  Timing input_timing = timing_of(timing);
  for (const OptionalTensor& input : given) TANDEM_CHECK(input.has_value(), "every input must be given");
  Inputs inputs(net, given, sheets(T, input_timing), T, false);
  if (input_timing == Timing::kWindow && !net.reads_counts()) {
    for (size_t k = 0; k < given.size(); ++k) {
      if (!net.program().is_spiking(k) || net.program().is_pixels(k)) continue;
      inputs.dense[k] = to_channels_last(burst_planes(inputs.dense[k], T), 2);
      inputs.addresses[k] = inputs.dense[k].data_ptr();
    }
    input_timing = Timing::kStep;
  }
  const auto plan = own.plan(inputs.shapes, T, network::Mode::kWindow);
  Answers answers(*plan, every_step ? T : 0, handle);
  TorchNumbers host(inputs.images, type, inputs.addresses);
  const uint8_t* weights = own.prepared();
  const int64_t threads = torch::stable::get_num_threads();
  net.run(*plan, {inputs.addresses, input_timing, weights, every_step, answers.places, &host, torch_parallel, threads});
  return answers.as(type);
}

// The shapes of inputs, [batch, *features, -1, *features of the second, ...], each with the batch.
std::vector<Shape> separated(const Shape& shape) {
  std::vector<Shape> shapes(1);
  for (const int64_t size : shape) {
    if (size < 0) shapes.push_back({shape[0]});
    if (size >= 0) shapes.back().push_back(size);
  }
  return shapes;
}

// Memory for the state of a stream of inputs of these shapes (`separated`), of any values, and whether its neurons
// follow; or why there is no stream, with the number of the instruction.
std::tuple<Tensor, bool, int64_t, std::string> frozen_state(Tensor handle, Shape shape, int64_t T) {
  Held& own = held(handle);
  const network::Mode mode = own.network.stepwise();
  const bool follows = mode == network::Mode::kFollowing;
  try {
    return {empty(own.plan(separated(shape), T, mode)->state, ScalarType::Byte, handle), follows, -1, ""};
  } catch (const Refusal& refusal) {
    return {empty(0, ScalarType::Byte, handle), follows, refusal.instruction, refusal.why};
  }
}

// Takes steps of a stream. Inputs: as of frozen_run, or, of neurons that follow, absent: the one before. With
// `advances` those that spike are planes [1, B, *features] of one step, by which the last T steps advance. Changes the
// state; with `begins` the state's values are ignored. Returns the answers [B, *features], facts int64 [3, B]: the
// steps that a sample took, the neurons that moved in the last step, and synaptic operations; and with_moves, of a
// single step of neurons that follow, the moves by instruction, int8 [B, *features] where it has counts that move.
std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> frozen_step(std::vector<OptionalTensor> given,
                                                                         bool advances, Shape shape, int64_t T,
                                                                         Tensor handle, Tensor state, bool begins,
                                                                         int64_t steps, bool with_moves) {
  Held& own = held(handle);
  const Network& net = own.network;
  const network::Mode mode = net.stepwise();
  const bool follows = mode == network::Mode::kFollowing;
  TANDEM_CHECK(steps >= 0 && (!with_moves || steps == 1), "moves are those of a single step");
  for (const OptionalTensor& input : given) {
    TANDEM_CHECK(input.has_value() || (follows && !begins), "a stream begins with every input");
  }
  const ScalarType type = type_of(net.program().dtype());
  const Inputs inputs(net, given, advances || !follows ? 1 : (T + 7) / 8, T, true, separated(shape));
  const auto plan = own.plan(inputs.shapes, T, mode);
  uint8_t* bytes = bytes_of(state, plan->state, 64, "state must be what frozen_state gives");
  const Answers answers(*plan, 0, state);
  Tensor facts = empty_channels_last({3, plan->batch}, kContiguous, ScalarType::Long, state);
  auto* taken = pointer<int64_t>(facts);
  std::vector<Tensor> moves;
  std::vector<int8_t*> places;
  for (size_t i = 0; with_moves && i < plan->steps.size(); ++i) {
    const bool counts = net.program().values[i] == network::Value::kWindowTrain && !net.program().jumps[i];
    moves.push_back(
        empty_channels_last(counts ? batched(plan->batch, plan->steps[i].out) : Shape{0}, 1, ScalarType::Char, state));
    places.push_back(pointer<int8_t>(torch::stable::zero_(moves.back())));
  }
  TorchNumbers host(inputs.images, type, inputs.addresses);
  network::Frame frame;
  frame.inputs = inputs.addresses;
  frame.prepared = own.prepared();
  frame.answers = answers.places;
  frame.host = &host;
  frame.parallel = torch_parallel;
  frame.advances = advances;
  frame.layouts = inputs.layouts;
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
