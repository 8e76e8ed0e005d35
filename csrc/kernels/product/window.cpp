#include "window.h"

#include <algorithm>

#include "../cpu/vectors.h"

namespace tandem::cpu {

namespace {

template <int L>
TANDEM_INLINE void add_steps_body(const int32_t* sums, int T, int64_t rows, int width, double* windows) {
  constexpr int H = L / 2;
  const int64_t row_size = (T + 7) / 8 * int64_t{8} * width;
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < width; i += H) {
      Vec<double, H> total{};
      for (int t = 0; t < T; ++t) {
        total += __builtin_convertvector(load<Int<float, H>>(sums + r * row_size + t * width + i), Vec<double, H>);
      }
      store(windows + r * width + i, total);
    }
  }
}

template <int L>
TANDEM_INLINE void write_products_body(const Tile& tile, const double* windows, float* u, int64_t outputs) {
  constexpr int H = L / 2;
  const int width = tile.width();
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* row = u + (tile.first_row + r) * outputs + tile.channel;
    for (int i = 0; i < width && i < tile.channels; i += H) {
      const auto sum = __builtin_convertvector(load<Vec<double, H>>(windows + r * width + i), Vec<float, H>);
      const int lanes = static_cast<int>(std::min<int64_t>(H, tile.channels - i));
      store_first(row + i, sum * load<Vec<float, H>>(tile.unit + i), lanes);
    }
  }
}

}  // namespace

TANDEM_CPU_LANES_KERNEL(add_steps, (const int32_t* sums, int T, int64_t rows, int width, double* windows),
                        (sums, T, rows, width, windows))
TANDEM_CPU_LANES_KERNEL(write_products, (const Tile& tile, const double* windows, float* u, int64_t outputs),
                        (tile, windows, u, outputs))

}  // namespace tandem::cpu
