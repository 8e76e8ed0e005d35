// One run of a program: executes the instructions in order. Those that read counts run after all others, once per
// answer.
#pragma once

#include "../cpu/workspace.h"
#include "executor.h"

namespace tandem::network {

class Run {
 public:
  // A run of `steps` steps. state: of a stream or of a window in pieces, with its Stream.
  Run(const Network& network, const Plan& plan, const Call& call, int64_t steps, uint8_t* state = nullptr);

  void operator()();

 protected:
  const Kept& kept(int64_t i) const { return plan_.steps[i].kept; }
  const Instruction& instruction(int64_t i) const { return program_.instructions[i]; }
  const float* floats(int64_t offset) const { return network_.floats(offset); }
  uint8_t* result(int64_t i) const { return place(i) + before_piece(i); }
  // The T of the neurons of instruction i, or of what attention reads.
  int64_t own_T(int64_t i) const { return instruction(i).own_T > 0 ? instruction(i).own_T : plan_.T; }
  const void* value(int64_t v) const { return static_cast<const uint8_t*>(stored(v)) + before_piece(v); }
  const uint8_t* train(int64_t v) const { return static_cast<const uint8_t*>(value(v)); }
  const float* real(int64_t v) const { return static_cast<const float*>(value(v)); }
  RealLayer real_layer(int64_t i) const {
    const bool wide = program_.reads_currents(i) || program_.reads_train(i);
    return {instruction(i), batch_, plan_.steps[i].in, plan_.steps[i].out, wide, wide};
  }

  void execute(int64_t i);

  // The neurons of instruction i without residual, state and outputs.
  Neuron neurons(int64_t i) const;
  // Runs neurons of instruction i for W x, a real-valued product.
  void scan(int64_t i, const float* y, const Neuron& neuron, ParallelFor parallel) const;
  const float* direct_product(int64_t i) const {
    return call_.host->product(real_layer(i), weights(i), nullptr, real(instruction(i).input));
  }
  Geometry geometry(int64_t i, int64_t images) const {
    Geometry g = plan_.steps[i].geometry;
    g.batch = images;
    return g;
  }
  // A layer that reads a train; an average is a depthwise convolution with weights of 1.
  Layer layer(int64_t i, int64_t batch, const Neuron& neuron);
  const uint8_t* prepared(int64_t i) const { return call_.prepared + network_.parts_[i]; }

  // Moves, repeats, drops or joins the numbers of samples, in currents.cpp.
  template <class E>
  void gather(int64_t i, int64_t samples, const E* x, const E* joined, E* out, ParallelFor parallel) const;

  Stream& stream() const { return *reinterpret_cast<Stream*>(state_); }
  // The array [batch, ...] of a stream at this offset.
  template <class E>
  E* all(int64_t offset) const {
    return reinterpret_cast<E*>(state_ + sizeof(Stream) + offset * plan_.batch);
  }

  // Computes the answers after step t of this run and `steps` steps of the window.
  void answer(int64_t t, int64_t steps, const std::vector<float*>& to);

  const Network& network_;
  const Program& program_;
  const Plan& plan_;
  const Call& call_;
  uint8_t* const state_;
  cpu::Workspace memory_;
  int64_t T_, planes_;               // steps of this run, planes of a spike train
  int64_t first_ = 0, batch_;        // samples: the first, and how many; all but in a piece
  std::vector<const void*> values_;  // by instruction: a train, currents or real numbers, of the first sample stored
  float* bad_;                       // [batch]: NaN where a potential was not finite

 private:
  uint8_t* place(int64_t i) const { return results_ + plan_.steps[i].place * plan_.batch; }
  const void* stored(int64_t v) const { return v >= 0 ? values_[v] : call_.inputs[0]; }
  // Bytes of a value that belong to samples before the piece.
  int64_t before_piece(int64_t v) const {
    if (first_ == 0 || (v >= 0 && !plan_.steps[v].whole)) return 0;
    const int64_t features = (v >= 0 ? plan_.steps[v].out : plan_.samples[0]).features();
    return first_ * features * (program_.value(v) == Value::kCurrents ? sizeof(float) : 1);
  }
  void execute(int64_t begin, int64_t end);
  bool goes_on() const { return plan_.goes_on(); }
  // Steps of the window, or of the stream, before this run.
  int64_t before() const { return goes_on() ? stream().steps : 0; }
  // The images that instruction i reads: one per sample and plane.
  int64_t images(int64_t i) const {
    return batch_ * (program_.value(instruction(i).input) == Value::kWindowTrain ? 1 : planes_);
  }
  // The float32 weights of a layer or a readout that reads real numbers.
  const float* weights(int64_t i) const {
    return network_.is_widened(i) ? reinterpret_cast<const float*>(prepared(i)) : floats(instruction(i).weight);
  }
  void change_timing(int64_t i);
  void fire(int64_t i);
  const float* now(int64_t i, int64_t neurons);
  // currents.cpp
  int64_t sheets(int64_t i) const;
  float share(int64_t i) const;
  void currents(int64_t i);
  void sum(int64_t i);
  void gather(int64_t i);
  void attend(int64_t i);  // attention.cpp
  void move_currents(int64_t i);
  void transpose(const float* x, int64_t rows, int64_t columns, float* out) const;
  void multiply_steps(Layer train_layer, int64_t steps, float* y);
  // answer.cpp
  const float* means(int64_t i, int64_t t, int64_t steps);
  const float* joined_means(int64_t i);
  const float* sum_of_means(int64_t i, float share);
  const float* read_out(int64_t i, float share, int64_t t);
  void add_counts(int64_t i, int64_t t, float* u);
  void add_means(int64_t i, int64_t mean, float* u);
  const float* scaled_by(int64_t i, float gain);
  const float* counts(int64_t i, int64_t t);

  uint8_t* results_;
  std::vector<std::vector<float>> so_far_;   // by instruction: the counts that it reads
  std::vector<std::vector<double>> sums_;    // the sums of readouts so far
  std::vector<std::vector<float>> answers_;  // of readouts and means, channels first
  std::vector<const float*> means_;          // means without their gain
  std::vector<float> scaled_, silence_;
};

}  // namespace tandem::network
