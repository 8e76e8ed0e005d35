// Runs a program: a whole window, with the readout at its end or after every step, or one step of a stream.
//
//   read (program.h)  untrusted words and bytes -> a checked list of instructions
//   prepare           once per network: weights as the kernels multiply them, for images of any size
//   plan              for a batch of one size: the shape of every value and its place in the shared workspace
//   run               a loop over the instructions
//
// With window timing a stream is a pipeline (stream.h): an instruction runs `depth` windows late. The kernels multiply
// spikes. Real-valued products and pools (direct encoding, mean counts, the readout) are computed by the caller's
// functions and so have the same bits as the caller's own network.
#pragma once

#include "../layer.h"
#include "../parallel.h"
#include "program.h"

namespace tandem::network {

// The features of a sample: [channels], [channels, width] or [channels, height, width]. Absent sizes are 1.
struct Shape {
  int64_t dims, channels, height, width;

  int64_t features() const { return channels * height * width; }
  bool operator==(const Shape& o) const {
    return dims == o.dims && channels == o.channels && height == o.height && width == o.width;
  }
};

// A product or a pooling of real-valued images [batch, in], with the instruction's kernel.
struct RealWindow {
  const Instruction& instruction;
  int64_t batch;
  Shape in, out;
};

// The caller's functions for real numbers. x is the network's input or an earlier result, in C, H, W order unless
// stated otherwise. Results are [batch, ...] and stay valid until the run ends. All numbers are passed as float32: if
// the program computes in a half type, the caller rounds inputs and results to it.
class Host {
 public:
  virtual ~Host() = default;
  virtual bool computes_in(DType type) const { return type == DType::kFloat32; }
  // weight: [outputs, channels, kernel], bias: [outputs] or null. The result is channels last.
  virtual const float* product(const RealWindow& window, const float* weight, const float* bias, const float* x) = 0;
  virtual const float* mean(const RealWindow& window, bool channels_last, const float* x) = 0;
  virtual const float* maximum(const RealWindow& window, const float* x) = 0;
  // Receives the spike trains of an instruction with neurons: planes or, with kWindow, counts.
  virtual void fired(int64_t /*instruction*/, Timing /*of the bytes*/, const uint8_t* /*train*/, int64_t /*bytes*/) {}
};

// An instruction of a stream reads a value `windows` windows after it was made.
struct Delay {
  int64_t windows;
  int64_t place, state;  // of the delayed value and of the ring, if windows > 0
};

// The floats of state that hold `bytes` bytes.
inline int64_t bytes_as_floats(int64_t bytes) { return (bytes + 3) / 4; }

// Shapes and memory of a run; all sizes fit int64. Places are in bytes per sample, states in floats per sample.
struct Plan {
  struct Step {
    Shape in, out;
    int64_t place, padded;  // of the result, and of the padded input
    int64_t state;          // of a stream, see Planner::state_of
    int64_t depth;          // of a stream: windows of delay, one for each layer of window timing before it
    Delay input, residual;
  };
  std::vector<Step> steps;
  Shape sample;
  int64_t batch, T;
  bool stream;        // one step at a time
  int64_t planes;     // planes of a spike train
  int64_t workspace;  // bytes
  int64_t state;      // floats; the first are `bad` [batch]

  const Shape& answer() const { return steps.back().out; }
};

struct Call {
  const void* input;  // spike planes [P, batch, height, width, channels], or what Host takes
  bool counted;       // the input is counts, P = 1; only where reads_counts() says so
  const uint8_t* prepared;
  bool every_step;  // an answer after every step
  float* state;     // of a stream, else null: written, and read if step > 0
  int64_t step;
  float* answer;  // [batch, *plan.answer()], with every_step [T, ...]; in a stream NaN until the first window arrives
  Host* host;
  ParallelFor parallel;
};

// A checked program with its numbers. Throws std::invalid_argument, which names the instruction, if it does not support
// the program. Copies the words; the numbers are aligned to 8 bytes and must outlive the network.
class Network {
 public:
  Network(const int64_t* words, int64_t count, const uint8_t* numbers, int64_t bytes);

  // The same numbers, at another address.
  void use(const uint8_t* numbers) { numbers_ = numbers; }

  const Program& program() const { return program_; }

  // The weights as the kernels multiply them: prepared_size() bytes, aligned to 64.
  int64_t prepared_size() const { return parts_.back(); }
  void prepare(uint8_t* prepared, ParallelFor parallel) const;

  // Whether every reader of the network's input takes counts.
  bool reads_counts() const;
  // Whether any neurons have window timing: they integrate a window and fire in the next.
  bool waits() const;

  Plan plan(const Shape& sample, int64_t batch, int64_t T, bool stream) const;
  void run(const Plan& plan, const Call& call) const;

 private:
  friend class Run;

  bool is_packed(int64_t i) const { return program_.kind(i) == Kind::layer && program_.reads_train(i); }
  // Whether the host multiplies the instruction's weights and the numbers do not hold them as float32.
  bool is_widened(int64_t i) const {
    const bool has_weights = program_.kind(i) == Kind::layer || program_.kind(i) == Kind::readout;
    return has_weights && !is_packed(i) && weights_of(i).dtype != DType::kFloat32;
  }
  Geometry geometry(int64_t i) const;
  Weights weights_of(int64_t i) const;
  const float* floats(int64_t offset) const;
  void widen(int64_t i, float* to) const;

  Program program_;
  const uint8_t* numbers_;
  std::vector<int64_t> parts_;  // offsets of each instruction's prepared weights, then the total size
};

}  // namespace tandem::network
