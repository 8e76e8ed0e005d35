#include "digit_columns.h"

#include "../cpu/capability.h"
#include "unit.h"

namespace tandem::cpu {

ChunkShape::ChunkShape(const Geometry& geometry)
    : segments(adjoin(geometry) ? geometry.kernel[0] : geometry.taps()),
      length(adjoin(geometry) ? geometry.kernel[1] * geometry.group_channels() : geometry.group_channels()),
      chunks_per_segment((length + kChunk - 1) / kChunk) {}

bool has_digits(const Geometry& geometry) {
  return byte_products() != ByteProducts::kNone && geometry.inputs() > 0 && !geometry.is_depthwise();
}

DigitLayout::DigitLayout(const Geometry& geometry, DType dtype, int64_t count)
    : columns(count),
      column_bytes(ChunkShape(geometry).chunks() * most_digits(dtype) * kTileBytes),
      digits_at((columns * int64_t{sizeof(Cut)} + 63) / 64 * 64) {}

DigitColumn DigitLayout::column(const char* memory, int64_t i) const {
  const Cut& cut = reinterpret_cast<const Cut*>(memory)[i];
  const auto* digits = reinterpret_cast<const int8_t*>(memory + digits_at) + i * column_bytes;
  return {cut.count, cut.shift, digits, digits + (i + 1 < columns ? column_bytes : 0)};
}

}  // namespace tandem::cpu
