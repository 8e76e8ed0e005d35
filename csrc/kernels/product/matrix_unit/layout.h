// The memory layout of weights and inputs for the matrix unit, on which packing and multiplying agree.
#pragma once

#include "../../cpu/capability.h"
#include "matrix_unit.h"

#define TANDEM_TARGET_AMX [[gnu::target("arch=x86-64-v4,amx-tile,amx-int8" TANDEM_WIDE_VECTORS)]]

namespace tandem::cpu {

constexpr int64_t kChunk = 64;     // inputs per product of tiles
constexpr int64_t kTileRows = 16;  // rows of the layer per tile
constexpr int64_t kTileBytes = 1024;
constexpr int kMostDigits = 4;

inline bool adjoin(const Geometry& geometry) { return geometry.dilation[1] == 1; }

inline int64_t whole_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

inline int64_t whole_chunks(int64_t n) { return (n + kChunk - 1) / kChunk * kChunk; }

// Bytes from pixel to pixel. Rows of a product begin at cache lines, unless they span several pixels, which then must
// be contiguous.
inline int64_t pitch(const Geometry& geometry) {
  return geometry.kernel[1] == 1 ? whole_chunks(geometry.group_channels()) : geometry.group_channels();
}

}  // namespace tandem::cpu
