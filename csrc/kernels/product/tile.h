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
  const float* unit;  // [16 R]: what a sum of 1 is worth
  int64_t channel;    // first output channel
  int64_t channels;   // output channels that exist, at most 16 R

  int width() const { return 16 * registers; }
};

// Products, added to the sums of other K-blocks unless `others` is null, to spikes in registers. `open`, null or a byte
// per neuron, takes the place of the mask.
void fire_lists(const Tile& tile, const int32_t* others, const Neuron<float>& neuron, uint8_t* open);

// Products to memory, [rows, planes, 8, 16 R]; added to what is there unless `first`.
void sum_lists(const Tile& tile, int32_t* sums, bool first);

// The same for weights in bytes and lists by patterns of four steps; fire_byte_lists() of one K-block.
constexpr int kByteSteps = 4;
void fire_byte_lists(const Tile& tile, const Neuron<float>& neuron, uint8_t* open);
void sum_byte_lists(const Tile& tile, int32_t* sums, bool first);

// Sums in memory to spikes.
void fire_sums(const Tile& tile, const int32_t* sums, const Neuron<float>& neuron, uint8_t* open);

}  // namespace tandem::cpu
