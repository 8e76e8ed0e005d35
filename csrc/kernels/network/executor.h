// Runs a program: the whole window, the readout after every step of it, or one step of a stream.
//
//   read (program.h)  words and bytes that may be anything -> a checked list of instructions
//   prepare           once per network: weights as the kernels want them, whatever the size of the images
//   plan              for a batch of a size: the shape of every value, and places in the workspace that they share
//   run               a loop over the instructions
//
// Spikes are multiplied by the kernels. What is real-valued (the input of a direct encoder, mean counts, the readout)
// is computed by the caller's functions, so that it has the bits of the caller's own.
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
// earlier result, in C, H, W order where nothing else is said.
class Host {
 public:
  virtual ~Host() = default;
  // weight [outputs, channels, kernel], bias [outputs] or null; the result has its channels innermost.
  virtual const float* product(const RealWindow& window, const float* weight, const float* bias, const float* x) = 0;
  virtual const float* mean(const RealWindow& window, bool channels_last, const float* x) = 0;
  virtual const float* maximum(const RealWindow& window, const float* x) = 0;
  // The spikes of an instruction with neurons, for callers that look at them.
  virtual void fired(int64_t /*instruction*/, const uint8_t* /*planes*/, int64_t /*bytes*/) {}
};

// Sizes of a run, which fit int64.
struct Plan {
  struct Step {
    Shape in, out;
    int64_t place, padded;  // of the result and of the padded input, in bytes per sample and plane
    // Of a stream, in floats per sample: the layer's potentials, then of a constant current itself and the input it is
    // of; or the counts so far.
    int64_t state;
  };
  std::vector<Step> steps;
  int64_t batch, planes;
  int64_t workspace;  // bytes
  int64_t state;      // floats
};

struct Call {
  const void* input;  // spike planes [P, batch, height, width, channels], or what Host takes
  int64_t T;          // of the window
  const uint8_t* prepared;
  bool every_step;
  float* state;  // null: the whole window; else one step of a stream, read where step > 0, and written
  int64_t step;
  float* answer;  // [batch, outputs]; of every step [T, batch, outputs]
  Host* host;
  ParallelFor parallel;
};

// Throws std::invalid_argument, which names the instruction, for what it does not run. The words are copied, the
// numbers must outlive it; they are aligned to 8 bytes.
class Network {
 public:
  Network(const int64_t* words, int64_t count, const uint8_t* numbers, int64_t bytes);

  const Program& program() const { return program_; }
  int64_t outputs() const { return program_.instructions.back().outputs; }

  // Weights as the kernels want them: so many bytes, aligned to 64, which begin with the offset of each instruction's
  // part and the size.
  int64_t prepared_size() const { return parts().back(); }
  void prepare(uint8_t* prepared, ParallelFor parallel) const;
  // Are these bytes of that size the result of prepare()?
  bool is_prepared(const uint8_t* prepared, int64_t size) const;

  Plan plan(const Shape& sample, int64_t batch, int64_t planes) const;
  void run(const Plan& plan, const Call& call) const;

 private:
  friend class Run;

  bool reads_spikes(int64_t i) const { return program_.value(program_.instructions[i].input) == Value::kSpikes; }
  bool is_layer(int64_t i) const {
    return program_.kind(i) == Kind::layer || (program_.kind(i) == Kind::average && reads_spikes(i));
  }
  // Is its current the same at every step, as long as the input is?
  bool keeps_product(int64_t i) const {
    return program_.kind(i) == Kind::layer && !reads_spikes(i) &&
           static_cast<Source>(program_.header.source) == Source::kDirect;
  }
  bool is_packed(int64_t i) const { return program_.kind(i) == Kind::layer && reads_spikes(i); }
  bool has_weights(int64_t i) const { return program_.kind(i) == Kind::layer || program_.kind(i) == Kind::readout; }
  Geometry geometry(int64_t i) const;
  Weights weights_of(int64_t i) const;
  const float* floats(int64_t offset) const;
  void widen(int64_t i, float* to) const;
  std::vector<int64_t> parts() const;

  Program program_;
  const uint8_t* numbers_;
};

}  // namespace tandem::network
