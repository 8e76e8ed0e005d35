// Window timing for neurons in vectors: they integrate the product of a window, then fire their burst.
#pragma once

#include "lanes.h"

namespace tandem::cpu {

// The steps between two tests whether any neuron still fires. Each test ends in a mispredicted jump, which costs more
// than a few steps in vain.
constexpr int kUnchecked = 4;

// Whether spikes are counted by a division. Subtracting a power of two is exact up to 2^24 times, and beyond that all
// steps spike; but the last potential is that of the steps.
TANDEM_INLINE bool divides(const Neuron& a) {
  const bool ordinary = a.threshold >= 0x1p-64f && a.threshold <= 0x1p64f;
  return a.v == nullptr && ordinary && (bits_of_float(a.threshold) & 0x7fffffu) == 0;
}

// The bursts of G groups of sixteen neurons that have integrated their window, interleaved so that their dependency
// chains overlap.
template <int G, int L, bool whole>
TANDEM_INLINE void fire_bursts(const Neuron& a, NeuronLanes<L, whole>* neurons,
                               typename NeuronLanes<L, whole>::Plane (&counts)[G]) {
  if (divides(a)) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
      for (int i = 0; i < kLanes / L; ++i) counts[g][i] = neurons[g].burst(a, i);
    }
    return;
  }
  Int<L> paid{};
  int t = 0;
  do {
    for (const int end = std::min(t + kUnchecked, a.steps); t < end; ++t) {
      paid = Int<L>{};
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / L; ++i) paid |= neurons[g].spike(a, i, counts[g]);
      }
    }
  } while (t < a.steps && any(paid));
}

// Integrates the windows of G groups of sixteen neurons from n on, `apart` neurons from one to the next, and fires
// their bursts. product(s) is the window's product u of vector s of the groups.
template <int G, int L, bool whole, class Product>
TANDEM_INLINE void run_windows(const Neuron& a, NeuronLanes<L, whole>* neurons, int64_t n, int apart,
                               const Product& product, typename NeuronLanes<L, whole>::Plane (&counts)[G]) {
  using Group = NeuronLanes<L, whole>;
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    typename Group::Plane residual = {};
    if (a.residual_stored != nullptr) neurons[g].load_residual(a, n + g * apart, 0, residual);
#pragma GCC unroll 8
    for (int i = 0; i < Group::kParts; ++i) {
      neurons[g].integrate(a, n + g * apart, i, product(g * Group::kParts + i), residual);
    }
  }
  fire_bursts<G>(a, neurons, counts);
}

// Fires G groups of sixteen neurons from n on.
template <int G, int L, bool whole, class Product>
TANDEM_INLINE void fire_windows(const Neuron& a, NeuronLanes<L, whole>* neurons, int64_t n, const Product& product) {
  typename NeuronLanes<L, whole>::Plane counts[G] = {};
  run_windows(a, neurons, n, kLanes, product, counts);
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) neurons[g].end_window(a, n + g * kLanes, counts[g]);
}

}  // namespace tandem::cpu
