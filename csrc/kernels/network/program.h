// The program of a frozen network: a list of instructions, each a layer or a move of values, and one block of bytes
// with all their numbers. tandem_snn/frozen writes both and files hold them, so they are untrusted: read() checks
// everything.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../layer.h"

namespace tandem::network {

constexpr int64_t kFormat = 2;         // the first word of a program
constexpr int64_t kAbsent = -1;        // no value, or no offset
constexpr int64_t kNetworkInput = -2;  // the network's input, or the first of several, as a value
constexpr int64_t kMostInstructions = 65535;
constexpr int64_t kLargestKernel = 65535;             // of a kernel, a stride or a dilation
constexpr int64_t kLargestPadding = 255;              // or as much as "same" needs
constexpr int64_t kLargestSize = int64_t{1} << 30;    // of one axis
constexpr int64_t kMostFeatures = int64_t{1} << 31;   // of one sample
constexpr int64_t kMostWorkspace = int64_t{1} << 46;  // bytes of one run

// clang-format off
#define TANDEM_HEADER_FIELDS(X)                                                                     \
  X(format)                                                                                         \
  X(dtype)           /* of the weights, as DType; other numbers have the type of the arithmetic */  \
  X(weight_bits)     /* to which weights were rounded, or 0; not used by the executor */            \
  X(source)          /* of the first input, as InputSource below */                                 \
  X(T)               /* steps, or 0: unknown */                                                     \
  X(any_T)           /* 1: the input determines the number of steps */                              \
  X(dims) X(channels) X(height) X(width)  /* of a sample of it; dims 0: unknown */                  \
  X(fixed)           /* 1: it answers samples of these shapes alone */                              \
  X(instructions)

// Fields that an instruction does not use have neutral values. Offsets are in bytes; _h is vertical, _w horizontal.
#define TANDEM_INSTRUCTION_FIELDS(X)                                                                \
  X(kind)                                                                                           \
  X(input)           /* value read: the number of an earlier instruction, or kNetworkInput */       \
  X(residual)        /* value added to the currents, or joined to the input of a gather */          \
  X(fires)           /* 0: no neurons, the result is the currents of every step */                  \
  X(axes)            /* spatial axes: 0 (linear), 1, 2 */                                           \
  X(outputs) X(channels) X(groups)  /* weights are [outputs, channels, kernel_h, kernel_w] */       \
  X(kernel_h) X(kernel_w) X(stride_h) X(stride_w)                                                   \
  X(padding_h) X(padding_w) X(after_h) X(after_w)  /* on both sides; more at the end */             \
  X(dilation_h) X(dilation_w)                                                                       \
  X(ceil)            /* max_pool: the kernel may reach beyond the end; upsample: align_corners */   \
  X(first) X(last)   /* flatten: dimensions of [B, ...], negative from the end; input: its source */\
  X(few_bits)        /* 1: weights are int8, in units of `step` */                                  \
  X(weight) X(step)  /* step: [outputs]; part of scale, but a readout multiplies by it */           \
  X(scale) X(shift) X(residual_scale)  /* [outputs]; a mean's scale: gain by channel */             \
  X(v_init)                                                                                         \
  X(v_size_h) X(v_size_w)  /* [v_size_h, v_size_w, outputs]; 0: one number */                         \
  X(threshold) X(leak)    /* bits of a double */                                                    \
  X(gain)            /* bits of a double: factor of the counts that a readout or a mean reads */    \
  X(timing)          /* as Timing: of neurons, or of the currents that it makes or reads */         \
  X(own_T)           /* window timing: T of a layer's neurons, or read by attention; 0: the network's */ \
  X(index)           /* of a gather, int32: where each result comes from, -1: 0; absent: in order */ \
  X(by_channel)      /* 1: index is [outputs], of channels; 0: [kernel_h, kernel_w, outputs] */
// clang-format on

#define TANDEM_FIELD(name) int64_t name;
struct Header {
  TANDEM_HEADER_FIELDS(TANDEM_FIELD)
};
struct Instruction {
  TANDEM_INSTRUCTION_FIELDS(TANDEM_FIELD)

  int64_t weights() const { return outputs * channels * kernel_h * kernel_w; }
  // Without the size of the images.
  Geometry geometry() const;
};
#undef TANDEM_FIELD

// kPixels are counts of 255 steps, [1, batch, ...].
enum class InputSource : int64_t { kDirect, kImpulse, kSpikes, kPixels };

#define TANDEM_KINDS(X)                                                          \
  X(layer)         /* weights, then neurons; of currents, without neurons */     \
  X(neurons)       /* neurons on currents */                                     \
  X(sum)           /* real numbers: scale x + shift + residual_scale residual */ \
  X(gather)        /* moves, repeats, drops or joins channels or features */     \
  X(average)       /* neurons with weights of 1; of real numbers, the mean */    \
  X(max_pool)      /* the OR of planes, the maximum of counts or real numbers */ \
  X(mean)          /* the mean of counts */                                      \
  X(adaptive_mean) /* the same; the output has kernel_h x kernel_w pixels */     \
  X(flatten)       /* in C, H, W order */                                        \
  X(popcount)      /* planes to counts */                                        \
  X(burst)         /* counts to planes */                                        \
  X(readout)       /* counts times weights plus shift */                         \
  X(upsample)      /* bilinear, of numbers, to kernel_h x kernel_w pixels */     \
  X(output)        /* an answer; if there is none, the last result is it */      \
  X(attention)     /* currents: gain q (k' v) in `groups` heads, of a train */   \
  X(input)         /* a further input: outputs channels, kernel_h x kernel_w */
enum class Kind : int64_t {
#define TANDEM_KIND(name) name,
  TANDEM_KINDS(TANDEM_KIND)
#undef TANDEM_KIND
};

// The kind of value that an instruction makes. A spike train stores planes (kStepTrain) or counts (kWindowTrain), by
// its timing. kCurrents: real numbers of each neuron, with step timing of each step. kMeans: real numbers computed from
// counts, as answers are.
enum class Value { kReal, kStepTrain, kWindowTrain, kCurrents, kMeans };

// The names that a writer of programs needs, a line each: fields of the header, fields of an instruction, kinds, and
// constants as name=value.
std::string vocabulary();

// Why there is no program, plan or run; `instruction` is the number of the instruction that it is about, or -1.
struct Refusal : std::invalid_argument {
  Refusal(int64_t instruction, const std::string& why)
      : std::invalid_argument((instruction < 0 ? "" : "instruction " + std::to_string(instruction) + ": ") + why),
        instruction(instruction),
        why(why) {}
  int64_t instruction;
  std::string why;
};

struct Program {
  Header header;
  std::vector<Instruction> instructions;
  std::vector<Value> values;       // by instruction
  std::vector<int64_t> answers;    // the instructions whose results they are
  std::vector<int64_t> inputs;     // as values
  std::vector<int64_t> roots;      // by instruction: which input it is, moves or pools, without neurons; or -1
  std::vector<bool> jumps;         // by instruction: counts of pixels, moved or pooled, which change by any number
  std::optional<Refusal> not_run;  // if the executor does not support it, although Python may

  int64_t size() const { return header.instructions; }
  DType dtype() const { return static_cast<DType>(header.dtype); }
  Kind kind(int64_t i) const { return static_cast<Kind>(instructions[i].kind); }
  Value value(int64_t v) const {
    if (v >= 0) return values[v];
    return is_spiking(0) ? Value::kStepTrain : Value::kReal;
  }
  bool is_train(int64_t v) const { return value(v) == Value::kStepTrain || value(v) == Value::kWindowTrain; }
  bool reads_train(int64_t i) const { return is_train(instructions[i].input); }
  // Whether the instruction has neurons that fire.
  bool fires(int64_t i) const {
    return is_train(i) && (kind(i) == Kind::layer || kind(i) == Kind::average || kind(i) == Kind::neurons);
  }
  // The mean of a train's counts, also flattened, that a readout reads, whose integers it adds; or -1. A mean with a
  // gain is of real numbers.
  int64_t mean_of(int64_t i) const;
  // Whether it is a readout whose answer is an exact sum of counts.
  bool adds_counts(int64_t i) const { return kind(i) == Kind::readout && (reads_train(i) || mean_of(i) >= 0); }
  bool reads_currents(int64_t i) const { return value(instructions[i].input) == Value::kCurrents; }
  // Whether it computes currents from values of the same window that are not only the input of a product.
  bool derives(int64_t i) const {
    return values[i] == Value::kCurrents && (kind(i) != Kind::layer || reads_currents(i));
  }
  // Whether it has neurons, or is a layer of spikes or numbers whose result is its currents.
  bool has_neurons(int64_t i) const { return fires(i) || (values[i] == Value::kCurrents && !derives(i)); }
  // Whether its neurons fire when the window has ended, by the sum of their currents.
  bool has_window_timing(int64_t i) const { return static_cast<Timing>(instructions[i].timing) == Timing::kWindow; }
  // Which input a value is or comes from, and the source of that.
  int64_t root(int64_t v) const { return v >= 0 ? roots[v] : 0; }
  InputSource source(int64_t k) const {
    return static_cast<InputSource>(k == 0 ? header.source : instructions[inputs[k]].first);
  }
  bool is_spiking(int64_t k) const { return source(k) >= InputSource::kSpikes; }
  bool is_pixels(int64_t k) const { return source(k) > InputSource::kSpikes; }
  // Whether an instruction reads an image that is shown in the first step alone.
  bool reads_impulse(int64_t i) const { return source(root(instructions[i].input)) == InputSource::kImpulse; }
  // Whether a layer's current is the same at every step as long as the input is.
  bool keeps_product(int64_t i) const {
    return kind(i) == Kind::layer && value(instructions[i].input) == Value::kReal && !has_window_timing(i) &&
           !reads_impulse(i);
  }
  // The largest T: 255 if the program has counts, which are bytes.
  int64_t most_steps() const;
};

// Reads `count` words that refer to `bytes` bytes of numbers, aligned to 8. Throws a Refusal if they are not a program.
Program read(const int64_t* words, int64_t count, const uint8_t* numbers, int64_t bytes);

// The double with these bits: a threshold, a leak or a gain.
double real(int64_t bits);

[[noreturn]] void refuse(const std::string& why);  // throws a Refusal without an instruction

// The product. Throws a Refusal if it is more than `most`.
int64_t checked_product(std::initializer_list<int64_t> sizes, int64_t most);

}  // namespace tandem::network
