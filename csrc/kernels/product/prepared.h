// The prepared weights of a layer, ready to be multiplied.
#pragma once

#include "digits/digits.h"
#include "tile.h"
#include "tiling.h"

namespace tandem::cpu {

// Weights as tiles and, where the processor multiplies bytes, as digits. Points to memory of the caller, or of this
// thread until its next layer.
class Prepared {
 public:
  // Uses layer.prepared, or prepares the weights as the algorithm multiplies them: tile by tile not yet.
  Prepared(const Layer& layer, Algorithm algorithm, ParallelFor parallel);

  // A single tile packed by the caller, or no tile: then only the tiling is used.
  Prepared(const Tiling& tiling, int64_t number = 0, const int32_t* tile = nullptr, const float* unit = nullptr)
      : byte_blocks_(0), tiling_(tiling), tiles_(tile), units_(unit), first_(number) {}

  const Tiling& tiling() const { return tiling_; }
  bool bytes() const { return byte_blocks_ > 0; }

  // The columns of digits of tile i of a group.
  const DigitColumn* columns(int64_t group, int64_t i) const {
    return digits_->columns.data() + (group * tiling_.tiles_per_group + i) * tiling_.registers;
  }

  // Tile i of a group, K-block q, for some rows.
  Tile tile(const Layer& layer, int64_t group, int64_t i, int64_t q, int64_t rows, int64_t first_row) const;

  // Fetches tile i of a group into the L2 cache, if it is in the memory of a whole layer and small enough.
  void fetch(int64_t group, int64_t i) const;

 private:
  int64_t byte_blocks_;  // K-blocks of int8 tiles; 0: tiles are int32
  Tiling tiling_;
  const void* tiles_ = nullptr;
  const float* units_ = nullptr;
  int64_t first_ = 0;  // number of the first tile in memory
  const DigitWeights* digits_ = nullptr;
};

// Memory of this thread with a byte per neuron, if the gates of a group do not fill whole bytes of the mask; else null.
uint8_t* reserve_open(const Layer& layer, const Tiling& tiling);
// Packs these bytes into the mask, unless null.
void write_mask(const Layer& layer, const uint8_t* open, ParallelFor parallel);

}  // namespace tandem::cpu
