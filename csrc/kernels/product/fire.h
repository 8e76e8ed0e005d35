// The last stage of every product: from sums to spikes, in registers.
#pragma once

#include <algorithm>

#include "../neuron/lanes.h"
#include "sums.h"
#include "tile.h"

namespace tandem::cpu {

// Runs the steps of plane p for G groups of sixteen neurons, beginning with number `first`, interleaved so that their
// dependency chains overlap. product(t, s) is the product at step t for vector s of the tile.
template <int L, int G, int R, bool whole, class Product>
TANDEM_INLINE void fire(const Neuron<float>& args, NeuronLanes<float, L, whole> (&neurons)[R], int64_t n, int first,
                        int p, const Product& product) {
  using Group = NeuronLanes<float, L, whole>;
  const int steps = std::min(8, args.T - 8 * p);
  typename Group::Plane plane[G] = {};
  const auto run = [&](const auto& current) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 8
    for (int i = 0; i < Group::kParts; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) {
        if (t == steps) break;
#pragma GCC unroll 2
        for (int g = 0; g < G; ++g) neurons[first + g].advance(args, i, current(t, g, i), t, plane[g]);
      }
    }
  };
  const auto current = [&](int t, int g, int i) TANDEM_INLINE_LAMBDA {
    const Group& group = neurons[first + g];
    return input_current(product(t, (first + g) * Group::kParts + i), group.scale[i], group.k[i]);
  };
  const auto at = [&](int g) TANDEM_INLINE_LAMBDA { return n + (first + g) * kLanes; };
  if (args.residual_planes != nullptr || args.residual_currents != nullptr) {
    typename Group::Plane bytes[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) neurons[first + g].load_residual(args, at(g), p, bytes[g]);
    run([&](int t, int g, int i) TANDEM_INLINE_LAMBDA {
      return rounded_add(current(t, g, i), neurons[first + g].residual(args, at(g), i, 8 * p + t, bytes[g]));
    });
  } else {
    run(current);
  }
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g) neurons[first + g].end_plane(args, at(g), p, plane[g]);
}

template <int L, int R, bool whole, class Run>
TANDEM_INLINE void run_rows(const Tile& tile, const Neuron<float>& layer, uint8_t* open, const Run& run) {
  NeuronLanes<float, L, whole> neurons[R];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    neurons[r].begin(layer, tile.channel + r * kLanes,
                     static_cast<int>(std::clamp<int64_t>(tile.channels - r * kLanes, 0, kLanes)));
  }
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t n = (tile.first_row + row) * layer.channels + tile.channel;
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) neurons[r].start(layer, n + r * kLanes);
    run(row, n, neurons);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) neurons[r].end(layer, n + r * kLanes, open);
  }
}

// Runs the neurons of a tile row by row: run(row, n, neurons) runs the neurons from n on through their window.
template <int L, int R, class Run>
TANDEM_INLINE void run_tile(const Tile& tile, const Neuron<float>& layer, uint8_t* open, const Run& run) {
  if (tile.channels == 16 * R) return run_rows<L, R, true>(tile, layer, open, run);
  run_rows<L, R, false>(tile, layer, open, run);
}

// Groups of neurons at once: as many as there are registers for.
template <int L, int R>
constexpr int kGroupsAtOnce = L == kLanes ? R : 1;

// The same for step timing: row_sums(row, plane, sums) computes the sums of a row and plane.
template <int L, int R, class Sum, class RowSums>
TANDEM_INLINE void run_neurons(const Tile& tile, const Neuron<float>& layer, uint8_t* open, const RowSums& row_sums) {
  constexpr int G = kGroupsAtOnce<L, R>;
  run_tile<L, R>(tile, layer, open, [&](int64_t row, int64_t n, auto& neurons) TANDEM_INLINE_LAMBDA {
    for (int p = 0; p < tile.planes; ++p) {
      Sum sums[8];
      row_sums(row, p, sums);
#pragma GCC unroll 2
      for (int r = 0; r < R; r += G) {
        fire<L, G>(layer, neurons, n, r, p, [&](int t, int s) TANDEM_INLINE_LAMBDA {
          const auto unit = load<Vec<float, L>>(tile.unit + s * L);
          return rounded_mul(__builtin_convertvector(sums[t].template lanes<L>(s * L), Vec<float, L>), unit);
        });
      }
    }
  });
}

}  // namespace tandem::cpu
