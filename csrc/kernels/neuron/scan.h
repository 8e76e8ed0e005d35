// The scan: currents of T steps in, spike trains out. The window's product is the sum of the currents in the order of
// the steps, or T times a constant current.
#pragma once

#include "../parallel.h"
#include "if_neuron.h"

namespace tandem {

// How `currents` gives y[t].
enum class Source : int32_t {
  kTrain = 0,     // currents [T, neurons]: y[t] = currents[t]
  kConstant = 1,  // currents [neurons]: y[t] = currents at every step
  kImpulse = 2,   // currents [neurons]: y[0] = currents, later steps have none
};

namespace cpu {

// dtype is the type of `currents`.
void if_scan(const void* currents, DType dtype, Source source, const Neuron& args, ParallelFor parallel);

}  // namespace cpu

namespace cuda {

// Pointers are device memory, stream is a cudaStream_t; returns a cudaError_t.
int if_scan(const void* currents, DType dtype, Source source, const Neuron& args, void* stream);

}  // namespace cuda

}  // namespace tandem
