// Packs weights into tiles: the integers of 16 R outputs, input by input, in the encodings that the algorithms
// multiply.
#pragma once

#include <vector>

#include "digits/digits.h"
#include "tiling.h"

namespace tandem::cpu {

// Packs tiles of words (int32) one by one. Weights and tiling must outlive the packer.
struct TilePacker {
  const Weights& weights;
  const Tiling& tiling;
  std::vector<int64_t> position;  // a tile's row for each weight of an output

  TilePacker(const Weights& weights, const Tiling& tiling);
  // Packs tile i. tile: [tile_size], unit: [16 R].
  void operator()(int64_t i, int32_t* tile, float* unit) const;
};

// The memory for all tiles in each encoding; all but the units may be null.
struct Packed {
  const Tiling& tiling;
  float* units;    // [tiles, 16 R], the value of a sum of 1
  int32_t* words;  // [tiles, tile_size]
  int8_t* bytes;   // [tiles, tile_size], if every weight fits
  const DigitPacker* digits;
};

void pack(const Weights& weights, const Packed& to, ParallelFor parallel);

}  // namespace tandem::cpu
