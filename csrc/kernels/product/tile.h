// The innermost kernels: one tile of outputs, one row after another.
#pragma once

#include "../neuron/if_neuron.h"
#include "lists.h"

namespace tandem::cpu {

// A tile is 16 R consecutive output channels. Its weights are [inputs + 1, 16 R], the last row zero.
struct Tile {
  const SpikeLists& lists;
  int64_t rows;       // of the lists
  int64_t first_row;  // number of the first one within the layer
  int planes;         // P
  int registers;      // R, 1 or 2
  bool bytes;         // weights are int8, and their sums fit int16; else int32
  const void* weights;
  const char* ahead;  // memory that is needed soon, so many cache lines with every list
  int64_t lines;
  const float* unit;  // [16 R]: what a sum of 1 is worth
  int64_t channel;    // first output channel
  int64_t channels;   // output channels that exist, at most 16 R

  int width() const { return 16 * registers; }
};

// Lists of weights in bytes have patterns of so many steps.
constexpr int kByteSteps = 4;

// Products to memory, [rows, planes, 8, 16 R], from this list on; added to what is there unless `first`.
void sum_lists(const Tile& tile, int64_t list, int32_t* sums, bool first);

// Sums in memory to spikes. `open`, null or a byte per neuron, takes the place of the mask.
void fire_sums(const Tile& tile, const int32_t* sums, const Neuron<float>& neuron, uint8_t* open);

}  // namespace tandem::cpu
