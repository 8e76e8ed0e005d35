// From sums to spikes, in registers: the epilogue of every product kernel.
#pragma once

#include <algorithm>
#include <memory>

#include "partial_lanes.h"
#include "spike_currents.h"
#include "spike_tile.h"

namespace tandem::cpu {

// The eight steps of plane p for L neurons, from their products y.
template <int L>
TANDEM_INLINE void fire(const NeuronArgs<float>& a, NeuronLanes<float, L>& neurons, int64_t n, int p,
                        Vec<float, L> (&y)[8]) {
  const int steps = std::min(8, a.T - 8 * p);
#pragma GCC unroll 8
  for (int t = 0; t < 8; ++t) y[t] = input_current(y[t], neurons.scale, neurons.k);
  if (a.residual_planes != nullptr || a.residual_currents != nullptr) {
    const auto bytes = neurons.residual_plane(a, n, p);
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) {
      if (t < steps) y[t] = rounded_add(y[t], neurons.residual(a, n, 8 * p + t, bytes));
    }
  }
  Int<float, L> plane{};
#pragma GCC unroll 8
  for (int t = 0; t < 8; ++t) {
    if (t == steps) break;
    neurons.advance(a, y[t], t, plane);
  }
  neurons.end_plane(a, n, p, plane);
}

// Runs the neurons of a tile, row by row. row_sums(row, plane, sums) gives the sums of a row and plane.
template <int L, int R, class RowSums>
TANDEM_INLINE void run_neurons(const Tile& tile, const NeuronArgs<float>& layer, uint8_t* gates,
                               const RowSums& row_sums) {
  constexpr int S = R * kLanes / L, per_group = kLanes / L;
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
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const int r = s / per_group;
      n[s] = partial[r] ? s % per_group * L : first + s * L;
      neurons[s] = fresh[s];
      if (layer.v_init != nullptr) {
        neurons[s].v = load_periodic<float, L>(args[r]->v_init, n[s], args[r]->v_init_size, 0.f);
      }
    }
    for (int p = 0; p < tile.planes; ++p) {
      Sums<L, S> sums[8];
      row_sums(row, p, sums);
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        const auto unit = load<Vec<float, L>>(tile.unit + s * L);
        Vec<float, L> y[8];
#pragma GCC unroll 8
        for (int t = 0; t < 8; ++t) y[t] = rounded_mul(__builtin_convertvector(sums[t].part[s], Vec<float, L>), unit);
        fire<L>(*args[s / per_group], neurons[s], n[s], p, y);
      }
    }
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) neurons[s].end(*args[s / per_group], n[s]);
    for (int r = 0; r < R; ++r) {
      if (partial[r]) partial[r]->store(first + r * kLanes);
    }
  }
}

}  // namespace tandem::cpu
