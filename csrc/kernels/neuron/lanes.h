// Neurons in vectors. The scan and the last stage of every product use them.
#pragma once

#include <algorithm>
#include <limits>

#include "../cpu/halves.h"
#include "../cpu/vectors.h"
#include "if_neuron.h"

namespace tandem::cpu {

// Counts are at most 65535.
typedef Simd<uint16_t, kLanes>::type CountLanes;

// The counts as floats, in vectors of four where sixteen are several: GCC 12 converts those lane by lane.
template <int L>
TANDEM_INLINE void widen(const CountLanes& count, float* out) {
  if constexpr (L == kLanes) {
    return store(out, __builtin_convertvector(convert<int32_t, uint16_t, kLanes>(count), Vec<float>));
  }
#if TANDEM_MULTIVERSION
  __m128i halves[2];
  std::memcpy(halves, &count, sizeof(halves));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m128i zero = _mm_setzero_si128();
    _mm_storeu_ps(out + 8 * i, _mm_cvtepi32_ps(_mm_unpacklo_epi16(halves[i], zero)));
    _mm_storeu_ps(out + 8 * i + 4, _mm_cvtepi32_ps(_mm_unpackhi_epi16(halves[i], zero)));
  }
#else
  store(out, convert<float, uint16_t, kLanes>(count));
#endif
}

template <int L, class Half>
TANDEM_INLINE void store_rounded(Half* to, const float* values, int lanes) {
  constexpr bool brain = std::is_same_v<Half, BFloat16>;
  if (L == kLanes && brain && lanes == kLanes) {
    const auto bits = load<Int<>>(values);
    return store(to, convert<uint16_t, int32_t, kLanes>((bits + 0x7fff + (bits >> 16 & 1)) >> 16));
  }
#if TANDEM_MULTIVERSION
  if (brain && lanes == kLanes) {  // GCC 12 rounds lane by lane, too
    const auto rounded = [&](int i) TANDEM_INLINE_LAMBDA {
      const auto bits = load<Int<4>>(values + i);
      return reinterpret_cast<__m128i>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    };
    auto* halves = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(halves, _mm_packs_epi32(rounded(0), rounded(4)));
    return _mm_storeu_si128(halves + 1, _mm_packs_epi32(rounded(8), rounded(12)));
  }
#endif
  for (int i = 0; i < lanes; ++i) to[i] = from_float<Half>(values[i]);
}

// Rounds if `dtype` does not represent all counts up to T.
template <int L>
TANDEM_INLINE void store_counts(void* counts, DType dtype, int64_t n, const CountLanes& count, int lanes) {
  if (dtype == DType::kFloat32 && lanes == kLanes) return widen<L>(count, static_cast<float*>(counts) + n);
  float values[kLanes];
  widen<L>(count, values);
  if (dtype == DType::kFloat32) std::memcpy(static_cast<float*>(counts) + n, values, lanes * sizeof(float));
  if (dtype == DType::kBFloat16) store_rounded<L>(static_cast<BFloat16*>(counts) + n, values, lanes);
  if (dtype == DType::kFloat16) store_rounded<L>(static_cast<Float16*>(counts) + n, values, lanes);
}

// Out of line because it is rare. Several threads may write the NaN of one sample.
[[gnu::noinline]] inline void write_bad(const Neuron& a, int64_t n, const float* v, int lanes) {
  float nan = std::numeric_limits<float>::quiet_NaN();  // no const: clang's builtin takes none
  for (int i = 0; i < lanes; ++i) {
    if (!is_finite(v[i])) __atomic_store(a.bad + (n + i) / a.sample, &nan, __ATOMIC_RELAXED);
  }
}

// Whether any lane is infinite or NaN: then it minus itself is not zero. A comparison takes longer.
template <int L>
TANDEM_INLINE bool any_lost(const Vec<float, L>& v) {
  return any(reinterpret_cast<Int<L>>(v - v));
}

// Neurons [n, n + lanes) of sixteen during a window, in vectors of L. Bytes and bits are stored for all sixteen at
// once. `whole`: lanes is always sixteen.
template <int L = kLanes, bool whole = false>
struct NeuronLanes {
  static constexpr int kParts = kLanes / L;
  typedef Int<L> Plane[kParts];  // the bytes of a plane, widened to lanes

  Vec<float, L> v[kParts], z[kParts]{}, r[kParts];
  Vec<float, L> v_init[kParts], scale[kParts], residual_scale[kParts];
  Vec<float, L> shift[kParts], k[kParts];  // of the window, of a step
  CountLanes count;
  int existing;

  TANDEM_INLINE int lanes() const { return whole ? kLanes : existing; }

  TANDEM_INLINE void begin(const Neuron& a, int64_t n, int lanes_that_exist) {
    existing = lanes_that_exist;
    const int64_t channel = n % a.channels;
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) {
      v_init[i] = load_periodic<L>(a.v_init, n + i * L, a.v_init_size, 0.f);
      scale[i] = load_periodic<L>(a.scale, channel + i * L, a.channels, 1.f);
      shift[i] = k[i] = load_periodic<L>(a.shift, channel + i * L, a.channels, 0.f);
      if (a.shift != nullptr && a.timing == Timing::kStep) {  // divisions take as long as a step
        k[i] /= static_cast<float>(a.steps);
        shift[i] = rounded_mul(shift[i], Vec<float, L>{} + share_of_shift(a.window(), a.steps));
      }
      residual_scale[i] = load_periodic<L>(a.residual_scale, channel + i * L, a.channels, 1.f);
    }
    start(a, n);
  }

  // Starts a window of the neurons at n, which have the channels of begin().
  TANDEM_INLINE void start(const Neuron& a, int64_t n) {
    if (__builtin_expect(a.before > 0, 0)) return resume(a.carried, n);
    count = CountLanes{};
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) {
      r[i] = Vec<float, L>{};
      v[i] = a.v_init_size <= 1 ? v_init[i] : load_periodic<L>(a.v_init, n + i * L, a.v_init_size, 0.f);
    }
  }

  // The residual's spikes of plane p, for residual(); zero if there are none.
  TANDEM_INLINE void load_residual(const Neuron& a, int64_t n, int p, Plane& bytes) const {
    const bool has_planes = a.residual_stored != nullptr;
    const auto loaded =
        has_planes ? load_first<ByteLanes>(a.residual_stored + p * a.neurons + n, lanes()) : ByteLanes{};
    widen<L>(loaded, bytes);
  }

  // The residual's current into part i at step t, which is in the plane `bytes`.
  TANDEM_INLINE Vec<float, L> residual(const Neuron& a, int64_t n, int i, int t, const Plane& bytes) {
    const Vec<float, L> present = residual_of(a, n, i, t, (bytes[i] >> (t & 7)) & 1);
    r[i] = rounded_add(r[i], present);
    return rounded_mul(residual_scale[i], present);
  }

  // One step of part i; sets bit t % 8 of `plane` where a neuron fires.
  TANDEM_INLINE void advance(const Neuron& a, int i, const Vec<float, L>& current, int t, Plane& plane) {
    plane[i] |= step(v[i], current, a.threshold, a.leak) & (int32_t{1} << (t & 7));
  }

  // Computes z of part i from the window's product u and the sum of the residual.
  TANDEM_INLINE void sum_up(const Neuron& a, int i, const Vec<float, L>& u) {
    z[i] = input_current(u, scale[i], shift[i]);
    if (a.has_residual()) z[i] = rounded_add(z[i], rounded_mul(residual_scale[i], r[i]));
  }

  // Window timing: computes z from the window's product u, and v before the first spike. `counts` are the residual's.
  TANDEM_INLINE void integrate(const Neuron& a, int64_t n, int i, const Vec<float, L>& u, const Plane& counts) {
    if (a.has_residual()) r[i] = residual_of(a, n, i, 0, counts[i]);
    sum_up(a, i, u);
    v[i] = rounded_add(v[i], z[i]);
  }

  // One step after integrate(): counts the spikes of part i. Returns their cost, the threshold or 0, as integers: GCC
  // 12 combines the results of comparisons lane by lane.
  TANDEM_INLINE Int<L> spike(const Neuron& a, int i, Plane& counts) {
    const Int<L> fires = v[i] >= a.threshold;
    const Vec<float, L> cost = fires ? Vec<float, L>{} + a.threshold : Vec<float, L>{};
    v[i] = rounded_add(v[i], -cost);
    counts[i] -= fires;
    return reinterpret_cast<Int<L>>(cost);
  }

  // All spikes of part i after integrate(), if steps subtract exactly: then v / threshold, rounded down, is their
  // number.
  TANDEM_INLINE Int<L> burst(const Neuron& a, int i) const {
    const Vec<float, L> quotient = v[i] * (1.f / a.threshold), most = Vec<float, L>{} + static_cast<float>(a.steps);
    const Vec<float, L> fired = quotient >= 1.f ? quotient : Vec<float, L>{};  // NaN does not fire
    return __builtin_convertvector(fired < most ? fired : most, Int<L>);
  }

  TANDEM_INLINE void end_window(const Neuron& a, int64_t n, const Plane& counts) {
    const ByteLanes bytes = narrow(counts);
    count = convert<uint16_t, uint8_t, kLanes>(bytes);
    store_first(a.stored + n, bytes, lanes());
  }

  TANDEM_INLINE void end_plane(const Neuron& a, int64_t n, int p, const Plane& plane) {
    const ByteLanes bytes = narrow(plane);
    count += convert<uint16_t, uint8_t, kLanes>(popcount(bytes));
    store_first(a.stored + p * a.neurons + n, bytes, lanes());
  }

  // Call after the last step and, if is_gated(), after sum_up(). Writes gate, counts, mask and membrane potential.
  TANDEM_INLINE void end(const Neuron& a, int64_t n) {
    if (__builtin_expect(a.after > 0, 0)) return pause(a.carried, n);
    if (a.is_gated()) {
      const ByteLanes open = is_open(a);
      if (a.open != nullptr) {
        store_first(a.open + n, open & 1, lanes());
      } else {
        store_bits(a.mask, n, bits_of(open), lanes());
      }
    }
    if (a.counts != nullptr) store_counts<L>(a.counts, a.counts_dtype, n, count, lanes());
    if (a.v != nullptr) store_first(a.v + n, potentials(), lanes());
    mark_bad(a, n);
  }

  // Marks the samples with a last potential that is not finite. One test suffices: then the sum is not finite either.
  TANDEM_INLINE void mark_bad(const Neuron& a, int64_t n) const {
    if (a.bad == nullptr || __builtin_expect(!any_lost<L>(sum()), 1)) return;
    float all[kLanes];
    store(all, potentials());
    write_bad(a, n, all, lanes());
  }

  TANDEM_INLINE Vec<float, L> sum() const {
    Vec<float, L> sum{};
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) sum += v[i];
    return sum;
  }

  TANDEM_INLINE Vec<float> potentials() const { return joined(v); }

 private:
  // pause() saves the state after a piece of a window; resume() restores it before the next piece.
  TANDEM_INLINE void pause(const Carried& carried, int64_t n) const {
    store_first(carried.v + n, joined(v), lanes());
    store_first(carried.r + n, joined(r), lanes());
    store_first(carried.counts + n, count, lanes());
  }
  TANDEM_INLINE void resume(const Carried& carried, int64_t n) {
    const auto potential = load_first<Vec<float>>(carried.v + n, lanes()),
               sum = load_first<Vec<float>>(carried.r + n, lanes());
    std::memcpy(v, &potential, sizeof(v));
    std::memcpy(r, &sum, sizeof(r));
    count = load_first<CountLanes>(carried.counts + n, lanes());
  }

  TANDEM_INLINE static Vec<float> joined(const Vec<float, L> (&parts)[kParts]) {
    Vec<float> all;
    std::memcpy(&all, parts, sizeof(parts));
    return all;
  }

  // The residual of part i before its scale: `spikes`, or its currents at step t.
  TANDEM_INLINE Vec<float, L> residual_of(const Neuron& a, int64_t n, int i, int t, const Int<L>& spikes) const {
    if (a.residual_stored != nullptr) return __builtin_convertvector(spikes, Vec<float, L>);
    const int lanes_of_part = whole ? L : std::clamp(existing - i * L, 0, L);
    return load_first<Vec<float, L>>(a.residual_currents + t * a.neurons + n + i * L, lanes_of_part);
  }

  TANDEM_INLINE static ByteLanes narrow(const Plane& plane) { return low_bytes<L>(plane); }

  TANDEM_INLINE ByteLanes is_open(const Neuron& a) const {
    Plane open;
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) open[i] = gate_open(z[i], a.gate, a.ceiling());
    return narrow(open);
  }
};

// Runs the steps of plane p for G groups of sixteen neurons from n on, `apart` neurons from one to the next,
// interleaved so that their dependency chains overlap. product(t, s) is the product at step t of the plane for vector s
// of the groups.
template <int G, int L, bool whole, class Product>
TANDEM_INLINE void run_plane(const Neuron& a, NeuronLanes<L, whole>* neurons, int64_t n, int apart, int p,
                             const Product& product, typename NeuronLanes<L, whole>::Plane (&spikes)[G]) {
  using Group = NeuronLanes<L, whole>;
  const int steps = std::min(8, a.T - 8 * p);
  const auto run = [&](const auto& current) TANDEM_INLINE_LAMBDA {
#pragma GCC unroll 8
    for (int i = 0; i < Group::kParts; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) {
        if (t == steps) break;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) neurons[g].advance(a, i, current(t, g, i), t, spikes[g]);
      }
    }
  };
  const auto current = [&](int t, int g, int i) TANDEM_INLINE_LAMBDA {
    return input_current(product(t, g * Group::kParts + i), neurons[g].scale[i], neurons[g].k[i]);
  };
  if (!a.has_residual()) return run(current);
  typename Group::Plane bytes[G];
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) neurons[g].load_residual(a, n + g * apart, p, bytes[g]);
  run([&](int t, int g, int i) TANDEM_INLINE_LAMBDA {
    return rounded_add(current(t, g, i), neurons[g].residual(a, n + g * apart, i, 8 * p + t, bytes[g]));
  });
}

// Fires G groups of sixteen neurons from n on, at the steps of plane p.
template <int G, int L, bool whole, class Product>
TANDEM_INLINE void fire_plane(const Neuron& a, NeuronLanes<L, whole>* neurons, int64_t n, int p,
                              const Product& product) {
  typename NeuronLanes<L, whole>::Plane spikes[G] = {};
  run_plane(a, neurons, n, kLanes, p, product, spikes);
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) neurons[g].end_plane(a, n + g * kLanes, p, spikes[g]);
}

}  // namespace tandem::cpu
