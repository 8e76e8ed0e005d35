#include <algorithm>

#include "layout.h"
#include "matrix_unit.h"

#if TANDEM_MULTIVERSION
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tandem::cpu {

#if TANDEM_MULTIVERSION

namespace {

// Chunks per pass: their digits, 39 KB for three, stay in L1 while the spikes of many rows stream by.
constexpr int64_t kPassChunks = 13;

bool permitted() {
  constexpr int kFirstLeaf = 7, kTileBit = 24, kInt8Bit = 25;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(kFirstLeaf, 0, &a, &b, &c, &d) == 0 || !(d >> kTileBit & 1) || !(d >> kInt8Bit & 1)) {
    return false;
  }
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux provides the tile registers on request
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A pass over the rows: some chunks of some digits of a column.
struct Pass {
  const int64_t* offsets;  // of the chunks within the spikes of a row
  int64_t chunks;
  const int8_t* digits;
  int64_t chunk_bytes;
  int shift;
  bool first;  // overwrite the sums instead of adding
};

// Prefetches digits into L2, some cache lines with every chunk: the L3 cache is slower than the unit.
struct Fetch {
  const int8_t *at, *end;
  int64_t lines;

  TANDEM_INLINE void advance() {
    if (at >= end) return;
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(at + i * 64, 0, 2);
    at += lines * 64;
  }
};

// At most 16 rows of a strip and a plane.
struct Rows {
  const uint8_t* spikes;
  int64_t count, step_bytes, row_bytes;
  int steps;
};

// Multiplies one or two steps of 16 rows by N digits of 16 outputs. Tile registers: 0 to 5 are sums by step and digit,
// 6 has spikes, 7 has digits. Spikes are loaded with non-temporal loads, so that they do not evict the digits from L1.
template <int N, int Steps>
TANDEM_TARGET_AMX TANDEM_INLINE void multiply(const Pass& pass, const Rows& rows, const uint8_t* spikes,
                                              int32_t (*sums)[256], Fetch& fetch) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* first = spikes + pass.offsets[c];
    fetch.advance();
    _tile_stream_loadd(6, first, rows.row_bytes);
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
    _tile_stream_loadd(6, first + rows.step_bytes, rows.row_bytes);
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

// Combines the sums of digits of one step to sums of weights; `stride` is that of rows.
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

// The same for sums of counts, which may be as large as 255 * 2^30.
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

// Multiplies all steps of the rows.
template <int N, class Sum>
TANDEM_TARGET_AMX TANDEM_INLINE void run_pass(const Pass& pass, const Rows& rows, Sum* out, int64_t step_stride,
                                              int64_t row_stride, Fetch& fetch) {
  alignas(64) int32_t digit_sums[6][256];
  int t = 0;
  for (; t + 1 < rows.steps; t += 2) {
    multiply<N, 2>(pass, rows, rows.spikes + t * rows.step_bytes, digit_sums, fetch);
    combine<N>(pass, digit_sums, rows.count, out + t * step_stride, row_stride);
    combine<N>(pass, digit_sums + 3, rows.count, out + (t + 1) * step_stride, row_stride);
  }
  if (t < rows.steps) {
    multiply<N, 1>(pass, rows, rows.spikes + t * rows.step_bytes, digit_sums, fetch);
    combine<N>(pass, digit_sums, rows.count, out + t * step_stride, row_stride);
  }
}

// Computes the sums of a tile of R columns: [rows, planes, steps of a plane, 16 R].
template <class Sum>
TANDEM_TARGET_AMX TANDEM_INLINE void run_tile(const ExpandedInputs& inputs, int T, const DigitColumn* columns,
                                              int registers, Sum* sums) {
  const int planes = (T + inputs.steps - 1) / inputs.steps;
  const int64_t width = 16 * registers, row_stride = planes * inputs.steps * width;
  const int64_t passes = (inputs.chunks + kPassChunks - 1) / kPassChunks;
  int64_t tiles = 0;
  for (const ExpandedPiece& piece : inputs.pieces) tiles += whole_tiles(piece.rows) / kTileRows;
  const int64_t turns = tiles * ((T + 1) / 2);  // calls of multiply() in a pass
  const TileConfig config;
  _tile_loadconfig(&config);
  for (int r = 0; r < registers; ++r) {
    const DigitColumn& column = columns[r];
    const int groups = column.count == kMostDigits ? 2 : 1, digits = column.count / groups;
    const int64_t lines = column.count * kTileBytes / 64;
    Fetch fetch{column.next, column.next + inputs.chunks * lines * 64, (lines + turns * groups - 1) / (turns * groups)};
    for (int64_t i = 0; i < passes * groups; ++i) {
      const int64_t begin = inputs.chunks * (i / groups) / passes, end = inputs.chunks * (i / groups + 1) / passes;
      const int digit = static_cast<int>(i % groups) * digits;
      Pass pass{nullptr,
                end - begin,
                column.digits + (begin * column.count + digit) * kTileBytes,
                column.count * kTileBytes,
                column.shift + 8 * digit,
                i == 0};
      Sum* out = sums + r * 16;
      for (const ExpandedPiece& piece : inputs.pieces) {
        pass.offsets = piece.offsets + begin;
        for (int64_t row = 0; row < piece.rows; row += kTileRows) {
          const int64_t count = std::min(kTileRows, piece.rows - row);
          const uint8_t* spikes = inputs.bytes.data() + piece.start + row / kTileRows * piece.tile_bytes;
          for (int p = 0; p < planes; ++p, spikes += inputs.steps * piece.step_bytes) {
            const Rows rows{spikes, count, piece.step_bytes, piece.row_bytes,
                            std::min(inputs.steps, T - inputs.steps * p)};
            Sum* plane = out + p * inputs.steps * width;
            if (digits == 1) run_pass<1>(pass, rows, plane, width, row_stride, fetch);
            if (digits == 2) run_pass<2>(pass, rows, plane, width, row_stride, fetch);
            if (digits == 3) run_pass<3>(pass, rows, plane, width, row_stride, fetch);
          }
          out += count * row_stride;
        }
      }
    }
  }
  _tile_release();
}

}  // namespace

bool has_matrix_unit() {
  static const bool has = capability() == Capability::kV4 && permitted();
  return has;
}

TANDEM_TARGET_AMX void multiply_tile(const ExpandedInputs& inputs, int T, const DigitColumn* columns, int registers,
                                     int32_t* sums) {
  run_tile(inputs, T, columns, registers, sums);
}

TANDEM_TARGET_AMX void multiply_counts(const ExpandedInputs& inputs, const DigitColumn* columns, int registers,
                                       double* sums) {
  run_tile(inputs, 1, columns, registers, sums);
}

#else

bool has_matrix_unit() { return false; }
void multiply_tile(const ExpandedInputs&, int, const DigitColumn*, int, int32_t*) {}
void multiply_counts(const ExpandedInputs&, const DigitColumn*, int, double*) {}

#endif

}  // namespace tandem::cpu
