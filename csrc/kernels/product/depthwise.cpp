#include "depthwise.h"

#include "fire.h"
#include "prepared.h"
#include "window.h"

namespace tandem::cpu {

namespace {

// The input bytes of L outputs. Output n reads channel n / outputs_per_channel.
template <int L>
TANDEM_INLINE Bytes<L> input_bytes(const uint8_t* pixel, int64_t output, int64_t outputs_per_channel, int64_t outputs) {
  if (outputs_per_channel == 1 && output + L <= outputs) return load<Bytes<L>>(pixel + output);
  uint8_t bytes[L] = {};
  for (int i = 0; i < L && output + i < outputs; ++i) bytes[i] = pixel[(output + i) / outputs_per_channel];
  return load<Bytes<L>>(bytes);
}

// Calls f(tap, pixel) for every tap of a row that is inside of the image, in plane p.
template <class F>
TANDEM_INLINE void for_taps(const Layer& layer, int64_t row, int p, const F& f) {
  const Geometry& geometry = layer.geometry;
  const int64_t out_width = geometry.out_width(), lines = row / out_width;
  const int64_t x = row % out_width, y = lines % geometry.out_height(), b = lines / geometry.out_height();
  for (int64_t tap = 0; tap < geometry.taps(); ++tap) {
    const int64_t iy = geometry.input(0, y, tap / geometry.kernel[1]);
    const int64_t ix = geometry.input(1, x, tap % geometry.kernel[1]);
    if (geometry.has_input(0, iy) && geometry.has_input(1, ix)) f(tap, layer.planes + geometry.pixel(p, b, iy, ix));
  }
}

// L weights of a tile, beginning with number `at`.
template <int L>
TANDEM_INLINE Int<float, L> weight_lanes(const Tile& tile, int64_t at) {
  return load<Int<float, L>>(static_cast<const int32_t*>(tile.weights) + at);
}

// The sums of the eight steps of plane p, for a row and the outputs of a tile.
template <int L, int R>
TANDEM_INLINE void window_sums(const Layer& layer, const Tile& tile, int64_t row, int p, WideSums<L, R> (&sums)[8]) {
  constexpr int S = R * kLanes / L;
  const Geometry& geometry = layer.geometry;
#pragma GCC unroll 8
  for (int t = 0; t < 8; ++t) sums[t] = WideSums<L, R>{};
  for_taps(layer, row, p, [&](int64_t tap, const uint8_t* pixel) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const auto spikes = convert<int32_t, uint8_t, L>(
          input_bytes<L>(pixel, tile.channel + s * L, geometry.group_outputs(), geometry.outputs));
      const auto weight = weight_lanes<L>(tile, (tap * S + s) * L);
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) sums[t].part[s] += weight & (spikes << (31 - t) >> 31);
    }
  });
}

// The sums over the window, [rows, 16 R], exact integers.
template <int L, int R>
TANDEM_INLINE void count_sums(const Layer& layer, const Tile& tile, double* out) {
  constexpr int H = L / 2, S = R * kLanes / H;
  typedef Vec<double, H> Wide;
  const Geometry& geometry = layer.geometry;
  const int64_t plane_bytes = geometry.pixel(1, 0, 0, 0);
  for (int64_t row = 0; row < tile.rows; ++row, out += 16 * R) {
    Wide sum[S] = {};
    for_taps(layer, tile.first_row + row, 0, [&](int64_t tap, const uint8_t* pixel) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 16
      for (int s = 0; s < S; ++s) {
        Int<float, H> counts{};
        for (int p = 0; p < tile.planes; ++p) {
          const auto bytes =
              input_bytes<H>(pixel + p * plane_bytes, tile.channel + s * H, geometry.group_outputs(), geometry.outputs);
          counts += convert<int32_t, uint8_t, H>(layer.counted() ? bytes : popcount(bytes));
        }
        const auto weight = weight_lanes<H>(tile, (tap * S + s) * H);
        sum[s] += __builtin_convertvector(counts, Wide) * __builtin_convertvector(weight, Wide);
      }
    });
    std::memcpy(out, sum, sizeof(sum));
  }
}

template <int L>
TANDEM_INLINE void sum_counts_body(const Layer& layer, const Tile& tile, double* sums) {
  tile.registers == 1 ? count_sums<L, 1>(layer, tile, sums) : count_sums<L, 2>(layer, tile, sums);
}
TANDEM_CPU_LANES_KERNEL(sum_counts, (const Layer& layer, const Tile& tile, double* sums), (layer, tile, sums))

template <int L, int R>
TANDEM_INLINE void fire_windows_of(const Layer& layer, const Tile& tile, uint8_t* open) {
  using S = WideSums<L, R>;
  run_neurons<L, R, false, S>(tile, layer.neuron, open, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
    window_sums<L, R>(layer, tile, tile.first_row + row, p, sums);
  });
}

template <int L>
TANDEM_INLINE void fire_windows_body(const Layer& layer, const Tile& tile, uint8_t* open) {
  tile.registers == 1 ? fire_windows_of<L, 1>(layer, tile, open) : fire_windows_of<L, 2>(layer, tile, open);
}
TANDEM_CPU_LANES_KERNEL(fire_windows, (const Layer& layer, const Tile& tile, uint8_t* open), (layer, tile, open))

// Calls use(tile) for all tiles of some rows, then of the next ones: the bytes of the rows stay in the cache.
template <class Use>
void for_tiles(const Layer& layer, const Layer& packed, ParallelFor parallel, const Use& use) {
  const Prepared prepared(packed, Algorithm::kDepthwise, parallel);
  const Geometry& geometry = layer.geometry;
  constexpr int64_t kRows = 64;
  const int64_t rows = geometry.rows(), chunks = (rows + kRows - 1) / kRows;
  const int64_t row_bytes = layer.plane_count() * geometry.taps() * geometry.outputs;
  const int64_t grain = 1 + (int64_t{1} << 20) / (kRows * row_bytes + 1);
  parallel_ranges(parallel, chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kRows, size = std::min(kRows, rows - first);
      for (int64_t i = 0; i < prepared.tiling().tiles_per_group; ++i) {
        use(prepared.tile(packed, 0, i, 0, size, first));
      }
    }
  });
}

Layer packed_layer(const Layer& layer) {
  Layer packed = layer;
  packed.geometry = packed_geometry(layer.geometry);
  return packed;
}

// The sums over the window of a tile, in memory of this thread.
const double* windows_of(const Layer& layer, const Tile& tile) {
  thread_local Scratch<double> memory;
  double* windows = memory.reserve(tile.rows * tile.width());
  sum_counts(layer, tile, windows);
  return windows;
}

}  // namespace

void run_depthwise(const Layer& layer, ParallelFor parallel) {
  const Layer packed = packed_layer(layer);
  uint8_t* open = reserve_open(packed);
  for_tiles(layer, packed, parallel, [&](const Tile& tile) {
    if (!layer.counted()) return fire_windows(layer, tile, open);
    fire_sums(tile, windows_of(layer, tile), layer.neuron, open);
  });
  write_mask(packed, open, parallel);
}

void multiply_depthwise(const Layer& layer, float* u, ParallelFor parallel) {
  for_tiles(layer, packed_layer(layer), parallel,
            [&](const Tile& tile) { write_products(tile, windows_of(layer, tile), u, layer.geometry.outputs); });
}

}  // namespace tandem::cpu
