// Weights as digits, for products of bytes (product/digits/digits.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tiling.h"

namespace tandem::cpu {

// Whether digits can represent the layer on this processor.
bool has_digits(const Geometry& geometry);

constexpr int64_t kChunk = 64;        // inputs per product of tiles
constexpr int64_t kTileBytes = 1024;  // of 16 rows or outputs

// Whether pixels that adjoin in the kernel adjoin in the image.
inline bool adjoin(const Geometry& geometry) { return geometry.dilation[1] == 1; }

// The inputs of one output as they are multiplied: `segments` runs of contiguous bytes, each padded to whole chunks of
// 64.
struct ChunkShape {
  int64_t segments, length, chunks_per_segment;

  explicit ChunkShape(const Geometry& geometry);
  int64_t chunks() const { return segments * chunks_per_segment; }
  int64_t words(int64_t chunk) const {  // of four inputs each
    return (std::min(kChunk, length - chunk % chunks_per_segment * kChunk) + 3) / 4;
  }
};

// The weights of 16 outputs: digits [chunks, count, 16, 16 outputs, 4 inputs]. Digit d is worth 1 << (8 d + shift).
struct DigitColumn {
  int count, shift;
  const int8_t* digits;
  const int8_t* next;  // digits of the next column, to prefetch
};

// Where the digits of a layer are in memory: count and shift of each column of all tiles, then their digits.
struct DigitLayout {
  int64_t columns, column_bytes, digits_at;

  DigitLayout(const Geometry& geometry, const Tiling& tiling, DType dtype);
  int64_t size() const { return digits_at + columns * column_bytes; }  // in bytes
  DigitColumn column(const char* memory, int64_t i) const;
  // Splits 16 outputs of a tile, from `weights` on, into the digits of column i.
  void pack(int64_t i, const int32_t* weights, const std::vector<int64_t>& positions, char* memory) const;
};

// The position of each input of a column in a tile.
std::vector<int64_t> input_positions(const Geometry& geometry, const Tiling& tiling);

}  // namespace tandem::cpu
