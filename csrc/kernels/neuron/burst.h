// Neurons side by side that integrate their window, then fire.
#pragma once

#include "lanes.h"

namespace tandem::cpu {

// The spikes of G groups of sixteen neurons from n on, interleaved so that their dependency chains overlap. product(s)
// gives the product u of the window for vector s of the groups.
template <int G, class C, int L, bool whole, class Product>
TANDEM_INLINE void fire_windows(const Neuron<C>& a, NeuronLanes<C, L, whole>* neurons, int64_t n,
                                const Product& product) {
  using Group = NeuronLanes<C, L, whole>;
  typename Group::Plane counts[G] = {};
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    typename Group::Plane residual = {};
    if (a.residual_planes != nullptr) neurons[g].load_residual(a, n + g * kLanes, 0, residual);
#pragma GCC unroll 8
    for (int i = 0; i < Group::kParts; ++i) {
      neurons[g].integrate(a, n + g * kLanes, i, product(g * Group::kParts + i), residual);
    }
  }
  for (int t = 0; t < a.T; ++t) {
    Int<C, L> paid{};
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
      for (int i = 0; i < Group::kParts; ++i) paid |= neurons[g].spike(a, i, counts[g]);
    }
    if (!any(paid)) break;
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) neurons[g].end_window(a, n + g * kLanes, counts[g]);
}

}  // namespace tandem::cpu
