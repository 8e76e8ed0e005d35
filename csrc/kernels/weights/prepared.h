// The prepared weights of a layer, ready to be multiplied.
#pragma once

#include <array>
#include <optional>

#include "../cpu/workspace.h"
#include "digit_columns.h"
#include "pack.h"
#include "tiling.h"

namespace tandem::cpu {

// What prepared weights begin with.
struct PreparedHeader {
  int64_t byte_blocks;  // K-blocks of int8 tiles; 0: tiles are int32
  bool has_tiles, has_digits;
};

// Where the prepared weights of a layer are in memory: the header, the unit of each output, tiles and digits.
struct PreparedLayout {
  PreparedHeader header;
  Tiling tiling;
  DigitLayout columns;
  int64_t units, tiles, digits, size;  // offsets, in bytes

  PreparedLayout(const Geometry& geometry, DType dtype, const PreparedHeader& header);
  bool bytes() const { return header.byte_blocks > 0; }
  int64_t tile_bytes() const { return tiling.tile_size * (bytes() ? 1 : 4); }
};

// Weights as tiles and, where the processor multiplies bytes, as digits.
class Prepared {
 public:
  // Reads layer.prepared; without it, tiles are packed one by one, as digits or as words.
  explicit Prepared(const Layer& layer, bool as_digits = false);

  const Tiling& tiling() const { return layout_.tiling; }
  bool bytes() const { return layout_.bytes(); }

  // The work of packing a tile, in input bytes; 0 if all are prepared.
  int64_t work() const { return memory_ == nullptr ? 2 * tiling().tile_size : 0; }

  // The columns of digits of a tile, as many as it has registers.
  std::array<DigitColumn, 2> columns(const Tile& tile) const {
    const bool own = memory_ == nullptr;
    const DigitLayout& layout = own ? columns_of_tile_ : layout_.columns;
    const char* memory = own ? tile.weights : memory_ + layout_.digits;
    const int64_t first = own ? 0 : tile.number * tile.registers;
    return {layout.column(memory, first), layout.column(memory, first + tile.registers - 1)};
  }

  // Tile i, without rows: of prepared weights, or packed into the workspace if they are not.
  Tile tile(int64_t i) const;
  Tile tile(int64_t i, Workspace& workspace) const;

  // Fetches tile i into the L2 cache, if it is small enough.
  void fetch(int64_t i) const;

 private:
  const char* tile_memory(int64_t i) const { return memory_ + layout_.tiles + i * layout_.tile_bytes(); }

  PreparedLayout layout_;
  DigitLayout columns_of_tile_;
  const char* memory_;
  std::optional<TilePacker> pack_words_;
  std::optional<ColumnPacker> pack_column_;
};

}  // namespace tandem::cpu
