// From sums to spikes, in registers: the last stage of every product.
#pragma once

#include <algorithm>

#include "../neuron/lanes.h"
#include "sums.h"
#include "tile.h"

namespace tandem::cpu {

// The eight steps of plane p for vectors [first, first + G) of S, interleaved so that their dependency chains overlap.
// product(t, s) gives the sums of step t.
template <int L, int G, int S, bool whole, class Product>
TANDEM_INLINE void fire(const Neuron<float>& args, NeuronLanes<float, L, whole> (&neurons)[S], int64_t n, int first,
                        int p, const Product& product) {
  const int steps = std::min(8, args.T - 8 * p);
  Int<float, L> plane[G] = {};
  const auto run = [&](const auto& current) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) {
      if (t == steps) break;
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) neurons[first + g].advance(args, current(t, g), t, plane[g]);
    }
  };
  const auto current = [&](int t, int g) TANDEM_INLINE_LAMBDA {
    return input_current(product(t, first + g), neurons[first + g].scale, neurons[first + g].k);
  };
  const auto at = [&](int g) TANDEM_INLINE_LAMBDA { return n + (first + g) * L; };
  if (args.residual_planes != nullptr || args.residual_currents != nullptr) {
    Int<float, L> bytes[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) bytes[g] = neurons[first + g].residual_plane(args, at(g), p);
    run([&](int t, int g) TANDEM_INLINE_LAMBDA {
      return rounded_add(current(t, g), neurons[first + g].residual(args, at(g), 8 * p + t, bytes[g]));
    });
  } else {
    run(current);
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) neurons[first + g].end_plane(args, at(g), p, plane[g]);
}

template <int L, int R, bool whole, class Sum, class RowSums>
TANDEM_INLINE void run_rows(const Tile& tile, const Neuron<float>& layer, uint8_t* open, const RowSums& row_sums) {
  constexpr int S = R * kLanes / L;
  constexpr int G = L == kLanes ? S : 1;  // as many as there are registers for
  NeuronLanes<float, L, whole> fresh[S];
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) {
    fresh[s].begin(layer, tile.channel + s * L, static_cast<int>(std::clamp<int64_t>(tile.channels - s * L, 0, L)));
  }
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t n = (tile.first_row + row) * layer.channels + tile.channel;
    NeuronLanes<float, L, whole> neurons[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      neurons[s] = fresh[s];
      if (layer.v_init_size > 1) {
        neurons[s].v = load_periodic<float, L>(layer.v_init, n + s * L, layer.v_init_size, 0.f);
      }
    }
    for (int p = 0; p < tile.planes; ++p) {
      Sum sums[8];
      row_sums(row, p, sums);
#pragma GCC unroll 8
      for (int s = 0; s < S; s += G) {
        fire<L, G>(layer, neurons, n, s, p, [&](int t, int i) TANDEM_INLINE_LAMBDA {
          const auto unit = load<Vec<float, L>>(tile.unit + i * L);
          return rounded_mul(__builtin_convertvector(sums[t].template lanes<L>(i * L), Vec<float, L>), unit);
        });
      }
    }
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) neurons[s].end(layer, n + s * L, open);
  }
}

// Runs the neurons of a tile, row by row. row_sums(row, plane, sums) gives the sums of a row and plane.
template <int L, int R, class Sum, class RowSums>
TANDEM_INLINE void run_neurons(const Tile& tile, const Neuron<float>& layer, uint8_t* open, const RowSums& row_sums) {
  if (tile.channels == 16 * R) return run_rows<L, R, true, Sum>(tile, layer, open, row_sums);
  run_rows<L, R, false, Sum>(tile, layer, open, row_sums);
}

}  // namespace tandem::cpu
