// A layer whose weights are ready to be multiplied.
#pragma once

#include "lists.h"
#include "matrix_unit/matrix_unit.h"
#include "plan.h"
#include "tile.h"

namespace tandem::cpu {

// Weights as tiles and, where the processor has a matrix unit, as digits. What it points to is the caller's, or this
// thread's and lasts until its next layer.
class Prepared {
 public:
  // Uses layer.prepared, or prepares the weights. `tiles`, `digits`: what will be asked for; there are digits only
  // where a matrix unit can hold the layer.
  Prepared(const Layer& layer, bool tiles, bool digits, ParallelFor parallel);

  // Of one tile of words alone, which somebody has packed; of none, for its tiling.
  Prepared(const Tiling& tiling, int64_t number = 0, const int32_t* tile = nullptr, const float* unit = nullptr)
      : byte_blocks_(0), tiling_(tiling), tiles_(tile), units_(unit), first_(number) {}

  const Tiling& tiling() const { return tiling_; }
  bool bytes() const { return byte_blocks_ > 0; }
  bool has_digits() const { return digits_ != nullptr; }

  // The columns of digits of tile i of a group.
  const DigitColumn* columns(int64_t group, int64_t i) const {
    return digits_->columns.data() + (group * tiling_.tiles_per_group + i) * tiling_.registers;
  }

  // Tile i of a group, K-block q, for rows of these lists.
  Tile tile(const Layer& layer, int64_t group, int64_t i, int64_t q, const SpikeLists& lists, int64_t rows,
            int64_t first_row) const;

 private:
  int64_t byte_blocks_;  // of tiles of int8; 0: they are of int32
  Tiling tiling_;
  const void* tiles_ = nullptr;
  const float* units_ = nullptr;
  int64_t first_ = 0;  // number of the first tile that is here
  const DigitWeights* digits_ = nullptr;
};

// A byte per neuron where the gates of a layer's channels do not fill the bytes of the mask, else null. This thread's.
uint8_t* reserve_open(const Layer& layer);
// Packs them into the mask.
void write_mask(const Layer& layer, const uint8_t* open, ParallelFor parallel);

}  // namespace tandem::cpu
