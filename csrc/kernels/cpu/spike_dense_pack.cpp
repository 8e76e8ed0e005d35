// Weights as digits, spikes as bytes: what the matrix unit reads.
#include <algorithm>

#include "spike_dense_layout.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>
#endif

namespace tandem::cpu {

DenseShape::DenseShape(const SpikeProduct& product)
    : segments(adjoin(product) ? product.kernel[0] : product.taps()),
      length(adjoin(product) ? product.kernel[1] * product.group_channels() : product.group_channels()),
      chunks_per_segment((length + kChunk - 1) / kChunk) {}

namespace {

// Where each input of a column lies within a tile; padding is the tile's first row of zeros.
std::vector<int64_t> input_positions(const SpikeProduct& product, const Tiling& tiling) {
  const DenseShape shape(product);
  const int64_t channels = product.group_channels(), zero = product.taps() * tiling.block_channels * tiling.width();
  std::vector<int64_t> position;
  for (int64_t segment = 0; segment < shape.segments; ++segment) {
    for (int64_t i = 0; i < shape.chunks_per_segment * kChunk; ++i) {
      const int64_t input = segment * shape.length + i, q = input % channels / tiling.block_channels;
      const int64_t size = tiling.last_channel(product, q) - tiling.first_channel(q);
      const int64_t row = input / channels * size + input % channels - tiling.first_channel(q);
      position.push_back(i < shape.length ? tiling.block_offset(product, q) + row * tiling.width() : zero);
    }
  }
  return position;
}

struct ColumnMemory {
  int64_t columns, header;  // int32 of counts and shifts, filled up to a cache line
  int64_t column_bytes;

  ColumnMemory(const SpikeProduct& product, const Tiling& tiling)
      : columns(product.groups * tiling.tiles_per_group * tiling.registers),
        header((2 * columns + 15) / 16 * 16),
        column_bytes(DenseShape(product).chunks() * kMostDigits * kTileBytes) {}
};

}  // namespace

int64_t DenseWeights::size(const SpikeProduct& product, const Tiling& tiling) {
  if (!has_matrix_unit() || product.inputs() == 0 || product.inputs() > kMaxInputs) return 0;
  const ColumnMemory at(product, tiling);
  return at.header + at.columns * at.column_bytes / 4;
}

void DenseWeights::read(const SpikeProduct& product, const Tiling& tiling, const int32_t* memory) {
  const ColumnMemory at(product, tiling);
  columns.clear();
  for (int64_t i = 0; i < at.columns; ++i) {
    const auto* digits = reinterpret_cast<const int8_t*>(memory + at.header) + i * at.column_bytes;
    columns.push_back({memory[2 * i], memory[2 * i + 1], digits});
  }
}

DensePacker::DensePacker(const SpikeProduct& product, const Tiling& tiling, int32_t* memory)
    : position_(input_positions(product, tiling)), registers_(tiling.registers), header_(memory) {
  const ColumnMemory at(product, tiling);
  column_bytes_ = at.column_bytes;
  digits_ = reinterpret_cast<int8_t*>(memory + at.header);
}

#if TANDEM_MULTIVERSION

namespace {

// Bits of a where the mask has ones, of b elsewhere.
TANDEM_TARGET_AMX TANDEM_INLINE __m512i choose(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

TANDEM_TARGET_AMX DenseColumn pack_column(const int32_t* weights, const std::vector<int64_t>& position,
                                          int8_t* digits) {
  __m512i bits = _mm512_setzero_si512(), most = bits;
  for (const int64_t p : position) {
    const __m512i w = _mm512_loadu_si512(weights + p);
    bits = _mm512_or_si512(bits, w);
    most = _mm512_max_epu32(most, _mm512_abs_epi32(w));
  }
  const auto any = static_cast<uint32_t>(_mm512_reduce_or_epi32(bits));
  const int shift = any == 0 ? 0 : __builtin_ctz(any);
  const uint32_t largest = _mm512_reduce_max_epu32(most) >> shift;
  const int count = largest <= 0x7f ? 1 : largest <= 0x7f7f ? 2 : largest <= 0x7f7f7f ? 3 : kMostDigits;

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
  return {count, shift, digits};
}

// The bits of `n` bytes, each step's in a plane of its own.
TANDEM_TARGET_AMX void split_bits(const uint8_t* in, int64_t n, uint8_t* out, int64_t step_bytes) {
  const __m512i one = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < n; i += kChunk) {
    const __mmask64 lanes = n - i >= kChunk ? ~0ull : (1ull << (n - i)) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(lanes, in + i);
    for (int t = 0; t < 8; ++t) {
      _mm512_mask_storeu_epi8(out + t * step_bytes + i, lanes, _mm512_and_si512(_mm512_srli_epi16(bytes, t), one));
    }
  }
}

// Spikes of `n` bytes in all planes, which lie `plane_bytes` apart.
TANDEM_TARGET_AMX void add_counts(const uint8_t* in, int64_t n, int planes, int64_t plane_bytes, uint8_t* out) {
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  const __m512i ones = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  for (int64_t i = 0; i < n; i += kChunk) {
    const __mmask64 lanes = n - i >= kChunk ? ~0ull : (1ull << (n - i)) - 1;
    __m512i count = _mm512_setzero_si512();
    for (int p = 0; p < planes; ++p) {
      const __m512i bytes = _mm512_maskz_loadu_epi8(lanes, in + p * plane_bytes + i);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
      count = _mm512_add_epi8(count, _mm512_shuffle_epi8(ones, _mm512_and_si512(bytes, nibble)));
      count = _mm512_add_epi8(count, _mm512_shuffle_epi8(ones, high));
    }
    _mm512_mask_storeu_epi8(out + i, lanes, count);
  }
}

// Lays out the inputs of the strips and calls fill(from, n, to, step_bytes) for each run of n bytes of plane p, from
// the address `from` on, that lies inside the image.
template <class Fill>
void fill_inputs(DenseInputs& inputs, const SpikeProduct& of, int planes, int64_t first, const Strip* block,
                 int64_t count, const Fill& fill) {
  SpikeProduct& product = inputs.product;
  std::vector<Strip>& strips = inputs.strips;
  const int steps = inputs.steps;
  product = of;
  strips.assign(block, block + count);
  if (of.is_linear()) {
    std::swap(product.batch, product.width);
    product.stride[1] = 1;
    strips.assign(1, Strip{0, 0, block[0].b, block[count - 1].b + 1});
  }
  inputs.start.clear();
  int64_t size = 0;
  for (const Strip& strip : strips) {
    for (int p = 0; p < planes; ++p, size += steps * Region(product, strip).step_bytes) inputs.start.push_back(size);
  }
  uint8_t* memory = inputs.bytes.reserve(size);
  const int64_t channels = product.group_channels(), step = pitch(product);
  for (size_t i = 0; i < strips.size(); ++i) {
    const Region region(product, strips[i]);
    const int64_t begin = std::clamp<int64_t>(-region.x, 0, region.pixels);
    const int64_t end = std::clamp<int64_t>(product.width - region.x, begin, region.pixels);
    for (int p = 0; p < planes; ++p) {
      uint8_t* to = memory + inputs.start[i * planes + p];
      for (int64_t line = 0; line < region.lines; ++line, to += region.pixels * step) {
        const int64_t y = region.y + line * product.dilation[0];
        const bool inside = y >= 0 && y < product.height;
        const int64_t from = inside ? begin : region.pixels, until = inside ? end : region.pixels;
        for (int t = 0; t < steps; ++t) {
          uint8_t* plane = to + t * region.step_bytes;
          std::fill_n(plane, from * step, uint8_t{0});
          std::fill_n(plane + until * step, (region.pixels - until) * step, uint8_t{0});
        }
        if (from >= until) continue;
        const int64_t pixel = ((p * product.batch + strips[i].b) * product.height + y) * product.width + region.x;
        const uint8_t* in = product.planes + pixel * product.channels + first;
        if (step == product.channels) {
          fill(in + from * channels, (until - from) * channels, to + from * channels, region.step_bytes);
        } else {
          for (int64_t x = from; x < until; ++x) {
            fill(in + x * product.channels, channels, to + x * step, region.step_bytes);
          }
        }
      }
    }
  }
}

}  // namespace

void DensePacker::pack(int64_t i, const int32_t* tile) const {
  for (int r = 0; r < registers_; ++r) {
    const int64_t column = i * registers_ + r;
    const DenseColumn packed = pack_column(tile + 16 * r, position_, digits_ + column * column_bytes_);
    header_[2 * column] = packed.count;
    header_[2 * column + 1] = packed.shift;
  }
}

void DenseInputs::expand(const SpikeProduct& of, int planes, int64_t first, const Strip* block, int64_t count) {
  steps = 8;
  fill_inputs(*this, of, planes, first, block, count, split_bits);
}

void DenseInputs::count_spikes(const SpikeProduct& of, int planes, int64_t first, const Strip* block, int64_t count) {
  steps = 1;
  const int64_t plane_bytes = of.batch * of.height * of.width * of.channels;
  fill_inputs(*this, of, 1, first, block, count, [&](const uint8_t* in, int64_t n, uint8_t* out, int64_t) {
    add_counts(in, n, planes, plane_bytes, out);
  });
}

#else

void DensePacker::pack(int64_t, const int32_t*) const {}
void DenseInputs::expand(const SpikeProduct&, int, int64_t, const Strip*, int64_t) {}
void DenseInputs::count_spikes(const SpikeProduct&, int, int64_t, const Strip*, int64_t) {}

#endif

}  // namespace tandem::cpu
