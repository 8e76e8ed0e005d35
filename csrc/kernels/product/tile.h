// The innermost kernels: one tile of outputs, row by row.
#pragma once

#include "../neuron/if_neuron.h"
#include "lists.h"

namespace tandem::cpu {

// A tile is 16 R consecutive output channels. Its weights are [inputs + 1, 16 R], the last row zero.
struct Tile {
  int64_t rows;
  int64_t first_row;  // number of the first row within the layer
  int planes;         // P
  int registers;      // R, 1 or 2
  bool bytes;         // weights are int8, and their sums fit int16 (weights/prepared.cpp); else int32
  const void* weights;
  const float* unit;  // [16 R], the value of a sum of 1
  int64_t channel;    // first output channel
  int64_t channels;   // output channels that exist, at most 16 R

  int width() const { return 16 * registers; }
  bool is_whole() const { return channels == width(); }
};

// Multiplies a whole tile with one K-block by lists, and fires the neurons in registers.
void fire_lists(const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron);

// Multiplies by lists and writes the sums, [rows, planes, 8, 16 R]. Adds to the sums in memory unless `first`.
void sum_lists(const Tile& tile, const SpikeLists& lists, int32_t* sums, bool first);

// Fires the neurons from sums in memory.
void fire_sums(const Tile& tile, const int32_t* sums, const Neuron<float>& neuron);

}  // namespace tandem::cpu
