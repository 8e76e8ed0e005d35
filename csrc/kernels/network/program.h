// The program of a frozen network: a list of instructions, each a layer or a move of values, and one block of bytes
// that holds every number they use. Python writes both (tandem_snn/frozen) and a file holds them, so they may be
// anything: what read() returns has been checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../neuron/if_neuron.h"

namespace tandem::network {

constexpr int64_t kFormat = 3;         // the first word of a program
constexpr int64_t kAbsent = -1;        // of a value or an offset
constexpr int64_t kNetworkInput = -2;  // as a value
constexpr int64_t kMostInstructions = 65535;
constexpr int64_t kLargestWindow = 65535;             // of a kernel, a stride or a dilation
constexpr int64_t kLargestPadding = 255;              // or what "same" needs, if that is more
constexpr int64_t kLargestSize = int64_t{1} << 30;    // of one axis
constexpr int64_t kMostFeatures = int64_t{1} << 31;   // of one sample
constexpr int64_t kMostWorkspace = int64_t{1} << 46;  // bytes of one run

// clang-format off
#define TANDEM_HEADER_FIELDS(X)                                                                 \
  X(format)                                                                                     \
  X(dtype)           /* of the weights, as DType; other numbers are of the type it is computed in */ \
  X(weight_bits)     /* that the weights were rounded to, or 0; the executor does not care */   \
  X(source)          /* of the input, as Source below */                                        \
  X(T)               /* steps, or 0: not known */                                               \
  X(any_T)           /* 1: a window may have other steps, as the input says */                  \
  X(dims) X(channels) X(height) X(width)  /* of a sample; dims 0: not known */                  \
  X(instructions)

// Fields that an instruction does not use have neutral values. Offsets are in bytes; windows are vertical, horizontal.
#define TANDEM_INSTRUCTION_FIELDS(X)                                                            \
  X(kind)                                                                                       \
  X(input)           /* value read: the number of an earlier instruction, or kNetworkInput */   \
  X(residual)        /* value added to the currents; none where it does not fire */             \
  X(fires)           /* 0: the currents of every step are wanted, without neurons */            \
  X(analog)          /* 0; files of earlier versions may have layers of an ANN, which are refused */ \
  X(axes)            /* of space: 0 linear, 1, 2 */                                             \
  X(outputs) X(channels) X(groups)  /* weights are [outputs, channels, kernel_h, kernel_w] */   \
  X(kernel_h) X(kernel_w) X(stride_h) X(stride_w)                                               \
  X(padding_h) X(padding_w) X(after_h) X(after_w)  /* both sides; more at the end */            \
  X(dilation_h) X(dilation_w)                                                                   \
  X(ceil)            /* max_pool: windows may hang over the end */                              \
  X(first) X(last)   /* flatten: dimensions of [B, ...], from the end where negative */        \
  X(few_bits)        /* 1: weights are int8, in units of `step` */                              \
  X(weight) X(step)  /* step is [outputs]; scale has it in it, a readout's weights are times it */ \
  X(scale) X(shift) X(residual_scale)  /* [outputs]; a mean's scale is the gain of each channel */ \
  X(v_init)                                                                                     \
  X(v_height) X(v_width)  /* [v_height, v_width, outputs]; 0: one number */                     \
  X(threshold) X(leak)    /* bits of a double */                                                \
  X(gain)            /* the same: of the counts that a readout or a mean reads */               \
  X(gate)            /* as Gate */                                                              \
  X(timing)          /* as Timing */
// clang-format on

#define TANDEM_FIELD(name) int64_t name;
struct Header {
  TANDEM_HEADER_FIELDS(TANDEM_FIELD)
};
struct Instruction {
  TANDEM_INSTRUCTION_FIELDS(TANDEM_FIELD)

  int64_t weights() const { return outputs * channels * kernel_h * kernel_w; }

  template <class Window>
  void set_window(Window& w) const {
    w.kernel[0] = kernel_h, w.kernel[1] = kernel_w;
    w.stride[0] = stride_h, w.stride[1] = stride_w;
    w.padding[0] = padding_h, w.padding[1] = padding_w;
    w.dilation[0] = dilation_h, w.dilation[1] = dilation_w;
  }
  // All but tensors. Where it does not fire, the neurons never do, and their potential is the sum of the currents.
  void set_neurons(Neuron<float>& a) const;
};
#undef TANDEM_FIELD

enum class Source : int64_t { kDirect, kImpulse, kSpikes };

#define TANDEM_KINDS(X)                                                                        \
  X(layer)         /* weights, then neurons */                                                 \
  X(average)       /* neurons fed with the mean of a window; of real numbers, the mean */      \
  X(max_pool)      /* the OR of each window's planes, the maximum of counts or real numbers */ \
  X(mean)          /* the mean counts of a window */                                           \
  X(adaptive_mean) /* of windows that make kernel_h x kernel_w of an image */                  \
  X(flatten)       /* in C, H, W order */                                                      \
  X(popcount)      /* planes to counts */                                                      \
  X(burst)         /* counts to planes */                                                      \
  X(readout)       /* counts times weights plus shift */
enum class Kind : int64_t {
#define TANDEM_KIND(name) name,
  TANDEM_KINDS(TANDEM_KIND)
#undef TANDEM_KIND
};

// What an instruction makes. A train is kSpikes, planes, or kCounts, a byte a neuron, as neurons with window timing
// read and make it. kMeans: real numbers made of counts, of which the last are the answer.
enum class Value { kReal, kSpikes, kCounts, kCurrents, kMeans };

// Names for the writer of programs: the fields of the header, those of an instruction, the kinds, and constants as
// name=value, a line each.
std::string vocabulary();

struct Program {
  Header header;
  std::vector<Instruction> instructions;
  std::vector<Value> values;  // of each instruction
  std::string not_run;        // "instruction N: why" the executor does not run it, though Python may; or empty

  int64_t size() const { return header.instructions; }
  DType dtype() const { return static_cast<DType>(header.dtype); }
  Kind kind(int64_t i) const { return static_cast<Kind>(instructions[i].kind); }
  Value value(int64_t v) const {
    if (v >= 0) return values[v];
    return static_cast<Source>(header.source) == Source::kSpikes ? Value::kSpikes : Value::kReal;
  }
  bool is_train(int64_t v) const { return value(v) == Value::kSpikes || value(v) == Value::kCounts; }
  bool reads_train(int64_t i) const { return is_train(instructions[i].input); }
  // Has it neurons?
  bool fires(int64_t i) const { return is_train(i) && (kind(i) == Kind::layer || kind(i) == Kind::average); }
  // Of a layer or an average: does it integrate a window, to fire in the next one?
  bool waits(int64_t i) const { return static_cast<Timing>(instructions[i].timing) == Timing::kWindow; }
  // Of a layer: is its current the same at every step, as long as the input is?
  bool keeps_product(int64_t i) const {
    return kind(i) == Kind::layer && !reads_train(i) && !waits(i) &&
           static_cast<Source>(header.source) == Source::kDirect;
  }
  // The largest T, which counts as bytes decide.
  int64_t most_steps() const;
};

// Reads `count` words that use `bytes` bytes of numbers. Throws std::invalid_argument, "instruction N: why", for what
// is no program.
Program read(const int64_t* words, int64_t count, int64_t bytes);

// A layer's threshold, leak or gain.
double real(int64_t bits);

// a b, or std::invalid_argument where that is more than `most`.
int64_t checked_product(int64_t a, int64_t b, int64_t most);

}  // namespace tandem::network
