#include "digit_columns.h"

#include <algorithm>

#include "units.h"

namespace tandem::cpu {

namespace {

// How a column is cut into digits.
struct Cut {
  int32_t count, shift;
};

// Bits of a where the mask has ones, of b elsewhere.
template <class V>
TANDEM_INLINE V select(int32_t mask, const V& a, const V& b) {
  return (a & mask) | (b & ~mask);
}

template <int L>
TANDEM_INLINE Cut measure_column(const int32_t* weights, const std::vector<int64_t>& position) {
  int32_t bits = 0, most = 0;
  for (int i = 0; i < 16; i += L) {
    Int<L> any{}, largest{};
    for (const int64_t p : position) {
      const auto w = load<Int<L>>(weights + p + i);
      const Int<L> size = w ^ (w >> 31);  // -128 fits a digit, 128 does not
      any |= w;
      largest = size > largest ? size : largest;
    }
    for (int lane = 0; lane < L; ++lane) {
      bits |= any[lane];
      most = std::max<int32_t>(most, largest[lane]);
    }
  }
  const int shift = bits == 0 ? 0 : __builtin_ctz(static_cast<uint32_t>(bits));
  most >>= shift;
  return {digits_of(most), shift};
}

// The bytes of w + 0x80808080 are the digits of w plus 128. The words of four inputs are transposed, so that the four
// bytes of a digit are together.
TANDEM_CPU_KERNEL(pack_column,
                  (const int32_t* weights, const std::vector<int64_t>& position, int8_t* digits, Cut* to_cut),
                  (weights, position, digits, to_cut)) {
  const Cut cut = measure_column<L>(weights, position);
  *to_cut = cut;
  constexpr int32_t bias = static_cast<int32_t>(0x80808080u), even = 0x00ff00ff, low = 0x0000ffff;
  typedef typename Simd<uint32_t, L>::type Words;
  for (size_t k = 0; k < position.size(); k += 4) {
    int8_t* to = digits + k / kChunk * cut.count * kTileBytes + k % kChunk * 16;
    for (int i = 0; i < 16; i += L) {
      Words w[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        w[j] = reinterpret_cast<Words>(load<Int<L>>(weights + position[k + j] + i) >> cut.shift) + bias;
      }
      const Words first[2] = {select<Words>(even, w[0], w[1] << 8), select<Words>(even, w[0] >> 8, w[1])};
      const Words last[2] = {select<Words>(even, w[2], w[3] << 8), select<Words>(even, w[2] >> 8, w[3])};
      int8_t* out = to + 4 * i;
      for (int d = 0; d < cut.count; ++d, out += kTileBytes) {
        const Words a = first[d % 2], b = last[d % 2];
        const Words four = d < 2 ? select<Words>(low, a, b << 16) : select<Words>(low, a >> 16, b);
        store(out, four ^ static_cast<uint32_t>(bias));
      }
    }
  }
}

}  // namespace

ChunkShape::ChunkShape(const Geometry& geometry)
    : segments(adjoin(geometry) ? geometry.kernel[0] : geometry.taps()),
      length(adjoin(geometry) ? geometry.kernel[1] * geometry.group_channels() : geometry.group_channels()),
      chunks_per_segment((length + kChunk - 1) / kChunk) {}

// Padding points to the tile's first row of zeros.
std::vector<int64_t> input_positions(const Geometry& geometry, const Tiling& tiling) {
  const ChunkShape shape(geometry);
  const int64_t channels = tiling.channels, zero = tiling.taps * tiling.block_channels * tiling.width();
  std::vector<int64_t> position;
  for (int64_t segment = 0; segment < shape.segments; ++segment) {
    for (int64_t i = 0; i < shape.chunks_per_segment * kChunk; ++i) {
      const int64_t input = segment * shape.length + i;
      position.push_back(i < shape.length ? tiling.row(input / channels, input % channels) * tiling.width() : zero);
    }
  }
  return position;
}

bool has_digits(const Geometry& geometry) {
  return byte_products() != ByteProducts::kNone && geometry.inputs() > 0 && !geometry.is_depthwise();
}

DigitLayout::DigitLayout(const Geometry& geometry, const Tiling& tiling, DType dtype)
    : columns(tiling.tiles() * tiling.registers),
      column_bytes(ChunkShape(geometry).chunks() * most_digits(dtype) * kTileBytes),
      digits_at((columns * int64_t{sizeof(Cut)} + 63) / 64 * 64) {}

DigitColumn DigitLayout::column(const char* memory, int64_t i) const {
  const Cut& cut = reinterpret_cast<const Cut*>(memory)[i];
  const auto* digits = reinterpret_cast<const int8_t*>(memory + digits_at) + i * column_bytes;
  return {cut.count, cut.shift, digits, digits + (i + 1 < columns ? column_bytes : 0)};
}

void DigitLayout::pack(int64_t i, const int32_t* weights, const std::vector<int64_t>& positions, char* memory) const {
  auto* digits = reinterpret_cast<int8_t*>(memory + digits_at) + i * column_bytes;
  pack_column(weights, positions, digits, reinterpret_cast<Cut*>(memory) + i);
}

}  // namespace tandem::cpu
