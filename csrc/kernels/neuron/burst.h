// Neurons side by side that integrate their window, then fire.
#pragma once

#include "lanes.h"

namespace tandem::cpu {

// What neurons [n, n + lanes) have, of which the vectors hold L. `whole`: there are always L.
template <class C, int L = kLanes, bool whole = false>
struct BurstLanes {
  Vec<C, L> v_init, scale, shift, residual_scale;
  int existing;

  TANDEM_INLINE int lanes() const { return whole ? L : existing; }

  TANDEM_INLINE void begin(const Neuron<C>& a, int64_t n, int lanes_that_exist) {
    existing = lanes_that_exist;
    v_init = load_periodic<C, L>(a.v_init, n, a.v_init_size, C(0));
    scale = load_periodic<C, L>(a.scale, n, a.channels, C(1));
    shift = load_periodic<C, L>(a.shift, n, a.channels, C(0));
    residual_scale = load_periodic<C, L>(a.residual_scale, n, a.channels, C(1));
  }

  // z, the sum of the window's currents, of the product u.
  TANDEM_INLINE Vec<C, L> integrate(const Neuron<C>& a, int64_t n, const Vec<C, L>& u) const {
    const Vec<C, L> z = input_current(u, scale, shift);
    if (a.residual_planes == nullptr && a.residual_currents == nullptr) return z;
    Vec<C, L> r;
    if (a.residual_planes != nullptr) {
      const auto count = convert<Lane<C>, uint8_t, L>(load_first<Bytes<L>>(a.residual_planes + n, lanes()));
      r = __builtin_convertvector(count, Vec<C, L>);
    } else {
      r = load_first<Vec<C, L>>(a.residual_currents + n, lanes());
    }
    return rounded_add(z, rounded_mul(residual_scale, r));
  }

  TANDEM_INLINE void write(const Neuron<C>& a, int64_t n, const Vec<C, L>& z, const Vec<C, L>& v,
                           const Int<C, L>& count, uint8_t* open_neurons) const {
    const Bytes<L> bytes = convert<uint8_t, Lane<C>, L>(count);
    store_first(a.planes + n, bytes, lanes());
    if (a.counts != nullptr) store_counts<L>(a.counts, a.counts_dtype, n, convert<int32_t, uint8_t, L>(bytes), lanes());
    if (open_neurons != nullptr || a.mask != nullptr) {
      const Bytes<L> open = convert<uint8_t, Lane<C>, L>(gate_open(z, a.gate, a.threshold * static_cast<C>(a.T)));
      if (open_neurons != nullptr) {
        store_first(open_neurons + n, open & 1, lanes());
      } else {
        store_bits<L>(a.mask, n, bits_of<L>(open), lanes());
      }
    }
    if (a.v != nullptr) store_first(a.v + n, v, lanes());
    mark_bad<C, L>(a, n, v, lanes());
  }
};

// G vectors of neurons from n on, L apart, whose dependency chains overlap; product(g) gives their u. `open`, null or a
// byte per neuron, takes the place of the mask where lanes do not fill its bytes.
template <int G, class C, int L, bool whole, class Product>
TANDEM_INLINE void fire_windows(const Neuron<C>& a, const BurstLanes<C, L, whole>* neurons, int64_t n, uint8_t* open,
                                const Product& product) {
  Vec<C, L> z[G], v[G];
  Int<C, L> count[G];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    z[g] = neurons[g].integrate(a, n + g * L, product(g));
    v[g] = rounded_add(neurons[g].v_init, z[g]);
    count[g] = Int<C, L>{};
  }
  for (int t = 0; t < a.T; ++t) {
    Int<C, L> fired{};
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const Int<C, L> spike = v[g] >= a.threshold;
      v[g] = spike ? rounded_add(v[g], Vec<C, L>{} - a.threshold) : v[g];
      count[g] -= spike;
      fired |= spike;
    }
    if (!any(fired)) break;
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) neurons[g].write(a, n + g * L, z[g], v[g], count[g], open);
}

}  // namespace tandem::cpu
