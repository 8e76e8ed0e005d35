// Multiplies a prepared layer block by block: loads the inputs of a group of channels, then computes the products tile
// by tile.
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
  Way way;         // a way for prepared weights
  int list_steps;  // steps of a pattern; 0: no lists
  int list_bits;   // bits of the bytes that lists look at, 4 or 8

  // `wanted` is a possible_way(). Lists replace the plain way for int8 weights.
  Multiplier(const Layer& of, const Prepared& weights, Way wanted);

  Blocks blocks() const;

  void load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const;

  // For ways that take digits: loads the counts, and sums them over the window.
  void load_counts(int64_t group, const Block& block, BlockInputs& inputs) const;
  void sum_counts(int64_t group, int64_t i, const BlockInputs& inputs, double* windows) const;

  // Writes the sums of tile i of the group, [rows, planes, 8, 16 R]; for counts those of their bits.
  void sum(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs, int32_t* sums) const;

  // Writes the sums of tile i of the group over the window, [rows, 16 R].
  void sum_window(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs, double* windows) const;

  // Multiplies tile i of the group and fires its neurons.
  void fire(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs, uint8_t* open) const;

  // Tile i of the group without lists: its channels and units.
  Tile tile(int64_t group, int64_t i, const Block& block) const;
};

// run() and window_product() for prepared weights.
void run_prepared(const Multiplier& multiplier, ParallelFor parallel);
void multiply_windows(const Multiplier& multiplier, float* u, ParallelFor parallel);

// The layer with the way that TANDEM_PATH sets, or with lists if that way does not support the layer. `whole_window`:
// see possible_way().
Layer by_fixed_way(const Layer& layer, bool whole_window);

// The candidate ways for the layer's input, between which times decide, or only the way that the layer asks for.
Ways ways_of(const Layer& layer);

// The same for window_product().
Ways window_ways(const Layer& layer);

// `way`, or its replacement if the processor or the layer does not support it. `whole_window`: for the product of a
// window, not for spikes.
Way possible_way(const Layer& layer, Way way, bool whole_window);

// Whether the way multiplies digits.
inline bool takes_digits(Way way) { return way == Way::kMatrixUnit || way == Way::kDense; }

// run() for a few rows: each tile is prepared just before its use and stays in the cache.
void run_tile_by_tile(const Layer& layer, ParallelFor parallel);

}  // namespace tandem::cpu
