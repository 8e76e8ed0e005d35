#include "depthwise.h"

#include "fire.h"
#include "prepared.h"
#include "window.h"

namespace tandem::cpu {

namespace {

// The bytes of L inputs, as lanes. Output n reads channel n / outputs_per_channel.
template <int L>
TANDEM_INLINE Int<float, L> input_lanes(const uint8_t* pixel, int64_t output, int64_t outputs_per_channel,
                                        int64_t outputs) {
  if (outputs_per_channel == 1 && output + L <= outputs) {
    return convert<int32_t, uint8_t, L>(load<Bytes<L>>(pixel + output));
  }
  uint8_t bytes[L] = {};
  for (int i = 0; i < L && output + i < outputs; ++i) bytes[i] = pixel[(output + i) / outputs_per_channel];
  return convert<int32_t, uint8_t, L>(load<Bytes<L>>(bytes));
}

// Sums of the eight steps of row (b, y, x), plane p, and the outputs of a tile.
template <int L, int R, bool bytes>
TANDEM_INLINE void window_sums(const Layer& layer, const Tile& tile, int64_t row, int p, WideSums<L, R> (&sums)[8]) {
  constexpr int S = R * kLanes / L;
  const Geometry& geometry = layer.geometry;
  const int64_t out_width = geometry.out_width(), lines = row / out_width;
  const int64_t x = row % out_width, y = lines % geometry.out_height(), b = lines / geometry.out_height();
  const uint8_t* image = layer.planes + (p * geometry.batch + b) * geometry.height * geometry.width * geometry.channels;
#pragma GCC unroll 8
  for (int t = 0; t < 8; ++t) sums[t] = WideSums<L, R>{};
  for (int64_t tap = 0; tap < geometry.taps(); ++tap) {
    const int64_t iy = y * geometry.stride[0] - geometry.padding[0] + tap / geometry.kernel[1] * geometry.dilation[0];
    const int64_t ix = x * geometry.stride[1] - geometry.padding[1] + tap % geometry.kernel[1] * geometry.dilation[1];
    if (iy < 0 || iy >= geometry.height || ix < 0 || ix >= geometry.width) continue;
    const uint8_t* pixel = image + (iy * geometry.width + ix) * geometry.channels;
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const auto spikes = input_lanes<L>(pixel, tile.channel + s * L, geometry.group_outputs(), geometry.outputs);
      const int64_t at = tap * (S * L) + s * L;
      Int<float, L> weight;
      if constexpr (bytes) {
        weight = convert<int32_t, int8_t, L>(
            load<typename Simd<int8_t, L>::type>(static_cast<const int8_t*>(tile.weights) + at));
      } else {
        weight = load<Int<float, L>>(static_cast<const int32_t*>(tile.weights) + at);
      }
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) sums[t].part[s] += weight & (spikes << (31 - t) >> 31);
    }
  }
}

template <int L, int R>
TANDEM_INLINE void fire_windows_of(const Layer& layer, const Tile& tile, uint8_t* open) {
  using S = WideSums<L, R>;
  run_neurons<L, R, S>(tile, layer.neuron, open, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
    if (tile.bytes) return window_sums<L, R, true>(layer, tile, tile.first_row + row, p, sums);
    window_sums<L, R, false>(layer, tile, tile.first_row + row, p, sums);
  });
}

// Of counts, whose bits the sums are of: [rows, 8, 16 R].
template <int L, int R>
TANDEM_INLINE void sum_counts_of(const Layer& layer, const Tile& tile, int32_t* out) {
  for (int64_t row = 0; row < tile.rows; ++row, out += 8 * 16 * R) {
    WideSums<L, R> sums[8];
    if (tile.bytes) {
      window_sums<L, R, true>(layer, tile, tile.first_row + row, 0, sums);
    } else {
      window_sums<L, R, false>(layer, tile, tile.first_row + row, 0, sums);
    }
    std::memcpy(out, sums, sizeof(sums));
  }
}

template <int L>
TANDEM_INLINE void sum_bits_body(const Layer& layer, const Tile& tile, int32_t* sums) {
  tile.registers == 1 ? sum_counts_of<L, 1>(layer, tile, sums) : sum_counts_of<L, 2>(layer, tile, sums);
}
TANDEM_CPU_LANES_KERNEL(sum_bits, (const Layer& layer, const Tile& tile, int32_t* sums), (layer, tile, sums))

void fire_counts(const Layer& layer, const Tile& tile, uint8_t* open) {
  thread_local Scratch<int32_t> sums_memory;
  thread_local Scratch<double> windows_memory;
  int32_t* sums = sums_memory.reserve(tile.rows * 8 * tile.width());
  double* windows = windows_memory.reserve(tile.rows * tile.width());
  sum_bits(layer, tile, sums);
  add_bits(sums, tile.rows, tile.width(), windows);
  fire_sums(tile, windows, layer.neuron, open);
}

template <int L>
TANDEM_INLINE void fire_windows_body(const Layer& layer, const Tile& tile, uint8_t* open) {
  tile.registers == 1 ? fire_windows_of<L, 1>(layer, tile, open) : fire_windows_of<L, 2>(layer, tile, open);
}
TANDEM_CPU_LANES_KERNEL(fire_windows, (const Layer& layer, const Tile& tile, uint8_t* open), (layer, tile, open))

}  // namespace

void run_depthwise(const Layer& layer, ParallelFor parallel) {
  Layer packed = layer;
  packed.geometry = packed_geometry(layer.geometry);
  const Prepared prepared(packed, true, false, parallel);
  uint8_t* open = reserve_open(packed);
  const SpikeLists no_lists;
  const Geometry& geometry = layer.geometry;
  constexpr int64_t kRows = 64;  // rows a tile takes at a time: their bytes stay in cache for the next tile
  const int64_t rows = geometry.rows(), chunks = (rows + kRows - 1) / kRows;
  const int64_t row_bytes = layer.plane_count() * geometry.taps() * geometry.outputs;
  const int64_t grain = 1 + (int64_t{1} << 20) / (kRows * row_bytes + 1);
  parallel_ranges(parallel, chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kRows, size = std::min(kRows, rows - first);
      for (int64_t i = 0; i < prepared.tiling().tiles_per_group; ++i) {
        const Tile tile = prepared.tile(packed, 0, i, 0, no_lists, size, first);
        layer.counted() ? fire_counts(layer, tile, open) : fire_windows(layer, tile, open);
      }
    }
  });
  write_mask(packed, open, parallel);
}

}  // namespace tandem::cpu
