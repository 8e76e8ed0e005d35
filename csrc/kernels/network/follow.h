// Neurons that follow their input: a stream of a network with window timing.
//
// A neuron keeps the exact sum u of its weights times the present counts of its inputs, and its own count. In each step
// the count moves by at most one towards its target, the count that a neuron of window timing has for u (burst() in
// if_neuron.h, with every rounding of the layer). The move is its spike, 1 or -1. The input moves first, then each
// layer in the program's order, which sees the moves of this step. So u = W c always, and once nothing moves every
// count is that of the window network for the present input, whatever came before.
#pragma once

#include "executor.h"

namespace tandem::network {

// The state of a stream: a Stream, then arrays [batch, ...] of `kept_of_samples` and of each instruction.
struct Stream {
  int64_t oldest;    // which of the T steps of spikes enters last and leaves first
  int64_t layout;    // Frame::layout of the image
  int64_t answered;  // whether the kept answer is that of the present counts
  int64_t unused[5];
};

// Bytes per sample of what is kept beside the instructions: whether the sample is at rest (no count differs from its
// target, and no target must be computed), and the image.
struct KeptOfSamples {
  int64_t rests, image, size;
};
KeptOfSamples kept_of_samples(const Program& program, const Shape& sample);

Kept kept(const Program& program, const Plan& plan, int64_t number, const Plan::Step& step);

}  // namespace tandem::network
