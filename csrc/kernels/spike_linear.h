// The product of spikes with a weight matrix, and the neurons it drives, in one kernel.
#pragma once

#include "if_neuron.h"

namespace tandem {

// The type of the weights, and what becomes of it for the tensor cores.
enum class Weights : int32_t {
  kFloat16 = 0,
  kBFloat16 = 1,
  kFloat32 = 2,           // the sum of two float16: no weight loses more than 2^-35 or a part in 2^23; below 1023 only
  kFloat32AsFloat16 = 3,  // rounded to float16
  kInt8 = 4,              // exact; NeuronArgs.scale holds what one unit is worth
};

namespace cuda {

// y[t] = W s[t] with planes [P, B, K] and weight [N, K]; N = args.channels, B = args.neurons / N. Pointers are device
// memory, stream is a cudaStream_t; returns a cudaError_t. The mask needs N to be a multiple of eight.
int spike_linear(const uint8_t* planes, const void* weight, Weights type, int64_t K, const NeuronArgs<float>& args,
                 void* stream);

}  // namespace cuda

}  // namespace tandem
