// Packs weights into tiles: the integers of 16 R outputs, input by input.
#pragma once

#include <vector>

#include "tiling.h"

namespace tandem::cpu {

// Packs tiles of words (int32) one by one.
struct TilePacker {
  Weights weights;
  Tiling tiling;
  std::vector<int64_t> position;  // a tile's row for each weight of an output

  TilePacker(const Weights& weights, const Tiling& tiling);
  // Packs tile i. tile: [tile_size]; unit: [16 R], the value of a sum of 1.
  void operator()(int64_t i, int32_t* tile, float* unit) const;
};

}  // namespace tandem::cpu
