// Weights as digits, for products of bytes (product/digits/digits.h).
#pragma once

#include <algorithm>
#include <cstdint>

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

// How a column is cut into digits.
struct Cut {
  int32_t count, shift;
};

// Where the digits of a layer or of a tile are in memory: count and shift of each column, then their digits.
struct DigitLayout {
  int64_t columns, column_bytes, digits_at;

  DigitLayout(const Geometry& geometry, DType dtype, int64_t columns);
  int64_t size() const { return digits_at + columns * column_bytes; }  // in bytes
  DigitColumn column(const char* memory, int64_t i) const;
  // Where column i is written.
  Cut* cut(char* memory, int64_t i) const { return reinterpret_cast<Cut*>(memory) + i; }
  int8_t* digits(char* memory, int64_t i) const {
    return reinterpret_cast<int8_t*>(memory + digits_at) + i * column_bytes;
  }
};

}  // namespace tandem::cpu
