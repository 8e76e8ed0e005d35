// Packs weights: the integers of 16 R outputs as a tile of words, input by input, or those of 16 as a column of digits.
#pragma once

#include <vector>

#include "../cpu/workspace.h"
#include "digit_columns.h"
#include "tiling.h"

namespace tandem::cpu {

// The weights that are packed. An output with a weight that is not finite has zeros, and the unit NaN, which makes its
// currents NaN at every step.
struct PackedWeights {
  Weights weights;
  Tiling tiling;
  std::vector<float> zeros;  // of an output

  PackedWeights(const Weights& from, const Tiling& to) : weights(from), tiling(to), zeros(to.inputs()) {}
};

// Packs tiles of words (int32) one by one.
struct TilePacker : PackedWeights {
  std::vector<int64_t> position;  // a tile's row for each weight of an output

  TilePacker(const Weights& weights, const Tiling& tiling);
  // Packs tile i. tile: [tile_size]; unit: [16 R], the value of a sum of 1.
  void operator()(int64_t i, int32_t* tile, float* unit) const;
};

// Packs columns of digits one by one.
struct ColumnPacker : PackedWeights {
  ChunkShape shape;

  ColumnPacker(const Geometry& geometry, const Weights& weights, const Tiling& tiling)
      : PackedWeights(weights, tiling), shape(geometry) {}
  // Packs column i. digits: [chunks, count, 16, 16 outputs, 4 inputs]; unit: [16].
  void operator()(int64_t i, Cut* cut, int8_t* digits, float* unit, Workspace& workspace) const;
};

}  // namespace tandem::cpu
