// The prepared weights of a layer, ready to be multiplied.
#pragma once

#include <array>
#include <optional>

#include "digit_columns.h"
#include "pack.h"
#include "tiling.h"

namespace tandem::cpu {

// Where the prepared weights of a layer are in memory: the number of K-blocks of bytes, the unit of each output, tiles
// and digits.
struct PreparedLayout {
  int64_t byte_blocks;  // K-blocks of int8 tiles; 0: tiles are int32
  Tiling tiling;
  DigitLayout columns;
  bool has_tiles, has_digits;
  int64_t units, tiles, digits, size;  // offsets, in bytes

  PreparedLayout(const Geometry& geometry, DType dtype, int64_t blocks, bool with_tiles, bool with_digits);
  bool bytes() const { return byte_blocks > 0; }
  int64_t tile_bytes() const { return tiling.tile_size * (bytes() ? 1 : 4); }
};

// Weights as tiles and, where the processor multiplies bytes, as digits. Points to memory of the caller, or of this
// thread until its next layer.
class Prepared {
 public:
  // Uses layer.prepared, or prepares the weights as the algorithm multiplies them; tile by tile not yet.
  Prepared(const Layer& layer, Algorithm algorithm, ParallelFor parallel);

  const Tiling& tiling() const { return at_.tiling; }
  bool bytes() const { return at_.bytes(); }

  // Packs tile i for this thread, if tiles are packed one by one. The work of that, in input bytes.
  void pack(int64_t i) const;
  int64_t work() const { return pack_one_ ? 2 * tiling().tile_size : 0; }

  // The columns of digits of tile i, as many as the tile has registers.
  std::array<DigitColumn, 2> columns(int64_t i) const {
    const int64_t first = i * tiling().registers, last = first + tiling().registers - 1;
    return {at_.columns.column(memory_ + at_.digits, first), at_.columns.column(memory_ + at_.digits, last)};
  }

  // Tile i, K-block q, for some rows.
  Tile tile(const Layer& layer, int64_t i, int64_t q, int64_t rows, int64_t first_row) const;

  // Fetches tile i into the L2 cache, if it is small enough.
  void fetch(int64_t i) const;

 private:
  const char* tile_memory(int64_t i) const { return memory_ + at_.tiles + i * at_.tile_bytes(); }

  PreparedLayout at_;
  const char* memory_;
  std::optional<TilePacker> pack_one_;
};

}  // namespace tandem::cpu
