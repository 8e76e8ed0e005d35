// From weights to tiles: the integers of 16 R outputs, input by input, in the encodings that the ways multiply.
#pragma once

#include <vector>

#include "active.h"
#include "plan.h"

namespace tandem::cpu {

// Packs tiles of words one by one. What it is made of must outlive it. The geometry and its tiling may be those of the
// active inputs alone.
class TilePacker {
 public:
  TilePacker(const Geometry& geometry, const Weights& weights, const Tiling& tiling,
             const ActiveInputs* active = nullptr);
  // tile [tile_size], unit [16 R].
  void operator()(int64_t i, int32_t* tile, float* unit) const;

 private:
  const Geometry& geometry_;
  const Weights& weights_;
  const Tiling& tiling_;
  const ActiveInputs* active_;
  std::vector<int64_t> positions_;
};

// Where the encodings of all tiles go; each but the units may be null.
struct Packed {
  const Tiling& tiling;
  float* units;     // [tiles, 16 R], what a sum of 1 is worth
  int32_t* words;   // [tiles, tile_size]
  int8_t* bytes;    // [tiles, tile_size], where every weight is that small
  int32_t* digits;  // for the matrix unit (DigitPacker)
};

void pack(const Geometry& geometry, const Weights& weights, const Packed& to, ParallelFor parallel);

}  // namespace tandem::cpu
