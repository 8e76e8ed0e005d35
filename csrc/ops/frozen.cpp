// frozen_run: a whole network in one call. frozen_pack: the weights of one layer as the kernel wants them.
#include "frozen.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "../kernels/cpu/scratch.h"
#include "../kernels/if_scan.h"
#include "../kernels/spike_bits.h"
#include "../kernels/spike_product.h"
#include "../kernels/spike_window.h"
#include "aten.h"

namespace tandem::ops {

namespace {

// The header of a program, in front of its instructions.
struct Header {
  int64_t T, instructions, workspace, state, outputs;
};

// One run of a program on a batch: the whole window, or in a stream one step, whose membrane potentials come from and
// go back to `state`. With `every_step` the readout of a window is that after each of its steps.
class Run {
 public:
  Run(const Tensor& input, const Tensor& program, const Tensor& blob, const OptionalTensor& state, int64_t step,
      bool every_step)
      : input_(input),
        blob_(static_cast<const char*>(blob.data_ptr())),
        blob_size_(blob.numel()),
        step_(step),
        every_step_(every_step) {
    const auto* words = static_cast<const int64_t*>(program.data_ptr());
    constexpr int64_t header_words = sizeof(Header) / sizeof(int64_t), row = sizeof(Instruction) / sizeof(int64_t);
    TANDEM_CHECK(program.numel() >= header_words, "program is too short");
    std::memcpy(&header_, words, sizeof(header_));
    TANDEM_CHECK(program.numel() == header_words + header_.instructions * row, "program has ", program.numel(),
                 " words, expected ", header_words + header_.instructions * row);
    instructions_ = reinterpret_cast<const Instruction*>(words + header_words);
    streaming_ = state.has_value();
    T_ = streaming_ ? 1 : header_.T;
    planes_ = (T_ + 7) / 8;
    spikes_in_ = input.scalar_type() == ScalarType::Byte;
    batch_ = input.size(spikes_in_ ? 1 : 0);
    thread_local cpu::Scratch<uint8_t> workspace;
    workspace_ = workspace.reserve(header_.workspace * batch_ * planes_);
    state_ = empty(streaming_ ? batch_ * header_.state : 0, ScalarType::Float, input);
    if (streaming_) {
      TANDEM_CHECK(state->numel() == state_.numel() && state->scalar_type() == ScalarType::Float, "state must hold ",
                   state_.numel(), " float32, got ", state->numel());
      torch::stable::copy_(state_, *state);
    }
  }

  std::tuple<Tensor, Tensor> operator()() {
    Tensor answer;
    for (int64_t i = 0; i < header_.instructions; ++i) {
      const Instruction& instruction = instructions_[i];
      switch (instruction.kind) {
        case kDirect:
        case kImpulse:
          direct(instruction);
          break;
        case kProduct:
          product(instruction);
          break;
        case kMaxPool:
          max_pool(instruction);
          break;
        case kFlatten:
          flatten(instruction);
          break;
        case kPad:
          pad(instruction);
          break;
        case kCurrents:
          currents(instruction);
          break;
        case kReadout:
          answer = readout(instruction);
          break;
        default:
          TANDEM_CHECK(false, "unknown instruction ", instruction.kind);
      }
    }
    TANDEM_CHECK(answer.defined() && answer.size(answer.dim() - 1) == header_.outputs,
                 "program has no readout of its outputs");
    return {answer, state_};
  }

 private:
  static int64_t out_height(const Instruction& i) {
    return (i.height + 2 * i.padding_h - i.dilation_h * (i.kernel_h - 1) - 1) / i.stride_h + 1;
  }
  static int64_t out_width(const Instruction& i) {
    return (i.width + 2 * i.padding_w - i.dilation_w * (i.kernel_w - 1) - 1) / i.stride_w + 1;
  }

  const float* floats(int64_t offset) const {
    if (offset == kAbsent) return nullptr;
    TANDEM_CHECK(offset >= 0 && offset < blob_size_, "offset ", offset, " lies outside the blob of ", blob_size_,
                 " bytes");
    return reinterpret_cast<const float*>(blob_ + offset);
  }
  uint8_t* value(int64_t offset) const { return workspace_ + offset * batch_ * planes_; }
  const uint8_t* source(int64_t offset) const {
    return offset == kNetworkInput ? static_cast<const uint8_t*>(input_.data_ptr()) : value(offset);
  }

  // A layer without its state: what kCurrents needs, and the beginning of neurons().
  NeuronArgs<float> layer(const Instruction& i) const {
    NeuronArgs<float> a{};
    const float* constants = floats(i.constants);
    a.neurons = batch_ * out_height(i) * out_width(i) * i.outputs;
    a.channels = i.outputs;
    a.T = static_cast<int32_t>(T_);
    a.steps = static_cast<int32_t>(header_.T);
    a.threshold = constants[0];
    a.leak = constants[1];
    a.scale = floats(i.scale);
    a.shift = floats(i.shift);
    a.v_init_size = 1;
    return a;
  }

  NeuronArgs<float> neurons(const Instruction& i) const {
    NeuronArgs<float> a = layer(i);
    a.gate = static_cast<Gate>(i.gate);
    a.residual_planes = i.residual == kAbsent ? nullptr : source(i.residual);
    a.residual_currents = i.currents == kAbsent ? nullptr : reinterpret_cast<const float*>(value(i.currents));
    a.residual_scale = floats(i.residual_scale);
    a.planes = value(i.output);
    if (streaming_ && step_ > 0) {
      a.v_init = state_floats(i.state);
      a.v_init_size = a.neurons;
    } else {
      a.v_init = floats(i.v_init);
      if (i.v_init != kAbsent) a.v_init_size = i.v_init_size;
    }
    if (streaming_) a.v = state_floats(i.state);
    return a;
  }
  float* state_floats(int64_t offset) const { return static_cast<float*>(state_.data_ptr()) + offset * batch_; }

  Tensor view_floats(int64_t offset, const Shape& shape) const {
    TANDEM_CHECK(offset >= 0 && offset + 4 * tandem::ops::product(shape) <= blob_size_,
                 "a weight lies outside the blob");
    Shape strides(shape.size(), 1);
    for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
    return torch::stable::from_blob(const_cast<char*>(blob_) + offset, shape, strides, input_.device(),
                                    ScalarType::Float);
  }

  // y = W x by torch's own product, once for the window; x is [B, K], [B, C, L] or [B, C, H, W].
  Tensor direct_product(const Instruction& i) const {
    switch (input_.dim()) {
      case 2:
        return aten::linear(input_, view_floats(i.weight, {i.outputs, i.channels}));
      case 3:
        return aten::convolution(input_, view_floats(i.weight, {i.outputs, i.channels / i.groups, i.kernel_w}),
                                 {i.stride_w}, {i.padding_w}, {i.dilation_w}, i.groups);
      default:
        return aten::convolution(
            input_, view_floats(i.weight, {i.outputs, i.channels / i.groups, i.kernel_h, i.kernel_w}),
            {i.stride_h, i.stride_w}, {i.padding_h, i.padding_w}, {i.dilation_h, i.dilation_w}, i.groups);
    }
  }

  void direct(const Instruction& i) {
    const NeuronArgs<float> args = neurons(i);
    Tensor y;
    if (i.kind == kImpulse && streaming_ && step_ > 0) {
      y = empty(args.neurons, ScalarType::Float, input_);
      torch::stable::zero_(y);
    } else {
      y = to_channels_last(direct_product(i), 1);
      TANDEM_CHECK(y.numel() == args.neurons, "input of shape ", shape_text(shape_of(input_)),
                   " does not fit the program");
    }
    cpu::if_scan(y.data_ptr(), DType::kFloat32, i.kind == kDirect ? Source::kConstant : Source::kImpulse, args,
                 torch_parallel);
  }

  void product(const Instruction& i) { cpu::product_if(synapses(i, source(i.input)), neurons(i), torch_parallel); }

  // A current is the potential, after one step, of a neuron that begins at 0 and never fires: all steps are samples of
  // one batch.
  void currents(const Instruction& i) {
    NeuronArgs<float> a = layer(i);
    a.T = 1;
    a.neurons *= T_;
    const int64_t inputs = batch_ * i.height * i.width * i.channels;
    const Tensor steps = empty(T_ * inputs, ScalarType::Byte, input_);
    const Tensor silence = empty(a.neurons, ScalarType::Byte, input_);
    auto* spikes = static_cast<uint8_t*>(steps.data_ptr());
    cpu::split_steps(source(i.input), static_cast<int32_t>(T_), inputs, spikes, torch_parallel);
    a.planes = static_cast<uint8_t*>(silence.data_ptr());
    a.v = reinterpret_cast<float*>(value(i.output));
    SpikeProduct product = synapses(i, spikes);
    product.batch *= T_;
    cpu::product_if(product, a, torch_parallel);
  }

  SpikeProduct synapses(const Instruction& i, const uint8_t* planes) const {
    SpikeProduct p{};
    p.planes = planes;
    p.batch = batch_;
    p.height = i.height;
    p.width = i.width;
    p.channels = i.channels;
    p.outputs = i.outputs;
    p.groups = i.groups;
    p.kernel[0] = i.kernel_h, p.kernel[1] = i.kernel_w;
    p.stride[0] = i.stride_h, p.stride[1] = i.stride_w;
    p.padding[0] = i.padding_h, p.padding[1] = i.padding_w;
    p.dilation[0] = i.dilation_h, p.dilation[1] = i.dilation_w;
    TANDEM_CHECK(i.weight >= 0 && i.weight + 4 * cpu::packed_size(p) <= blob_size_, "a weight lies outside the blob");
    p.packed = reinterpret_cast<const int32_t*>(blob_ + i.weight);
    return p;
  }

  void pad(const Instruction& i) {
    cpu::pad_after(source(i.input), batch_ * planes_, i.height, i.width, i.channels, i.padding_h, i.padding_w,
                   value(i.output), torch_parallel);
  }

  void max_pool(const Instruction& i) {
    PoolWindow w{};
    w.images = batch_ * planes_;
    w.height = i.height;
    w.width = i.width;
    w.channels = i.channels;
    w.out_height = i.outputs / i.groups;  // the size that rounding gave
    w.out_width = i.groups;
    w.kernel[0] = i.kernel_h, w.kernel[1] = i.kernel_w;
    w.stride[0] = i.stride_h, w.stride[1] = i.stride_w;
    w.padding[0] = i.padding_h, w.padding[1] = i.padding_w;
    w.dilation[0] = i.dilation_h, w.dilation[1] = i.dilation_w;
    cpu::max_pool(w, source(i.input), value(i.output), torch_parallel);
  }

  void flatten(const Instruction& i) {
    cpu::to_channels_first(source(i.input), batch_ * planes_, i.height * i.width, i.channels, value(i.output),
                           torch_parallel);
  }

  // [B, outputs]; of every step [T, B, outputs].
  Tensor readout(const Instruction& i) {
    const int64_t features = i.height * i.width * i.channels, n = batch_ * features;
    Tensor counts = i.kernel_h > 0
                        ? empty_channels_last({batch_, i.channels, i.height, i.width}, 1, ScalarType::Float, input_)
                        : empty_channels_last({batch_, features}, 1, ScalarType::Float, input_);
    auto* now = static_cast<float*>(counts.data_ptr());
    if (every_step_) return readout_of_every_step(i, counts, n);
    cpu::counts(source(i.input), static_cast<int32_t>(planes_), n, now, DType::kFloat32, torch_parallel);
    if (!streaming_) return answer(i, counts, header_.T);
    float* so_far = state_floats(i.state);
    for (int64_t k = 0; k < n; ++k) now[k] = so_far[k] = (step_ > 0 ? so_far[k] : 0.f) + now[k];
    return answer(i, counts, step_ + 1);
  }

  Tensor readout_of_every_step(const Instruction& i, const Tensor& counts, int64_t n) {
    const Tensor answers = empty_channels_last({T_, batch_, i.outputs}, 2, ScalarType::Float, input_);
    auto* now = static_cast<float*>(counts.data_ptr());
    std::vector<float> so_far(n, 0.f);
    for (int64_t t = 0; t < T_; ++t) {
      const uint8_t* plane = source(i.input) + t / 8 * n;
      for (int64_t k = 0; k < n; ++k) now[k] = so_far[k] += static_cast<float>(plane[k] >> (t % 8) & 1);
      Tensor row =
          torch::stable::from_blob(static_cast<float*>(answers.data_ptr()) + t * batch_ * i.outputs,
                                   Shape{batch_, i.outputs}, Shape{i.outputs, 1}, input_.device(), ScalarType::Float);
      torch::stable::copy_(row, answer(i, counts, t + 1));
    }
    return answers;
  }

  // The readout after `steps` steps. Its features are the counts [B, C, H, W], which it may overwrite, averaged over
  // windows where there is a kernel, flattened.
  Tensor answer(const Instruction& i, Tensor counts, int64_t steps) const {
    const float* bias = floats(i.shift);
    std::vector<float> bias_so_far;
    if (bias != nullptr && steps != header_.T) {
      const float share = static_cast<float>(steps) / static_cast<float>(header_.T);
      for (int64_t n = 0; n < i.outputs; ++n) bias_so_far.push_back(bias[n] * share);
      bias = bias_so_far.data();
    }
    const float gain = floats(i.constants)[0];
    if (gain != 1.f) {
      auto* c = static_cast<float*>(counts.data_ptr());
      for (int64_t n = 0; n < counts.numel(); ++n) c[n] *= gain;
    }
    int64_t inputs = i.height * i.width * i.channels;
    if (i.kernel_h > 0) {
      counts = i.stride_h > 0 ? aten::avg_pool(counts, {i.kernel_h, i.kernel_w}, {i.stride_h, i.stride_w},
                                               {i.padding_h, i.padding_w})
                              : aten::adaptive_avg_pool(counts, {i.kernel_h, i.kernel_w});
      inputs = i.channels * counts.size(2) * counts.size(3);
      counts = torch::stable::reshape(counts, {batch_, inputs});
    }
    OptionalTensor bias_tensor;
    if (bias != nullptr) {
      bias_tensor = torch::stable::from_blob(const_cast<float*>(bias), Shape{i.outputs}, Shape{1}, input_.device(),
                                             ScalarType::Float);
    }
    return aten::linear(counts, view_floats(i.weight, {i.outputs, inputs}), bias_tensor);
  }

  const Tensor& input_;
  const char* blob_;
  int64_t blob_size_, step_;
  bool every_step_;
  Header header_;
  const Instruction* instructions_;
  bool streaming_, spikes_in_;
  int64_t T_, planes_, batch_;
  uint8_t* workspace_;  // of this thread
  Tensor state_;
};

std::tuple<Tensor, Tensor> frozen_run(Tensor input, Tensor program, Tensor blob, OptionalTensor state, int64_t step,
                                      bool every_step) {
  TANDEM_CHECK(program.scalar_type() == ScalarType::Long && program.is_contiguous(),
               "program must be contiguous int64");
  TANDEM_CHECK(blob.scalar_type() == ScalarType::Byte && blob.is_contiguous(), "blob must be contiguous uint8");
  const bool spikes = input.scalar_type() == ScalarType::Byte;
  TANDEM_CHECK(spikes || input.scalar_type() == ScalarType::Float, "input must be uint8 planes or float32");
  const Tensor dense = spikes ? to_channels_last(input, 2) : input;
  TANDEM_CHECK(!every_step || !state.has_value(), "every_step is for a whole window, a state for one of its steps");
  return Run(dense, program, blob, state, step, every_step)();
}

// weight [N, C / groups, *kernel] -> int32, the packed layout of the product kernel, for this horizontal dilation.
Tensor frozen_pack(Tensor weight, int64_t groups, int64_t dilation) {
  TANDEM_CHECK(weight.scalar_type() == ScalarType::Float && weight.dim() >= 2 && weight.dim() <= 4,
               "weight must be float32 [N, C / groups, *kernel], got ", shape_text(shape_of(weight)));
  TANDEM_CHECK(groups >= 1 && weight.size(0) % groups == 0, "groups must divide the ", weight.size(0), " outputs, got ",
               groups);
  TANDEM_CHECK(dilation >= 1, "dilation must be at least 1, got ", dilation);
  const Tensor dense = to_contiguous(weight);
  SpikeProduct p{};
  p.channels = weight.size(1) * groups;
  p.outputs = weight.size(0);
  p.groups = groups;
  p.kernel[0] = weight.dim() == 4 ? weight.size(2) : 1;
  p.kernel[1] = weight.dim() >= 3 ? weight.size(weight.dim() - 1) : 1;
  p.dilation[0] = p.dilation[1] = dilation;
  p.weight = dense.data_ptr();
  Tensor packed = empty(cpu::packed_size(p), ScalarType::Int, weight);
  TANDEM_CHECK(cpu::pack_weights(p, static_cast<int32_t*>(packed.data_ptr()), torch_parallel),
               "weight has values that are not finite");
  return packed;
}

// The fields of an instruction, in order, for the writer of programs.
std::string frozen_fields() {
  std::string names;
#define TANDEM_NAME(name) names += " " #name;
  TANDEM_INSTRUCTION_FIELDS(TANDEM_NAME)
#undef TANDEM_NAME
  return names;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem, CompositeExplicitAutograd, m) { m.impl("frozen_fields", TORCH_BOX(&frozen_fields)); }

STABLE_TORCH_LIBRARY_IMPL(tandem, CPU, m) {
  m.impl("frozen_run", TORCH_BOX(&frozen_run));
  m.impl("frozen_pack", TORCH_BOX(&frozen_pack));
}

}  // namespace tandem::ops
