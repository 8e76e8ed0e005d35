// Products of bytes by the matrix unit, AMX: tiles of 16 rows by 16 outputs, of one or two steps at a time.
#include <algorithm>

#include "loops.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>

#define TANDEM_TARGET_AMX [[gnu::target("arch=x86-64-v4,amx-tile,amx-int8" TANDEM_WIDE_VECTORS)]]

namespace tandem::cpu {

namespace {

constexpr int64_t kPassChunks = 13;  // 39 KB of three digits
constexpr int kDoubles = 8;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// At most 16 rows of a strip and a plane.
struct TileRows {
  const int64_t* offsets;  // of the chunks within the spikes of a row
  const uint8_t* spikes;
  int64_t count, step_bytes, row_bytes;
  int steps;
};

// Multiplies one or two steps of 16 rows by N digits of 16 outputs. Tile registers: 0 to 5 are sums by step and digit,
// 6 has spikes, 7 has digits. Spikes are loaded with non-temporal loads, so that they do not evict the digits from L1.
template <int N, int Steps>
TANDEM_TARGET_AMX TANDEM_INLINE void multiply_tiles(const Pass& pass, const TileRows& rows, const uint8_t* spikes,
                                                    int32_t (*sums)[256]) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* first = spikes + rows.offsets[c];
    pass.fetch.advance();
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

// Multiplies all steps of the rows.
template <int N, class Sum>
TANDEM_TARGET_AMX TANDEM_INLINE void run_pass(const Pass& pass, const TileRows& rows, Sum* out, int64_t row_stride) {
  alignas(64) int32_t digit_sums[6][256];
  int t = 0;
  for (; t + 1 < rows.steps; t += 2) {
    multiply_tiles<N, 2>(pass, rows, rows.spikes + t * rows.step_bytes, digit_sums);
    combine<N, kDoubles>(digit_sums[0], 16, 256, rows.count, pass, out + t * pass.stride, row_stride);
    combine<N, kDoubles>(digit_sums[3], 16, 256, rows.count, pass, out + (t + 1) * pass.stride, row_stride);
  }
  if (t < rows.steps) {
    multiply_tiles<N, 1>(pass, rows, rows.spikes + t * rows.step_bytes, digit_sums);
    combine<N, kDoubles>(digit_sums[0], 16, 256, rows.count, pass, out + t * pass.stride, row_stride);
  }
}

// Computes the sums of a column: [rows, sheets, steps of a plane].
template <class Sum>
TANDEM_TARGET_AMX void run_rows(const ExpandedInputs& inputs, const Pass& pass, Sum* out) {
  const int sheets = (inputs.T + inputs.steps - 1) / inputs.steps;
  const int64_t row_stride = sheets * inputs.steps * pass.stride;
  for (const ExpandedPiece& piece : inputs.pieces) {
    for (int64_t row = 0; row < piece.rows; row += kTileRows) {
      const int64_t count = std::min(kTileRows, piece.rows - row);
      const uint8_t* spikes = inputs.row(piece, row);
      for (int p = 0; p < sheets; ++p, spikes += inputs.steps * piece.step_bytes) {
        const TileRows rows{
            piece.offsets + pass.begin, spikes,          count,
            piece.step_bytes,           piece.row_bytes, std::min(inputs.steps, inputs.T - inputs.steps * p)};
        Sum* plane = out + p * inputs.steps * pass.stride;
        if (pass.count == 1) run_pass<1>(pass, rows, plane, row_stride);
        if (pass.count == 2) run_pass<2>(pass, rows, plane, row_stride);
        if (pass.count == 3) run_pass<3>(pass, rows, plane, row_stride);
      }
      out += count * row_stride;
    }
  }
}

TANDEM_TARGET_AMX void begin() {
  const TileConfig config;
  _tile_loadconfig(&config);
}

TANDEM_TARGET_AMX void end() { _tile_release(); }

}  // namespace

const Loops kAmxLoops{kPassChunks, begin, end, run_rows<int32_t>, run_rows<double>, run_rows<float>};

}  // namespace tandem::cpu
#endif
