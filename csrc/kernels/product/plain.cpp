#include "plain.h"

#include <algorithm>

#include "../cpu/capability.h"

namespace tandem::cpu {

namespace {

// Adds the weights of an input to the steps at which it spikes.
TANDEM_INLINE void add_input_body(const int32_t* weights, int width, int byte, int32_t* sums) {
  for (int t = 0; t < 8; ++t) {
    if ((byte >> t & 1) == 0) continue;
    for (int i = 0; i < width; ++i) sums[t * width + i] += weights[i];
  }
}
TANDEM_CPU_KERNEL(add_input, (const int32_t* weights, int width, int byte, int32_t* sums), (weights, width, byte, sums))

}  // namespace

void sum_plain(const Layer& layer, const Tiling& tiling, const Tile& tile, int64_t group, int32_t* sums) {
  const Geometry& g = layer.geometry;
  const int width = tile.width();
  const auto* weights = static_cast<const int32_t*>(tile.weights);
  std::fill_n(sums, tile.rows * tile.planes * 8 * width, 0);
  for (int64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
    const int64_t x = row % g.out_width(), lines = row / g.out_width();
    const int64_t y = lines % g.out_height(), b = lines / g.out_height();
    for (int p = 0; p < tile.planes; ++p, sums += 8 * width) {
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const int64_t iy = g.input(0, y, tap / g.kernel[1]), ix = g.input(1, x, tap % g.kernel[1]);
        if (!g.has_input(0, iy) || !g.has_input(1, ix)) continue;
        const uint8_t* pixel = layer.planes + g.pixel(p, b, iy, ix);
        for (int64_t c = 0; c < g.group_channels(); ++c) {
          const int byte = pixel[group * g.group_channels() + c];
          const int64_t q = c / tiling.block_channels, first = tiling.first_channel(q);
          const int64_t in_block = tap * (tiling.last_channel(g, q) - first) + c - first;
          if (byte != 0) add_input(weights + tiling.block_offset(g, q) + in_block * width, width, byte, sums);
        }
      }
    }
  }
}

}  // namespace tandem::cpu
