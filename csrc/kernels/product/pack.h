// From weights to tiles: the integers of 16 R outputs, input by input, in the encodings that the ways multiply.
#pragma once

#include "plan.h"

namespace tandem::cpu {

// Where the encodings of all tiles go; each but the units may be null.
struct Packed {
  const Tiling& tiling;
  float* units;     // [tiles, 16 R], what a sum of 1 is worth
  int32_t* words;   // [tiles, tile_size]
  int8_t* bytes;    // [tiles, tile_size], where every weight is that small
  int32_t* digits;  // for the matrix unit (DigitPacker)
};

// False: some weight is not finite, and what was written is not usable.
bool pack(const Geometry& geometry, const Weights& weights, const Packed& to, ParallelFor parallel);

}  // namespace tandem::cpu
