// Elementwise operations on spike planes: pack, unpack, counts, bursts, and the gate of the backward pass.
#pragma once

#include "../neuron/if_neuron.h"
#include "../parallel.h"

namespace tandem::cpu {

// spikes [T, neurons] of elements of `element_size` bytes, where nonzero is a spike -> planes [ceil(T / 8), neurons].
// is_float: -0.0 is no spike either.
void pack(const void* spikes, int32_t element_size, bool is_float, int32_t T, int64_t neurons, uint8_t* planes,
          ParallelFor parallel);

// planes -> spikes [T, neurons] of 0 and 1. `one` has the bits of a 1, in element_size bytes.
void unpack(const uint8_t* planes, int32_t T, int64_t neurons, void* spikes, int32_t element_size, uint64_t one,
            ParallelFor parallel);

// planes [P, neurons] -> counts [neurons], the sum of the popcounts, at most 65535.
void counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, DType dtype, ParallelFor parallel);

// planes [P, neurons], of at most 255 steps -> counts [neurons] in a byte each.
void count_bytes(const uint8_t* planes, int32_t P, int64_t neurons, uint8_t* counts, ParallelFor parallel);

// The largest of n bytes.
uint8_t largest_byte(const uint8_t* bytes, int64_t n);

// counts [neurons] -> planes [ceil(T / 8), neurons] of bursts: spikes in the first min(count, T) steps.
void burst_planes(const uint8_t* counts, int32_t T, int64_t neurons, uint8_t* planes, ParallelFor parallel);

// grad_z[n] = mask bit n ? grad[n] / threshold : 0, of this dtype.
void gate_grad(const void* grad, DType dtype, const uint8_t* mask, double threshold, int64_t neurons, void* grad_z,
               ParallelFor parallel);

}  // namespace tandem::cpu

// The same on a GPU: pointers are device memory, stream is a cudaStream_t. They return a cudaError_t.
namespace tandem::cuda {

int pack(const void* spikes, int32_t element_size, bool is_float, int32_t T, int64_t neurons, uint8_t* planes,
         void* stream);
int unpack(const uint8_t* planes, int32_t T, int64_t neurons, void* spikes, int32_t element_size, uint64_t one,
           void* stream);
int counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, DType dtype, void* stream);
int count_bytes(const uint8_t* planes, int32_t P, int64_t neurons, uint8_t* counts, void* stream);
int burst_planes(const uint8_t* counts, int32_t T, int64_t neurons, uint8_t* planes, void* stream);
int gate_grad(const void* grad, DType dtype, const uint8_t* mask, double threshold, int64_t neurons, void* grad_z,
              void* stream);

}  // namespace tandem::cuda
