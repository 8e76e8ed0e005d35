// Runs a program: a whole window, with the readout at its end or after every step, or a stream step by step.
//
//   read (program.h)  untrusted words and bytes -> a checked list of instructions
//   prepare           once per network: weights as the kernels multiply them, for images of any size
//   plan              for a batch of one size: the shape of every value and its place in the shared workspace
//   run               a whole window: a loop over the instructions, the longest part without the host for one piece of
//                     the batch after the other; with currents of every step for each eight steps
//   step              a stream: with step timing a time step, the same loop with potentials that are kept; with window
//                     timing steps towards the answer for the present input (follow.cpp)
//
// The kernels multiply spikes, counts and the sums of which mean counts are the means. Products and pools of real
// numbers (images, currents) are computed by the caller's functions and so have the same bits as the caller's own
// network.
#pragma once

#include "program.h"

namespace tandem::network {

// The features of a sample: [channels], [channels, width] or [channels, height, width]. Absent sizes are 1.
struct Shape {
  int64_t dims, channels, height, width;

  int64_t features() const { return channels * height * width; }
  void check() const { checked_product({height, width, channels}, kMostFeatures); }
  bool operator==(const Shape& o) const {
    return dims == o.dims && channels == o.channels && height == o.height && width == o.width;
  }
};

// A product or a pooling of real-valued images [batch, in], in C, H, W order or channels last, with the instruction's
// kernel.
struct RealLayer {
  const Instruction& instruction;
  int64_t batch;
  Shape in, out;
  bool channels_last;
  bool wide;  // currents and counts, which are float32 whatever the type of the weights, until a weight multiplies them
};

// What Host::gathered does with contiguous images.
inline void gather_features(const RealLayer& layer, const int32_t* index, const float* x, float* to) {
  const int64_t size = layer.out.features();
  for (int64_t b = 0; b < layer.batch; ++b, x += layer.in.features(), to += size) {
    for (int64_t k = 0; k < size; ++k) to[k] = index[k] < 0 ? 0.f : x[index[k]];
  }
}

// The caller's functions for real numbers. x is the network's input or an earlier result. Results are [batch, ...], in
// C, H, W order unless stated otherwise, and stay valid until the run ends or they are forgotten. All numbers are
// passed as float32: if the program computes in a half type, the caller rounds inputs and results to it.
class Host {
 public:
  virtual ~Host() = default;
  virtual bool computes_in(DType type) const { return type == DType::kFloat32; }
  virtual float as_type(float x) const { return x; }  // to the type in which the program computes
  // weight: [outputs, channels, kernel], bias: [outputs] or null. The result is channels last.
  virtual const float* product(const RealLayer& layer, const float* weight, const float* bias, const float* x) = 0;
  virtual const float* mean(const RealLayer& layer, const float* x) = 0;
  virtual const float* maximum(const RealLayer& layer, const float* x) = 0;
  virtual const float* upsampled(const RealLayer& layer, const float* x) = 0;
  // Features of each sample by their numbers in C, H, W order; -1: 0.
  virtual const float* gathered(const RealLayer& layer, const int32_t* index, const float* x) = 0;
  // The last `results` results, or all if there are fewer, are not read any more.
  virtual void forget(int64_t /*results*/) {}
  // Receives the spike trains of an instruction with neurons: planes or, with kWindow, counts. A window or a batch that
  // runs in pieces has a train for each.
  virtual void fired(int64_t /*instruction*/, Timing /*of the bytes*/, const uint8_t* /*train*/, int64_t /*bytes*/) {}
};

// How a network runs: whole windows, or step by step, with neurons of step timing or with those of window timing, which
// follow their input (follow.cpp).
enum class Mode : int32_t { kWindow = 0, kSteps = 1, kFollowing = 2 };

// What a stream keeps, and a window from piece to piece: a Stream, then arrays [batch, ...], each from its offset on,
// in bytes per sample. They begin as zeros. Those of an instruction with step timing:
//   layer, average     potentials; of a current that is mostly the same at the next step also product, W x, and x
//   mean               the counts so far
//   readout            the sums so far, exact
// and if its neurons follow:
//   layer, average     sums of a train's counts, or product, W x of real numbers and pixels; by row (output pixel)
//                      marks (follow.cpp), and NaN if a potential is not finite
//   popcount           the last T steps of spikes, and which of them enters last and leaves first
//   any train          its counts, and where they go; of a layer without neurons, its currents
//   an answer          the last one
struct alignas(64) Stream {
  int64_t steps;     // that neurons with step timing have taken
  int64_t answered;  // whether the kept answer is that of the present counts
};
struct Kept {
  int64_t potentials, product, x, so_far;
  int64_t sums, target, marks, lost, planes, oldest, counts, currents, answer;
  int64_t sums_size;  // of a sample, in doubles
};

// Shapes and memory of a run; all sizes fit int64. Places and states are in bytes per sample.
struct Plan {
  struct Step {
    Shape in, out;
    Geometry geometry;  // of a layer or pooling, without the batch
    int64_t place;      // of the result
    bool whole;         // of all samples, not of those of a piece
    Kept kept;
  };
  std::vector<Step> steps;
  std::vector<Shape> answers;
  std::vector<Shape> samples;  // of each input
  int64_t batch, T;
  Mode mode;
  int64_t piece;               // steps of a run: T, or those of a piece
  int64_t planes;              // planes of a spike train of so many steps
  int64_t workspace = 0;       // bytes
  int64_t of_sample = 0;       // bytes of it
  int64_t first = 0, end = 0;  // the instructions that run for one piece of the batch after the other
  int64_t state = 0;           // bytes of a stream
  int64_t bad = 0;             // in the state of kSteps: Neuron::bad of the steps so far
  int64_t rests = 0;           // in the state of kFollowing: whether a sample is at rest, which means that no count
                               // differs from its target and no target must be computed
  std::vector<int64_t> images = {}, layouts = {};  // there, by input: the image, and Frame::layouts of it

  // Whether neurons with step timing go on from the run before.
  bool goes_on() const { return mode == Mode::kSteps || piece < T; }
};

struct Call {
  std::vector<const void*> inputs;  // a train, [sheets, batch, height, width, channels], or what Host takes
  Timing timing = Timing::kStep;    // of inputs that spike; kWindow only where reads_counts() says so
  const uint8_t* prepared = nullptr;
  bool every_step = false;      // an answer after every step
  std::vector<float*> answers;  // each [batch, *plan.answers[k]], with every_step [T, ...]
  Host* host = nullptr;
  ParallelFor parallel = serial_for;
  int64_t threads = 1;  // that parallel uses
};

// Frame::steps without a limit: more than any network takes.
constexpr int64_t kUntilRest = int64_t{1} << 40;

// Inputs, contiguous or with kFollowing null: as before; and a time step (kSteps), or steps towards the answer of the
// whole window (kFollowing), which is for the present counts.
struct Frame : Call {
  // kFollowing: inputs that spike are one step, by which the last T steps advance; else all T steps.
  bool advances = false;
  std::vector<int64_t> layouts;  // of each input, if not empty: another number where Host reads another memory layout
  uint8_t* state = nullptr;      // plan.state bytes, aligned to 64; changed in place
  bool begins = true;            // the state has no values yet: silence
  int64_t steps = 1;             // at most; a sample takes none once it is at rest
  // [batch]: steps; neurons that moved in the last one; operations.
  int64_t *taken = nullptr, *moved = nullptr, *synapses = nullptr;
  // By instruction with counts that move by one [batch, ...], zeros: they receive 1 and -1. Null if there are none.
  int8_t* const* moves = nullptr;
};

// A checked program with its numbers. Throws a Refusal if it does not support the program. Copies the words; the
// numbers are aligned to 8 bytes and must outlive the network.
class Network {
 public:
  Network(const int64_t* words, int64_t count, const uint8_t* numbers, int64_t bytes);

  const Program& program() const { return program_; }
  // The shape of a sample of input k that the program names; dims 0: none.
  Shape sample(size_t k) const;

  // The weights as the kernels multiply them: prepared_size() bytes, aligned to 64.
  int64_t prepared_size() const { return parts_.back(); }
  void prepare(uint8_t* prepared, ParallelFor parallel) const;

  // Whether every reader of inputs that spike takes counts.
  bool reads_counts() const;
  // How the network runs step by step: kFollowing if any neurons have window timing.
  Mode stepwise() const;

  Plan plan(const std::vector<Shape>& samples, int64_t batch, int64_t T, Mode mode) const;
  void run(const Plan& plan, const Call& call) const;
  void step(const Plan& plan, const Frame& frame) const;

 private:
  friend class Run;
  friend class Follower;

  bool is_packed(int64_t i) const {
    return (program_.kind(i) == Kind::layer && program_.reads_train(i)) || program_.adds_counts(i);
  }
  // Whether the host multiplies the instruction's weights and the numbers do not hold them as float32.
  bool is_widened(int64_t i) const {
    const bool has_weights = program_.kind(i) == Kind::layer || program_.kind(i) == Kind::readout;
    return has_weights && !is_packed(i) && weights_of(i).dtype != DType::kFloat32;
  }
  Weights weights_of(int64_t i) const;
  const float* floats(int64_t offset) const;
  void widen(int64_t i, float* to) const;
  void follow(const Plan& plan, const Frame& frame) const;

  Program program_;
  const uint8_t* numbers_;
  std::vector<int64_t> parts_;  // offsets of each instruction's prepared weights, then the total size
};

}  // namespace tandem::network
