// Neurons side by side in vectors: the scan, and the last stage of every product, run on these.
#pragma once

#include <limits>

#include "../cpu/halves.h"
#include "../cpu/vectors.h"
#include "if_neuron.h"

namespace tandem::cpu {

// Counts are at most 255, so every type holds them exactly.
template <int L>
TANDEM_INLINE void store_counts(void* counts, DType dtype, int64_t n, Bytes<L> value, int lanes) {
  const auto wide = convert<float, int32_t, L>(convert<int32_t, uint8_t, L>(value));
  switch (dtype) {
    case DType::kFloat32:
      return store_first(static_cast<float*>(counts) + n, wide, lanes);
    case DType::kFloat64:
      return store_first(static_cast<double*>(counts) + n, convert<double, float, L>(wide), lanes);
    case DType::kBFloat16:
      for (int i = 0; i < lanes; ++i) static_cast<BFloat16*>(counts)[n + i] = from_float<BFloat16>(wide[i]);
      return;
    case DType::kFloat16:
      for (int i = 0; i < lanes; ++i) static_cast<Float16*>(counts)[n + i] = from_float<Float16>(wide[i]);
      return;
    case DType::kInt8:  // no type of counts
      return;
  }
}

// Out of line, for it is rare. Several threads may write one sample's NaN.
template <class C>
[[gnu::noinline]] inline void write_bad(const Neuron<C>& a, int64_t n, const C* v, int lanes) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int i = 0; i < lanes; ++i) {
    if (!is_finite(v[i])) __atomic_store(a.bad + (n + i) / a.sample, &nan, __ATOMIC_RELAXED);
  }
}

// Notes the samples of which one of the last potentials v of neurons [n, n + lanes) is not finite.
template <class C, int L>
TANDEM_INLINE void mark_bad(const Neuron<C>& a, int64_t n, const Vec<C, L>& v, int lanes) {
  const Bytes<L> lost = convert<uint8_t, Lane<C>, L>(~is_finite(v));
  if (a.bad == nullptr || __builtin_expect(!any(lost), 1)) return;
  C potentials[L];
  store(potentials, v);
  write_bad(a, n, potentials, lanes);
}

// The state during a window of neurons [n, n + lanes), of which the vectors hold L. `whole`: there are always L.
template <class C, int L = kLanes, bool whole = false>
struct NeuronLanes {
  Vec<C, L> v, z, scale, k, residual_scale;
  Bytes<L> count;
  int existing;

  TANDEM_INLINE int lanes() const { return whole ? L : existing; }

  TANDEM_INLINE void begin(const Neuron<C>& a, int64_t n, int lanes_that_exist) {
    existing = lanes_that_exist;
    z = Vec<C, L>{};
    count = Bytes<L>{};
    v = load_periodic<C, L>(a.v_init, n, a.v_init_size, C(0));
    scale = load_periodic<C, L>(a.scale, n, a.channels, C(1));
    k = load_periodic<C, L>(a.shift, n, a.channels, C(0)) / static_cast<C>(a.steps);
    residual_scale = load_periodic<C, L>(a.residual_scale, n, a.channels, C(1));
  }

  // The spikes of the residual in plane p, for residual(); zero where it has none.
  TANDEM_INLINE Int<C, L> residual_plane(const Neuron<C>& a, int64_t n, int p) const {
    if (a.residual_planes == nullptr) return Int<C, L>{};
    return convert<Lane<C>, uint8_t, L>(load_first<Bytes<L>>(a.residual_planes + p * a.neurons + n, lanes()));
  }

  // The residual's current at step t of the plane `bytes`.
  TANDEM_INLINE Vec<C, L> residual(const Neuron<C>& a, int64_t n, int t, const Int<C, L>& bytes) const {
    if (a.residual_planes == nullptr) {
      return rounded_mul(residual_scale, load_first<Vec<C, L>>(a.residual_currents + t * a.neurons + n, lanes()));
    }
    return rounded_mul(residual_scale, __builtin_convertvector((bytes >> (t & 7)) & 1, Vec<C, L>));
  }

  // One step; sets bit t % 8 of `plane` where the neuron fires.
  TANDEM_INLINE void advance(const Neuron<C>& a, const Vec<C, L>& current, int t, Int<C, L>& plane) {
    z = rounded_add(z, current);
    plane |= step(v, current, a) & (Lane<C>{1} << (t & 7));
  }

  TANDEM_INLINE void end_plane(const Neuron<C>& a, int64_t n, int p, const Int<C, L>& plane) {
    const Bytes<L> bytes = convert<uint8_t, Lane<C>, L>(plane);
    count += popcount(bytes);
    store_first(a.planes + p * a.neurons + n, bytes, lanes());
  }

  // After the last step: gate, counts, mask, membrane potential; "resu" silences the trains already written. `open`,
  // null or a byte per neuron, takes the place of the mask where lanes do not fill its bytes.
  TANDEM_INLINE void end(const Neuron<C>& a, int64_t n, uint8_t* open_neurons = nullptr) {
    const Bytes<L> open = convert<uint8_t, Lane<C>, L>(gate_open(z, a.gate, a.threshold * static_cast<C>(a.T)));
    if (a.gate == Gate::kResu) {
      count &= open;
      for (int p = 0; p < (a.T + 7) / 8; ++p) {
        uint8_t* train = a.planes + p * a.neurons + n;
        store_first(train, load_first<Bytes<L>>(train, lanes()) & open, lanes());
      }
    }
    if (open_neurons != nullptr) {
      store_first(open_neurons + n, open & 1, lanes());
    } else if (a.mask != nullptr) {
      store_bits<L>(a.mask, n, bits_of<L>(open), lanes());
    }
    if (a.counts != nullptr) store_counts<L>(a.counts, a.counts_dtype, n, count, lanes());
    if (a.v != nullptr) store_first(a.v + n, v, lanes());
    mark_bad<C, L>(a, n, v, lanes());
  }
};

}  // namespace tandem::cpu
