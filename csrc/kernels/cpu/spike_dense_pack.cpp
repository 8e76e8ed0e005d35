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

#if TANDEM_MULTIVERSION

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

  const __m512i byte = _mm512_set1_epi32(0xff), half = _mm512_set1_epi32(0x80);
  for (size_t k = 0; k < position.size(); k += 4) {
    __m512i w[4];
    for (int j = 0; j < 4; ++j) w[j] = _mm512_srai_epi32(_mm512_loadu_si512(weights + position[k + j]), shift);
    int8_t* out = digits + k / kChunk * count * kTileBytes + k % kChunk * 16;
    for (int d = 0; d < count; ++d, out += kTileBytes) {
      __m512i four = _mm512_setzero_si512();
      for (int j = 0; j < 4; ++j) {
        four = _mm512_or_si512(four, _mm512_slli_epi32(_mm512_and_si512(w[j], byte), 8 * j));
        w[j] = _mm512_srai_epi32(_mm512_add_epi32(w[j], half), 8);
      }
      _mm512_storeu_si512(out, four);
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

void DenseWeights::pack(const SpikeProduct& product, const Tiling& tiling, const int32_t* packed,
                        ParallelFor parallel) {
  const std::vector<int64_t> position = input_positions(product, tiling);
  const int64_t count = product.groups * tiling.tiles_per_group * tiling.registers;
  const int64_t size = static_cast<int64_t>(position.size()) * 16 * kMostDigits;
  int8_t* digits = memory.reserve(count * size);
  columns.resize(count);
  parallel_ranges(parallel, count, 1 + (int64_t{1} << 20) / (size + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t* tile = packed + i / tiling.registers * tiling.tile_size;
      columns[i] = pack_column(tile + i % tiling.registers * 16, position, digits + i * size);
    }
  });
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

void DenseWeights::pack(const SpikeProduct&, const Tiling&, const int32_t*, ParallelFor) {}
void DenseInputs::expand(const SpikeProduct&, int, int64_t, const Strip*, int64_t) {}
void DenseInputs::count_spikes(const SpikeProduct&, int, int64_t, const Strip*, int64_t) {}

#endif

}  // namespace tandem::cpu
