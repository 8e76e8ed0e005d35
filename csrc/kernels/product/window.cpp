#include "window.h"

#include <algorithm>

#include "../neuron/burst.h"
#include "fire.h"

namespace tandem::cpu {

namespace {

template <int L>
TANDEM_INLINE void add_bits_body(const int32_t* sums, int64_t rows, int width, double* windows) {
  constexpr int H = L / 2;
  for (int64_t r = 0; r < rows; ++r, sums += 8 * width) {
    for (int i = 0; i < width; i += H) {
      Vec<double, H> total{};
      for (int j = 7; j >= 0; --j) {
        total = 2 * total + __builtin_convertvector(load<Int<float, H>>(sums + j * width + i), Vec<double, H>);
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

TANDEM_INLINE void add_products_body(const Tile& tile, const double* windows, double* u, int64_t outputs) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    double* row = u + (tile.first_row + r) * outputs + tile.channel;
    for (int64_t i = 0; i < tile.channels; ++i) row[i] += windows[r * tile.width() + i] * tile.unit[i];
  }
}

template <int L>
TANDEM_INLINE void fire_sums_body(const Tile& tile, const double* windows, const Neuron<float>& neuron) {
  with_registers<L>(tile, [&](auto registers) TANDEM_INLINE_LAMBDA {
    constexpr int R = decltype(registers)::value, G = kGroupsAtOnce<L, R>, kParts = kLanes / L;
    run_tile<L, R>(tile, neuron, [&](int64_t row, int64_t n, auto& neurons) TANDEM_INLINE_LAMBDA {
      const double* sums = windows + row * 16 * R;
#pragma GCC unroll 2
      for (int r = 0; r < R; r += G) {
        fire_windows<G>(neuron, neurons + r, n + r * kLanes, [&](int s) TANDEM_INLINE_LAMBDA {
          const int lane = (r * kParts + s) * L;
          return rounded_mul(narrow<L>(sums + lane), load<Vec<float, L>>(tile.unit + lane));
        });
      }
    });
  });
}

}  // namespace

TANDEM_CPU_LANES_KERNEL(fire_sums, (const Tile& tile, const double* windows, const Neuron<float>& neuron),
                        (tile, windows, neuron))
TANDEM_CPU_LANES_KERNEL(add_bits, (const int32_t* sums, int64_t rows, int width, double* windows),
                        (sums, rows, width, windows))
TANDEM_CPU_LANES_KERNEL(write_products, (const Tile& tile, const double* windows, float* u, int64_t outputs),
                        (tile, windows, u, outputs))
TANDEM_CPU_KERNEL(add_products, (const Tile& tile, const double* windows, double* u, int64_t outputs),
                  (tile, windows, u, outputs))

}  // namespace tandem::cpu
