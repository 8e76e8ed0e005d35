// A prepared layer on a block of rows: first the inputs of a group of channels, then tile by tile their products.
#pragma once

#include <vector>

#include "prepared.h"

namespace tandem::cpu {

// The inputs of a block of rows and a group of channels, as the way in use reads them.
struct BlockInputs {
  std::vector<SpikeLists> lists;  // by K-block
  ExpandedInputs expanded;
};

struct Multiplier {
  const Layer& layer;
  const Prepared& prepared;
  Way way;         // one for prepared weights
  int list_steps;  // of the lists' patterns; 0: no lists
  int list_bits;   // of the bytes that lists have to look at, 4 or 8

  // `wanted` is a possible_way(). Lists take the place of the plain way for weights in bytes.
  Multiplier(const Layer& of, const Prepared& weights, Way wanted);

  Blocks blocks() const;

  void load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const;

  // Of a way that takes digits: what sum_counts() needs.
  void load_counts(int64_t group, const Block& block, BlockInputs& inputs) const;
  void sum_counts(int64_t group, int64_t i, const BlockInputs& inputs, double* windows) const;

  // Tile i of the group: its sums to memory, [rows, planes, 8, 16 R]; of counts those of their bits.
  void sum(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs, int32_t* sums) const;

  // Tile i of the group: its sums over the window to memory, [rows, 16 R].
  void sum_window(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs, double* windows) const;

  // Tile i of the group: its spikes.
  void fire(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs, uint8_t* open) const;

  // Tile i of the group, without lists: where its channels and units are.
  Tile tile(int64_t group, int64_t i, const Block& block) const;
};

// run() and window_product() of prepared weights.
void run_prepared(const Multiplier& multiplier, ParallelFor parallel);
void multiply_windows(const Multiplier& multiplier, float* u, ParallelFor parallel);

// The layer with the way that TANDEM_PATH fixes, lists where it has no use for the layer. `whole_window`: as below.
Layer by_fixed_way(const Layer& layer, bool whole_window);

// The ways for the layer's input among which time decides, or the one it asks for, where possible.
Ways ways_of(const Layer& layer);

// The same for window_product().
Ways window_ways(const Layer& layer);

// The way that takes the place of one which the processor does not have, or that has no use for the layer: that of the
// product of a whole window, or of its spikes.
Way possible_way(const Layer& layer, Way way, bool whole_window);

// Does it multiply digits?
inline bool takes_digits(Way way) { return way == Way::kMatrixUnit || way == Way::kDense; }

// run() of a few rows: each tile is prepared just before it is used, and stays in the cache.
void run_tile_by_tile(const Layer& layer, ParallelFor parallel);

}  // namespace tandem::cpu
