// Runs a program: the whole window, the readout after every step of it, or one step of a stream.
//
//   read (program.h)  words and bytes that may be anything -> a checked list of instructions
//   prepare           once per network: weights as the kernels want them, whatever the size of the images
//   plan              for a batch of a size: the shape of every value, and places in the workspace that they share
//   run               a loop over the instructions
//
// A stream of a network whose layers have window timing is a pipeline (stream.h); `depth` says how late an instruction
// is. Spikes are multiplied by the kernels. What is real-valued (the input of a direct encoder, mean counts, the
// readout) is computed by the caller's functions, so that it has the bits of the caller's own.
#pragma once

#include "../layer.h"
#include "../parallel.h"
#include "program.h"

namespace tandem::network {

// The features of a sample: [channels], [channels, width] or [channels, height, width]; sizes that it lacks are 1.
struct Shape {
  int64_t dims, channels, height, width;

  int64_t features() const { return channels * height * width; }
  bool operator==(const Shape& o) const {
    return dims == o.dims && channels == o.channels && height == o.height && width == o.width;
  }
};

// A product or a pooling of real-valued images [batch, in]; the windows are the instruction's.
struct RealWindow {
  const Instruction& instruction;
  int64_t batch;
  Shape in, out;
};

// The caller's real numbers. Results are [batch, ...] and last until the run is over; x is the network's input or an
// earlier result, in C, H, W order where nothing else is said. They are float32 here whatever type the program computes
// in: a caller that has a half type rounds to it all that it reads and gives.
class Host {
 public:
  virtual ~Host() = default;
  virtual bool computes_in(DType type) const { return type == DType::kFloat32; }
  // weight [outputs, channels, kernel], bias [outputs] or null; the result has its channels innermost.
  virtual const float* product(const RealWindow& window, const float* weight, const float* bias, const float* x) = 0;
  virtual const float* mean(const RealWindow& window, bool channels_last, const float* x) = 0;
  virtual const float* maximum(const RealWindow& window, const float* x) = 0;
  // The trains of an instruction with neurons, for callers that look at them: planes or, with kWindow, counts.
  virtual void fired(int64_t /*instruction*/, Timing /*of the bytes*/, const uint8_t* /*train*/, int64_t /*bytes*/) {}
};

// A value that an instruction reads, so many windows after it was made.
struct Delay {
  int64_t windows;
  int64_t place, state;  // of what comes out, and of the ring; where windows > 0
};

// So many bytes of a sample are a state of so many floats.
inline int64_t bytes_as_floats(int64_t bytes) { return (bytes + 3) / 4; }

// Sizes of a run, which fit int64. Places are in bytes per sample, states in floats per sample.
struct Plan {
  struct Step {
    Shape in, out;
    int64_t place, padded;  // of the result and of the padded input
    int64_t state;          // see the stream's functions in executor.cpp
    int64_t depth;          // of a stream: how many layers that wait come before it, of a window each
    Delay input, residual;
  };
  std::vector<Step> steps;
  Shape sample;
  int64_t batch, T;
  bool stream;        // a step at a time
  int64_t planes;     // of a train, in the form of planes
  int64_t workspace;  // bytes
  int64_t state;      // floats; the first are the samples' `bad`

  const Shape& answer() const { return steps.back().out; }
};

struct Call {
  const void* input;  // spike planes [P, batch, height, width, channels], or what Host takes
  bool counted;       // the input is counts, P = 1; only where reads_counts() says so
  const uint8_t* prepared;
  bool every_step;  // of the window in which the answer comes, see answer
  float* state;     // of a stream: read where step > 0, and written
  int64_t step;
  float* answer;  // [batch, *plan.answer()], of every step [T, ...]; in a stream NaN until the first window is there
  Host* host;
  ParallelFor parallel;
};

// Throws std::invalid_argument, which names the instruction, for what it does not run. The words are copied, the
// numbers must outlive it; they are aligned to 8 bytes.
class Network {
 public:
  Network(const int64_t* words, int64_t count, const uint8_t* numbers, int64_t bytes);

  // The same numbers at another place.
  void use(const uint8_t* numbers) { numbers_ = numbers; }

  const Program& program() const { return program_; }

  // Weights as the kernels want them: so many bytes, aligned to 64.
  int64_t prepared_size() const { return parts_.back(); }
  void prepare(uint8_t* prepared, ParallelFor parallel) const;

  // Does every reader of the input want counts?
  bool reads_counts() const;
  // Has it neurons that integrate a window, and fire in the next one?
  bool waits() const;

  Plan plan(const Shape& sample, int64_t batch, int64_t T, bool stream) const;
  void run(const Plan& plan, const Call& call) const;

 private:
  friend class Run;

  bool is_packed(int64_t i) const { return program_.kind(i) == Kind::layer && program_.reads_train(i); }
  // Has it weights that a host multiplies, which the numbers do not hold as float32?
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
  std::vector<int64_t> parts_;  // where each instruction's prepared weights begin, and the size of all
};

}  // namespace tandem::network
