// From sums to spikes, in registers: the epilogue of every product kernel.
#pragma once

#include <algorithm>
#include <memory>

#include "partial_lanes.h"
#include "spike_currents.h"
#include "spike_tile.h"

namespace tandem::cpu {

// The eight steps of plane p for vectors [first, first + G) of S, side by side: each waits for its own last step alone.
// product(t, s) gives the sums of step t.
template <int L, int G, int S, class Product>
TANDEM_INLINE void fire(const NeuronArgs<float>* const (&args)[S], NeuronLanes<float, L> (&neurons)[S],
                        const int64_t (&n)[S], int first, int p, const Product& product) {
  const int steps = std::min(8, args[0]->T - 8 * p);
  Int<float, L> plane[G] = {};
  const auto run = [&](const auto& current) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) {
      if (t == steps) break;
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) neurons[first + g].advance(*args[first + g], current(t, g), t, plane[g]);
    }
  };
  const auto current = [&](int t, int g) TANDEM_INLINE_LAMBDA {
    return input_current(product(t, first + g), neurons[first + g].scale, neurons[first + g].k);
  };
  if (args[0]->residual_planes != nullptr || args[0]->residual_currents != nullptr) {
    Int<float, L> bytes[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) bytes[g] = neurons[first + g].residual_plane(*args[first + g], n[first + g], p);
    run([&](int t, int g) TANDEM_INLINE_LAMBDA {
      const int s = first + g;
      return rounded_add(current(t, g), neurons[s].residual(*args[s], n[s], 8 * p + t, bytes[g]));
    });
  } else {
    run(current);
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) neurons[first + g].end_plane(*args[first + g], n[first + g], p, plane[g]);
}

// Runs the neurons of a tile, row by row. row_sums(row, plane, sums) gives the sums of a row and plane.
template <int L, int R, class RowSums>
TANDEM_INLINE void run_neurons(const Tile& tile, const NeuronArgs<float>& layer, uint8_t* gates,
                               const RowSums& row_sums) {
  constexpr int S = R * kLanes / L, per_group = kLanes / L;
  constexpr int G = L == kLanes ? S : 1;  // as many as there are registers for
  std::unique_ptr<PartialLanes> partial[R];
  const NeuronArgs<float>* args[R];
  NeuronLanes<float, L> fresh[S];
  for (int r = 0; r < R; ++r) {
    const int lanes = static_cast<int>(std::clamp<int64_t>(tile.channels - r * kLanes, 0, kLanes));
    if (lanes < kLanes || gates != nullptr) {
      partial[r] = std::make_unique<PartialLanes>(layer, tile.channel + r * kLanes, lanes, gates);
    }
    args[r] = partial[r] ? &partial[r]->block() : &layer;
  }
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) {
    const int r = s / per_group;
    fresh[s].begin(*args[r], partial[r] ? s % per_group * L : tile.channel + s * L);
  }
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t first = (tile.row + row) * layer.channels + tile.channel;
    for (int r = 0; r < R; ++r) {
      if (partial[r]) partial[r]->load(first + r * kLanes);
    }
    NeuronLanes<float, L> neurons[S];
    int64_t n[S];
    const NeuronArgs<float>* of[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const int r = s / per_group;
      of[s] = args[r];
      n[s] = partial[r] ? s % per_group * L : first + s * L;
      neurons[s] = fresh[s];
      if (layer.v_init != nullptr) {
        neurons[s].v = load_periodic<float, L>(of[s]->v_init, n[s], of[s]->v_init_size, 0.f);
      }
    }
    for (int p = 0; p < tile.planes; ++p) {
      Sums<L, S> sums[8];
      row_sums(row, p, sums);
#pragma GCC unroll 8
      for (int s = 0; s < S; s += G) {
        fire<L, G>(of, neurons, n, s, p, [&](int t, int i) TANDEM_INLINE_LAMBDA {
          const auto unit = load<Vec<float, L>>(tile.unit + i * L);
          return rounded_mul(__builtin_convertvector(sums[t].part[i], Vec<float, L>), unit);
        });
      }
    }
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) neurons[s].end(*of[s], n[s]);
    for (int r = 0; r < R; ++r) {
      if (partial[r]) partial[r]->store(first + r * kLanes);
    }
  }
}

}  // namespace tandem::cpu
