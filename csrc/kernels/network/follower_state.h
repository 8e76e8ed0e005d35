// What a stream keeps of neurons that follow their input, and how it receives its inputs.
#pragma once

#include "run.h"

namespace tandem::network {

class FollowerState : public Run {
 protected:
  // Marks of a row: its targets must be computed; a count differs from its target.
  static constexpr uint8_t kDue = 1, kLate = 2;

  FollowerState(const Network& network, const Plan& plan, const Frame& frame)
      : Run(network, plan, frame, plan.T, frame.state), frame_(frame), rests_(all<uint8_t>(plan.rests)) {}

  // Receives the inputs that are given, the first ones with a new state. Samples that change no longer rest.
  void receive();
  // Marks the rows whose products differ; whole lines are compared first, since most are as before. Returns whether any
  // does.
  bool update_product(int64_t i, int64_t b, const float* y) const;

  bool has_moves(int64_t i) const { return program_.values[i] == Value::kWindowTrain; }
  int64_t features(int64_t i) const { return plan_.steps[i].out.features(); }
  int64_t rows(int64_t i) const { return plan_.steps[i].out.height * plan_.steps[i].out.width; }
  uint8_t* counts_of(int64_t i, int64_t b) const { return all<uint8_t>(kept(i).counts) + b * features(i); }
  uint8_t* marks_of(int64_t i, int64_t b) const { return all<uint8_t>(kept(i).marks) + b * rows(i); }

  // The synapses of a layer whose input is multiplied anew.
  int64_t synapses(int64_t i) const { return plan_.steps[i].geometry.inputs() * features(i); }

  const Frame& frame_;
  uint8_t* const rests_;  // [batch]: whether nothing moves

 private:
  void begin();
  void receive_image(int64_t k);
  void receive_spikes(int64_t k);
};

}  // namespace tandem::network
