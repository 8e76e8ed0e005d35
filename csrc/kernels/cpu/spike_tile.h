// The product kernel: one tile of outputs, one row after another.
#pragma once

#include "../if_neuron.h"
#include "spike_lists.h"

namespace tandem::cpu {

// A tile is 16 R consecutive output channels. Its weights are int32 [inputs + 1, 16 R], the last row zero.
struct Tile {
  const SpikeLists& lists;
  int64_t rows;   // of the lists
  int64_t row;    // number of the first one within the layer
  int planes;     // P
  int width;      // bucket width of the lists
  int registers;  // R, 1 or 2
  const int32_t* weights;
  const float* unit;  // [16 R]: what a sum of 1 is worth
  int64_t channel;    // first output channel
  int64_t channels;   // output channels that exist, at most 16 R
};

// Products, added to the sums of other K-blocks unless `others` is null, to spikes in registers. `gates`, null or a
// byte per neuron, takes the place of the mask.
void fused_tile(const Tile& tile, const int32_t* others, const NeuronArgs<float>& neuron, uint8_t* gates);

// Sums to memory, [rows, planes, 8, 16 R]; added to what is there unless `first`.
void product_tile(const Tile& tile, int32_t* sums, bool first);

// Sums in memory to spikes.
void scan_tile(const Tile& tile, const int32_t* sums, const NeuronArgs<float>& neuron, uint8_t* gates);

}  // namespace tandem::cpu
