#include "spike_dense.h"

#include <algorithm>

#include "capability.h"

#if TANDEM_MULTIVERSION
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tandem::cpu {

namespace {

constexpr int64_t kChunk = 64;     // inputs per product of tiles
constexpr int64_t kTileRows = 16;  // rows of the layer per tile
constexpr int64_t kTileBytes = 1024;
constexpr int kMostDigits = 4;
// Chunks whose digits, 27 KB for three, stay in the L1 cache while the spikes of many rows pass by.
constexpr int64_t kPassChunks = 9;

bool adjoin(const SpikeProduct& product) { return product.dilation[1] == 1; }

int64_t whole_chunks(int64_t n) { return (n + kChunk - 1) / kChunk * kChunk; }

// Bytes from pixel to pixel. Rows of a product should begin at cache lines, but where they take several pixels these
// have to adjoin.
int64_t pitch(const SpikeProduct& product) {
  return product.kernel[1] == 1 ? whole_chunks(product.group_channels()) : product.group_channels();
}

// What a strip reads: `pixels` of each of the kernel's lines, from (y, x) of the image on.
struct Region {
  int64_t y, x, lines, pixels, step_bytes;

  Region(const SpikeProduct& p, const Strip& s) {
    // Tiles have all their rows, also where the strip ends before.
    const int64_t rows = (s.x1 - s.x0 + kTileRows - 1) / kTileRows * kTileRows;
    y = s.y * p.stride[0] - p.padding[0];
    x = s.x0 * p.stride[1] - p.padding[1];
    lines = p.kernel[0];
    pixels = (rows - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1;
    step_bytes = whole_chunks(lines * pixels * pitch(p)) + kChunk;  // the last chunk may end behind the last pixel
  }
};

}  // namespace

DenseShape::DenseShape(const SpikeProduct& product)
    : segments(adjoin(product) ? product.kernel[0] : product.taps()),
      length(adjoin(product) ? product.kernel[1] * product.group_channels() : product.group_channels()),
      chunks_per_segment((length + kChunk - 1) / kChunk) {}

#if TANDEM_MULTIVERSION

#define TANDEM_TARGET_AMX [[gnu::target("arch=x86-64-v4,amx-tile,amx-int8" TANDEM_WIDE_VECTORS)]]

namespace {

bool permitted() {
  constexpr int kFirstLeaf = 7, kTileBit = 24, kInt8Bit = 25;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(kFirstLeaf, 0, &a, &b, &c, &d) == 0 || !(d >> kTileBit & 1) || !(d >> kInt8Bit & 1)) {
    return false;
  }
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux hands out the tiles' state on demand
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

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

// What a pass over the rows multiplies: some chunks of some digits of a column.
struct Pass {
  const int64_t* offsets;  // of the chunks within the spikes of a row
  int64_t chunks;
  const int8_t* digits;
  int64_t chunk_bytes;
  int shift;
  bool first;  // nothing to add to
};

// Rows, at most 16, of a strip and a plane.
struct Rows {
  const uint8_t* spikes;
  int64_t count, step_bytes, row_bytes;
  int steps;
};

// One or two steps of 16 rows times N digits of 16 outputs. Tile registers: a sum for each step and digit, spikes,
// digits.
template <int N, int Steps>
TANDEM_TARGET_AMX TANDEM_INLINE void multiply(const Pass& pass, const Rows& rows, const uint8_t* spikes,
                                              int32_t (*sums)[256]) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* first = spikes + pass.offsets[c];
    _tile_loadd(6, first, rows.row_bytes);
    _tile_loadd(7, digits, 64);
    _tile_dpbusd(0, 6, 7);
    if constexpr (N > 1) {
      _tile_loadd(7, digits + kTileBytes, 64);
      _tile_dpbusd(1, 6, 7);
    }
    if constexpr (N > 2) {
      _tile_loadd(7, digits + 2 * kTileBytes, 64);
      _tile_dpbusd(2, 6, 7);
    }
    if constexpr (Steps == 1) continue;
    _tile_loadd(6, first + rows.step_bytes, rows.row_bytes);
    if constexpr (N > 2) {
      _tile_dpbusd(5, 6, 7);
      _tile_loadd(7, digits + kTileBytes, 64);
    }
    if constexpr (N > 1) {
      _tile_dpbusd(4, 6, 7);
      _tile_loadd(7, digits, 64);
    }
    _tile_dpbusd(3, 6, 7);
  }
  _tile_stored(0, sums[0], 64);
  if constexpr (N > 1) _tile_stored(1, sums[1], 64);
  if constexpr (N > 2) _tile_stored(2, sums[2], 64);
  if constexpr (Steps == 1) return;
  _tile_stored(3, sums[3], 64);
  if constexpr (N > 1) _tile_stored(4, sums[4], 64);
  if constexpr (N > 2) _tile_stored(5, sums[5], 64);
}

// The digits' sums of one step to those of the weights; `stride` from row to row.
template <int N>
TANDEM_TARGET_AMX TANDEM_INLINE void combine(const Pass& pass, const int32_t (*digit_sums)[256], int64_t rows,
                                             int32_t* out, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    __m512i sum = _mm512_loadu_si512(digit_sums[N - 1] + r * 16);
    for (int d = N - 2; d >= 0; --d) {
      sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), _mm512_loadu_si512(digit_sums[d] + r * 16));
    }
    if (pass.shift != 0) sum = _mm512_sll_epi32(sum, _mm_cvtsi32_si128(pass.shift));
    int32_t* target = out + r * stride;
    _mm512_storeu_si512(target, pass.first ? sum : _mm512_add_epi32(sum, _mm512_loadu_si512(target)));
  }
}

TANDEM_TARGET_AMX TANDEM_INLINE __m512d load_wide(const int32_t* p) {
  return _mm512_cvtepi32_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The same for the sums of counts, which may be as large as 255 * 2^30.
template <int N>
TANDEM_TARGET_AMX TANDEM_INLINE void combine(const Pass& pass, const int32_t (*digit_sums)[256], int64_t rows,
                                             double* out, int64_t stride) {
  const __m512d base = _mm512_set1_pd(256), unit = _mm512_set1_pd(static_cast<double>(int64_t{1} << pass.shift));
  for (int64_t r = 0; r < rows; ++r) {
    for (int half = 0; half < 16; half += 8) {
      __m512d sum = load_wide(digit_sums[N - 1] + r * 16 + half);
      for (int d = N - 2; d >= 0; --d) {
        sum = _mm512_fmadd_pd(sum, base, load_wide(digit_sums[d] + r * 16 + half));
      }
      double* target = out + r * stride + half;
      sum = _mm512_mul_pd(sum, unit);
      _mm512_storeu_pd(target, pass.first ? sum : _mm512_add_pd(sum, _mm512_loadu_pd(target)));
    }
  }
}

// All steps of the rows.
template <int N, class Sum>
TANDEM_TARGET_AMX TANDEM_INLINE void run_pass(const Pass& pass, const Rows& rows, Sum* out, int64_t step_stride,
                                              int64_t row_stride) {
  alignas(64) int32_t digit_sums[6][256];
  int t = 0;
  for (; t + 1 < rows.steps; t += 2) {
    multiply<N, 2>(pass, rows, rows.spikes + t * rows.step_bytes, digit_sums);
    combine<N>(pass, digit_sums, rows.count, out + t * step_stride, row_stride);
    combine<N>(pass, digit_sums + 3, rows.count, out + (t + 1) * step_stride, row_stride);
  }
  if (t < rows.steps) {
    multiply<N, 1>(pass, rows, rows.spikes + t * rows.step_bytes, digit_sums);
    combine<N>(pass, digit_sums, rows.count, out + t * step_stride, row_stride);
  }
}

// The sums of a tile of R columns, [rows, planes, steps of a plane, 16 R].
template <class Sum>
TANDEM_TARGET_AMX TANDEM_INLINE void run_tile(const DenseInputs& inputs, int T, const DenseColumn* columns,
                                              int registers, Sum* sums) {
  const SpikeProduct& product = inputs.product;
  const DenseShape shape(product);
  const int planes = (T + inputs.steps - 1) / inputs.steps;
  const int64_t width = 16 * registers, row_stride = planes * inputs.steps * width;
  const int64_t pixel_bytes = pitch(product), row_bytes = product.stride[1] * pixel_bytes;
  const int64_t passes = (shape.chunks() + kPassChunks - 1) / kPassChunks;
  std::vector<int64_t> offsets(shape.chunks());
  const TileConfig config;
  _tile_loadconfig(&config);
  for (int r = 0; r < registers; ++r) {
    const DenseColumn& column = columns[r];
    const int groups = column.count == kMostDigits ? 2 : 1, digits = column.count / groups;
    for (int64_t i = 0; i < passes * groups; ++i) {
      const int64_t begin = shape.chunks() * (i / groups) / passes, end = shape.chunks() * (i / groups + 1) / passes;
      const int digit = static_cast<int>(i % groups) * digits;
      Pass pass{nullptr,
                end - begin,
                column.digits + (begin * column.count + digit) * kTileBytes,
                column.count * kTileBytes,
                column.shift + 8 * digit,
                i == 0};
      Sum* out = sums + r * 16;
      for (size_t j = 0; j < inputs.strips.size(); ++j) {
        const Strip& strip = inputs.strips[j];
        const Region region(product, strip);
        for (int64_t c = begin; c < end; ++c) {
          const int64_t segment = c / shape.chunks_per_segment;
          const int64_t line = adjoin(product) ? segment : segment / product.kernel[1];
          const int64_t pixel = adjoin(product) ? 0 : segment % product.kernel[1] * product.dilation[1];
          offsets[c] = (line * region.pixels + pixel) * pixel_bytes + c % shape.chunks_per_segment * kChunk;
        }
        pass.offsets = offsets.data() + begin;
        const int64_t size = strip.x1 - strip.x0;
        for (int64_t x = 0; x < size; x += kTileRows) {
          const int64_t count = std::min(kTileRows, size - x);
          for (int p = 0; p < planes; ++p) {
            const Rows rows{inputs.bytes.data() + inputs.start[j * planes + p] + x * row_bytes, count,
                            region.step_bytes, row_bytes, std::min(inputs.steps, T - inputs.steps * p)};
            Sum* plane = out + p * inputs.steps * width;
            if (digits == 1) run_pass<1>(pass, rows, plane, width, row_stride);
            if (digits == 2) run_pass<2>(pass, rows, plane, width, row_stride);
            if (digits == 3) run_pass<3>(pass, rows, plane, width, row_stride);
          }
          out += count * row_stride;
        }
      }
    }
  }
  _tile_release();
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

bool has_matrix_unit() {
  static const bool has = capability() == Capability::kV4 && permitted();
  return has;
}

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

TANDEM_TARGET_AMX void dense_tile(const DenseInputs& inputs, int T, const DenseColumn* columns, int registers,
                                  int32_t* sums) {
  run_tile(inputs, T, columns, registers, sums);
}

TANDEM_TARGET_AMX void dense_windows(const DenseInputs& inputs, const DenseColumn* columns, int registers,
                                     double* sums) {
  run_tile(inputs, 1, columns, registers, sums);
}

#else

bool has_matrix_unit() { return false; }
void DenseWeights::pack(const SpikeProduct&, const Tiling&, const int32_t*, ParallelFor) {}
void DenseInputs::expand(const SpikeProduct&, int, int64_t, const Strip*, int64_t) {}
void DenseInputs::count_spikes(const SpikeProduct&, int, int64_t, const Strip*, int64_t) {}
void dense_windows(const DenseInputs&, const DenseColumn*, int, double*) {}
void dense_tile(const DenseInputs&, int, const DenseColumn*, int, int32_t*) {}

#endif

}  // namespace tandem::cpu
