// Weights as the digits that the matrix unit multiplies.
#include "../lists.h"
#include "../units.h"
#include "layout.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>
#endif

namespace tandem::cpu {

ChunkShape::ChunkShape(const Geometry& geometry)
    : segments(adjoin(geometry) ? geometry.kernel[0] : geometry.taps()),
      length(adjoin(geometry) ? geometry.kernel[1] * geometry.group_channels() : geometry.group_channels()),
      chunks_per_segment((length + kChunk - 1) / kChunk) {}

namespace {

// Where each input of a column lies within a tile; padding is the tile's first row of zeros.
std::vector<int64_t> input_positions(const Geometry& geometry, const Tiling& tiling) {
  const ChunkShape shape(geometry);
  const int64_t channels = geometry.group_channels(), zero = geometry.taps() * tiling.block_channels * tiling.width();
  std::vector<int64_t> position;
  for (int64_t segment = 0; segment < shape.segments; ++segment) {
    for (int64_t i = 0; i < shape.chunks_per_segment * kChunk; ++i) {
      const int64_t input = segment * shape.length + i, q = input % channels / tiling.block_channels;
      const int64_t size = tiling.last_channel(geometry, q) - tiling.first_channel(q);
      const int64_t row = input / channels * size + input % channels - tiling.first_channel(q);
      position.push_back(i < shape.length ? tiling.block_offset(geometry, q) + row * tiling.width() : zero);
    }
  }
  return position;
}

struct ColumnMemory {
  int64_t columns, header;  // int32 of counts and shifts, filled up to a cache line
  int64_t column_bytes;

  ColumnMemory(const Geometry& geometry, const Tiling& tiling, DType dtype)
      : columns(geometry.groups * tiling.tiles_per_group * tiling.registers),
        header((2 * columns + 15) / 16 * 16),
        column_bytes(ChunkShape(geometry).chunks() * (dtype == DType::kInt8 ? 1 : kMostDigits) * kTileBytes) {}
};

}  // namespace

int64_t DigitWeights::size(const Geometry& geometry, const Tiling& tiling, DType dtype) {
  if (!has_matrix_unit() || geometry.inputs() == 0 || geometry.inputs() > kMaxInputs) return 0;
  const ColumnMemory at(geometry, tiling, dtype);
  return at.header + at.columns * at.column_bytes / 4;
}

void DigitWeights::read(const Geometry& geometry, const Tiling& tiling, DType dtype, const int32_t* memory) {
  const ColumnMemory at(geometry, tiling, dtype);
  columns.clear();
  for (int64_t i = 0; i < at.columns; ++i) {
    const auto* digits = reinterpret_cast<const int8_t*>(memory + at.header) + i * at.column_bytes;
    const int64_t next = i + 1 < at.columns ? at.column_bytes : 0;
    columns.push_back({memory[2 * i], memory[2 * i + 1], digits, digits + next});
  }
}

DigitPacker::DigitPacker(const Geometry& geometry, const Tiling& tiling, DType dtype, int32_t* memory)
    : position_(input_positions(geometry, tiling)), registers_(tiling.registers), header_(memory) {
  const ColumnMemory at(geometry, tiling, dtype);
  column_bytes_ = at.column_bytes;
  digits_ = reinterpret_cast<int8_t*>(memory + at.header);
}

#if TANDEM_MULTIVERSION

namespace {

// Bits of a where the mask has ones, of b elsewhere.
TANDEM_TARGET_AMX TANDEM_INLINE __m512i choose(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

struct Digits {
  int count, shift;
};

TANDEM_TARGET_AMX Digits pack_column(const int32_t* weights, const std::vector<int64_t>& position, int8_t* digits) {
  __m512i bits = _mm512_setzero_si512(), most = bits;
  for (const int64_t p : position) {
    const __m512i w = _mm512_loadu_si512(weights + p);
    bits = _mm512_or_si512(bits, w);
    most = _mm512_max_epu32(most, _mm512_xor_si512(w, _mm512_srai_epi32(w, 31)));  // -128 is a digit, 128 is none
  }
  const auto any = static_cast<uint32_t>(_mm512_reduce_or_epi32(bits));
  const int shift = any == 0 ? 0 : __builtin_ctz(any);
  const uint32_t largest = _mm512_reduce_max_epu32(most) >> shift;
  const int count = largest <= 0x7f ? 1 : largest <= 0x7f7f ? 2 : largest <= kThreeDigits ? 3 : kMostDigits;

  // The bytes of w + 0x80808080 are its digits plus 128, and four inputs' words of four bytes are transposed.
  const __m512i bias = _mm512_set1_epi32(static_cast<int>(0x80808080u));
  const __m512i even = _mm512_set1_epi32(0x00ff00ff), low = _mm512_set1_epi32(0x0000ffff);
  for (size_t k = 0; k < position.size(); k += 4) {
    __m512i w[4];
    for (int j = 0; j < 4; ++j) {
      w[j] = _mm512_add_epi32(_mm512_srai_epi32(_mm512_loadu_si512(weights + position[k + j]), shift), bias);
    }
    const __m512i first[2] = {choose(even, w[0], _mm512_slli_epi32(w[1], 8)),
                              choose(even, _mm512_srli_epi32(w[0], 8), w[1])};
    const __m512i last[2] = {choose(even, w[2], _mm512_slli_epi32(w[3], 8)),
                             choose(even, _mm512_srli_epi32(w[2], 8), w[3])};
    int8_t* out = digits + k / kChunk * count * kTileBytes + k % kChunk * 16;
    for (int d = 0; d < count; ++d, out += kTileBytes) {
      const __m512i a = first[d % 2], b = last[d % 2];
      const __m512i four = d < 2 ? choose(low, a, _mm512_slli_epi32(b, 16)) : choose(low, _mm512_srli_epi32(a, 16), b);
      _mm512_storeu_si512(out, _mm512_xor_si512(four, bias));
    }
  }
  return {count, shift};
}

}  // namespace

void DigitPacker::pack(int64_t i, const int32_t* tile) const {
  for (int r = 0; r < registers_; ++r) {
    const int64_t column = i * registers_ + r;
    const Digits packed = pack_column(tile + 16 * r, position_, digits_ + column * column_bytes_);
    header_[2 * column] = packed.count;
    header_[2 * column + 1] = packed.shift;
  }
}

#else

void DigitPacker::pack(int64_t, const int32_t*) const {}

#endif

}  // namespace tandem::cpu
