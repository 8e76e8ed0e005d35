// The prepared weights of a layer, ready to be multiplied.
#pragma once

#include <array>
#include <optional>

#include "digits/digits.h"
#include "pack.h"
#include "tile.h"
#include "tiling.h"

namespace tandem::cpu {

// Weights as tiles and, where the processor multiplies bytes, as digits. Points to memory of the caller, or of this
// thread until its next layer.
class Prepared {
 public:
  // Uses layer.prepared, or prepares the weights as the algorithm multiplies them; tile by tile not yet.
  Prepared(const Layer& layer, Algorithm algorithm, ParallelFor parallel);
  // No weights: only the tiling is used.
  explicit Prepared(const Tiling& tiling) : byte_blocks_(0), tiling_(tiling) {}

  const Tiling& tiling() const { return tiling_; }
  bool bytes() const { return byte_blocks_ > 0; }

  // Packs tile i of a group for this thread, if tiles are packed one by one. The work of that, in input bytes.
  void pack(int64_t group, int64_t i) const;
  int64_t work() const { return pack_one_ ? 2 * tiling_.tile_size : 0; }

  // The columns of digits of tile i of a group, as many as the tile has registers.
  std::array<DigitColumn, 2> columns(int64_t group, int64_t i) const {
    const int64_t first = (group * tiling_.tiles_per_group + i) * tiling_.registers;
    return {layout_.column(digits_, first), layout_.column(digits_, first + tiling_.registers - 1)};
  }

  // Tile i of a group, K-block q, for some rows.
  Tile tile(const Layer& layer, int64_t group, int64_t i, int64_t q, int64_t rows, int64_t first_row) const;

  // Fetches tile i of a group into the L2 cache, if it is small enough.
  void fetch(int64_t group, int64_t i) const;

 private:
  int64_t tile_bytes() const { return tiling_.tile_size * (bytes() ? 1 : 4); }

  int64_t byte_blocks_;  // K-blocks of int8 tiles; 0: tiles are int32
  Tiling tiling_;
  DigitLayout layout_;
  std::optional<TilePacker> pack_one_;
  const char *tiles_ = nullptr, *digits_ = nullptr;
  const float* units_ = nullptr;
};

}  // namespace tandem::cpu
