// Products of bytes by the matrix unit, AMX: tiles of 16 rows by 16 outputs, of one or two steps at a time.
#include <algorithm>

#include "../fire.h"
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

// Up to 16 rows of a tile at one or two steps.
struct Turn {
  int64_t row = 0, rows = 0;  // the first one, and how many
  int t = 0, steps = 0;
};

// Where their spikes are.
struct Spikes {
  const uint8_t* bytes;
  const int64_t* offsets;  // of the chunks
  int64_t row_bytes, step_bytes;
};

// Multiplies one or two steps of 16 rows by N digits of 16 outputs. Tile registers: 0 to 5 are sums by step and digit,
// 6 has spikes, 7 has digits. Spikes are loaded with non-temporal loads, so that they do not evict the digits from L1.
//
// Meanwhile finish(previous, r, sums) is called for the rows of the previous turn, whose sums are then overwritten:
// the matrix unit goes on beside the vectors' units, but what it has stored is late to be read.
template <int N, int Steps, class Finish>
TANDEM_TARGET_AMX TANDEM_INLINE void multiply_tiles(const Pass& pass, const Spikes& spikes, const Turn& previous,
                                                    int32_t (*sums)[256], const Finish& finish) {
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (N > 2) _tile_zero(2);
  if constexpr (Steps > 1) _tile_zero(3);
  if constexpr (Steps > 1 && N > 1) _tile_zero(4);
  if constexpr (Steps > 1 && N > 2) _tile_zero(5);
  int64_t r = 0, due = 0;
  const int8_t* digits = pass.digits;
  for (int64_t c = 0; c < pass.chunks; ++c, digits += pass.chunk_bytes) {
    const uint8_t* first = spikes.bytes + spikes.offsets[c];
    pass.fetch.advance();
    _tile_stream_loadd(6, first, spikes.row_bytes);
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
    if constexpr (Steps > 1) {
      _tile_stream_loadd(6, first + spikes.step_bytes, spikes.row_bytes);
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
    for (due += previous.rows; due >= pass.chunks; due -= pass.chunks) finish(previous, r++, sums);
  }
  _tile_stored(0, sums[0], 64);
  if constexpr (N > 1) _tile_stored(1, sums[1], 64);
  if constexpr (N > 2) _tile_stored(2, sums[2], 64);
  if constexpr (Steps == 1) return;
  _tile_stored(3, sums[3], 64);
  if constexpr (N > 1) _tile_stored(4, sums[4], 64);
  if constexpr (N > 2) _tile_stored(5, sums[5], 64);
}

// Multiplies all rows and steps by a column and calls finish(turn, r, sums) for every row of every turn.
template <int N, class Finish>
TANDEM_TARGET_AMX TANDEM_INLINE void run_column(const ExpandedInputs& inputs, const Pass& pass, const Finish& finish) {
  alignas(64) int32_t sums[6][256];
  Turn previous;
  int64_t row = 0;
  for (const ExpandedPiece& piece : inputs.pieces) {
    for (int64_t i = 0; i < piece.rows; i += kTileRows) {
      const int64_t rows = std::min(kTileRows, piece.rows - i);
      Spikes spikes{inputs.row(piece, i), piece.offsets + pass.begin, piece.row_bytes, piece.step_bytes};
      for (int t = 0; t < inputs.T; t += 2, spikes.bytes += 2 * piece.step_bytes) {
        const Turn turn{row, rows, t, std::min(2, inputs.T - t)};
        if (turn.steps == 2) multiply_tiles<N, 2>(pass, spikes, previous, sums, finish);
        if (turn.steps == 1) multiply_tiles<N, 1>(pass, spikes, previous, sums, finish);
        previous = turn;
      }
      row += rows;
    }
  }
  for (int64_t r = 0; r < previous.rows; ++r) finish(previous, r, sums);
}

// Computes the sums of a column: [rows, sheets, steps of a plane].
template <int N, class Sum>
TANDEM_TARGET_AMX void rows_of(const ExpandedInputs& inputs, const Pass& pass, Sum* out) {
  const int64_t steps = (inputs.T + inputs.steps - 1) / inputs.steps * inputs.steps;
  run_column<N>(inputs, pass, [&](const Turn& turn, int64_t r, const int32_t (*sums)[256]) TANDEM_INLINE_LAMBDA {
    Sum* to = out + ((turn.row + r) * steps + turn.t) * pass.stride;
    for (int i = 0; i < turn.steps; ++i, to += pass.stride) {
      combine<N, kDoubles>(sums[3 * i] + 16 * r, 16, 256, 1, pass, to, 0);
    }
  });
}

template <class Sum>
void run_rows(const ExpandedInputs& inputs, const Pass& pass, Sum* out) {
  if (pass.count == 1) rows_of<1>(inputs, pass, out);
  if (pass.count == 2) rows_of<2>(inputs, pass, out);
  if (pass.count == 3) rows_of<3>(inputs, pass, out);
}

// Fires the neurons of a column.
template <int N, bool gated>
TANDEM_TARGET_AMX void fire_column(const ExpandedInputs& inputs, const Pass& pass, const int32_t* earlier,
                                   const Tile& tile, int first, const Neuron& neuron) {
  const int64_t steps = tile.sheets * 8;
  SteppedNeurons<gated> neurons(tile, first, neuron);
  run_column<N>(inputs, pass, [&](const Turn& turn, int64_t r, const int32_t (*sums)[256]) TANDEM_INLINE_LAMBDA {
    const int32_t* before = earlier + ((turn.row + r) * steps + turn.t) * pass.stride;
    const auto row_sums = [&](int i) TANDEM_INLINE_LAMBDA {
      const auto sum = combined<N, kLanes>(sums[3 * i] + 16 * r, 256, pass);
      return pass.first ? sum : sum + load<Int<kLanes>>(before + i * pass.stride);
    };
    if (turn.steps == 2) return neurons.template run<2>(turn.row + r, r, turn.t, row_sums);
    neurons.template run<1>(turn.row + r, r, turn.t, row_sums);
  });
}

template <bool gated>
void fire_tile(const ExpandedInputs& inputs, const Pass& pass, const int32_t* sums, const Tile& tile, int first,
               const Neuron& neuron) {
  if (pass.count == 1) fire_column<1, gated>(inputs, pass, sums, tile, first, neuron);
  if (pass.count == 2) fire_column<2, gated>(inputs, pass, sums, tile, first, neuron);
  if (pass.count == 3) fire_column<3, gated>(inputs, pass, sums, tile, first, neuron);
}

void fire_rows(const ExpandedInputs& inputs, const Pass& pass, const int32_t* sums, const Tile& tile, int first,
               const Neuron& neuron) {
  neuron.is_gated() ? fire_tile<true>(inputs, pass, sums, tile, first, neuron)
                    : fire_tile<false>(inputs, pass, sums, tile, first, neuron);
}

TANDEM_TARGET_AMX void begin() {
  const TileConfig config;
  _tile_loadconfig(&config);
}

TANDEM_TARGET_AMX void end() { _tile_release(); }

}  // namespace

const Loops kAmxLoops{kPassChunks, begin, end, run_rows<int32_t>, run_rows<double>, run_rows<float>, fire_rows};

}  // namespace tandem::cpu
#endif
