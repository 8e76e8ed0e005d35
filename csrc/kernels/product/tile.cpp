#include "tile.h"

#include <algorithm>

#include "../neuron/burst.h"
#include "fire.h"

namespace tandem::cpu {

namespace {

// Calls f(sums of a step, steps of a pattern), two values whose types say which. Tiles are of bytes only with AVX-512
// (weights/prepared.cpp).
template <int L, class F>
TANDEM_INLINE void specialise(const Tile& tile, int steps, const F& f) {
  const auto with = [&](auto sums) TANDEM_INLINE_LAMBDA {
    switch (steps) {
      case 1:
        return f(sums, std::integral_constant<int, 1>());
      case 2:
        return f(sums, std::integral_constant<int, 2>());
      default:
        return f(sums, std::integral_constant<int, 4>());
    }
  };
  with_registers<L>(tile, [&](auto registers) TANDEM_INLINE_LAMBDA {
    if constexpr (L == kLanes) {
      if (tile.bytes) return with(ByteSums<L, decltype(registers)::value>());
    }
    with(WideSums<L, decltype(registers)::value>());
  });
}

template <int G, class S>
TANDEM_INLINE void list_sums(const Tile& tile, const SpikeLists& lists, int64_t row, int p, S (&sums)[8]) {
  const int64_t list = row * tile.sheets + p;
  sum_steps<G>(tile.weights, lists.entries + lists.start[list], lists.listed.bits, sums);
}

}  // namespace

TANDEM_CPU_KERNEL(fire_lists, (const Tile& tile, const SpikeLists& lists, const Neuron& neuron),
                  (tile, lists, neuron)) {
  specialise<L>(tile, lists.listed.steps, [&](auto type, auto steps) TANDEM_INLINE_LAMBDA {
    using S = decltype(type);
    run_neurons<L, S, true>(tile, neuron, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
      list_sums<decltype(steps)::value>(tile, lists, row, p, sums);
    });
  });
}

TANDEM_CPU_KERNEL(sum_lists, (const Tile& tile, const SpikeLists& lists, int32_t* out, bool first),
                  (tile, lists, out, first)) {
  specialise<L>(tile, lists.listed.steps, [&](auto type, auto steps) TANDEM_INLINE_LAMBDA {
    using S = decltype(type);
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int p = 0; p < tile.sheets; ++p, out += 8 * S::kOutputs) {
        S sums[8];
        list_sums<decltype(steps)::value>(tile, lists, row, p, sums);
#pragma GCC unroll 8
        for (int t = 0; t < 8; ++t) {
#pragma GCC unroll 8
          for (int i = 0; i < S::kOutputs; i += L) {
            int32_t* to = out + t * S::kOutputs + i;
            const auto sum = sums[t].template lanes<L>(i);
            store(to, first ? sum : sum + load<Int<L>>(to));
          }
        }
      }
    }
  });
}

TANDEM_CPU_KERNEL(fire_sums, (const Tile& tile, const int32_t* in, const Neuron& neuron), (tile, in, neuron)) {
  with_registers<L>(tile, [&](auto registers) TANDEM_INLINE_LAMBDA {
    using S = WideSums<L, decltype(registers)::value>;
    run_neurons<L, S, false>(tile, neuron, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
      std::memcpy(sums, in + (row * tile.sheets + p) * (8 * S::kOutputs), sizeof(sums));
    });
  });
}

TANDEM_CPU_KERNEL(add_bits, (const int32_t* sums, int64_t rows, int width, double* windows),
                  (sums, rows, width, windows)) {
  constexpr int H = L / 2;
  for (int64_t r = 0; r < rows; ++r, sums += 8 * width) {
    for (int i = 0; i < width; i += H) {
      Vec<double, H> total{};
      for (int j = 7; j >= 0; --j) {
        total = 2 * total + __builtin_convertvector(load<Int<H>>(sums + j * width + i), Vec<double, H>);
      }
      store(windows + r * width + i, total);
    }
  }
}

namespace {

template <int L, class Sum>
TANDEM_INLINE void write_rows(const Tile& tile, const Sum* windows, float* u, int64_t outputs) {
  constexpr int H = L / 2;
  const int width = tile.width();
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* row = u + (tile.first_row + r) * outputs + tile.channel;
    for (int i = 0; i < width && i < tile.channels; i += H) {
      const auto sum = __builtin_convertvector(load<Vec<Sum, H>>(windows + r * width + i), Vec<float, H>);
      const int lanes = static_cast<int>(std::min<int64_t>(H, tile.channels - i));
      store_first(row + i, sum * load<Vec<float, H>>(tile.unit + i), lanes);
    }
  }
}

template <int L, class Sum>
TANDEM_INLINE void fire_rows(const Tile& tile, const Sum* windows, const Neuron& neuron) {
  with_registers<L>(tile, [&](auto registers) TANDEM_INLINE_LAMBDA {
    constexpr int R = decltype(registers)::value, G = kGroupsAtOnce<L, R>, kParts = kLanes / L;
    run_tile<L, R>(tile, neuron, [&](int64_t row, int64_t n, auto& neurons) TANDEM_INLINE_LAMBDA {
      const Sum* sums = windows + row * 16 * R;
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

TANDEM_CPU_KERNEL(write_products, (const Tile& tile, const double* windows, float* u, int64_t outputs),
                  (tile, windows, u, outputs)) {
  write_rows<L>(tile, windows, u, outputs);
}

TANDEM_CPU_KERNEL(write_products, (const Tile& tile, const float* windows, float* u, int64_t outputs),
                  (tile, windows, u, outputs)) {
  write_rows<L>(tile, windows, u, outputs);
}

TANDEM_CPU_KERNEL(fire_window_sums, (const Tile& tile, const double* windows, const Neuron& neuron),
                  (tile, windows, neuron)) {
  fire_rows<L>(tile, windows, neuron);
}

TANDEM_CPU_KERNEL(fire_window_sums, (const Tile& tile, const float* windows, const Neuron& neuron),
                  (tile, windows, neuron)) {
  fire_rows<L>(tile, windows, neuron);
}

TANDEM_CPU_KERNEL(add_products, (const Tile& tile, const double* windows, double* u, int64_t outputs),
                  (tile, windows, u, outputs)) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    double* row = u + (tile.first_row + r) * outputs + tile.channel;
    for (int64_t i = 0; i < tile.channels; ++i) row[i] += windows[r * tile.width() + i] * tile.unit[i];
  }
}

}  // namespace tandem::cpu
