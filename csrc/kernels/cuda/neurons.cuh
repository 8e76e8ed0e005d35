// kVec neighbouring IF neurons in the registers of one thread. The scan and the epilogues of all fused products use
// them.
#pragma once

#include "vec.cuh"

namespace tandem::cuda {

// kLong: the window may have more than 255 steps. kResidual: the layer may have a residual.
template <int kVec, bool kLong = true, bool kResidual = true>
struct Neurons {
  bool whole;  // load and store as one vector; else one by one, as far as they exist
  int live;    // neurons that exist
  bool residual;
  Vec<float, kVec> v, r, scale;
  Vec<float, kVec> k;  // a step's share of the shift; with window timing all
  uint32_t channel;    // of the first neuron
  int number, steps;   // of the plane: it has steps 8 number, ...
  uint32_t plane;      // the spikes of its steps, one byte per neuron
  Counts<kLong> counts;
  uint32_t residual_plane;  // the residual's

  __device__ __forceinline__ Neurons(const Neuron& a, uint32_t channel, int live = kVec, bool whole = true)
      : whole(whole), live(live), residual(kResidual && a.has_residual()), channel(channel) {
    if (live <= 0) return;
    scale = load_channels(a.scale, 1);
    k = load_channels(a.shift, 0);
    if (a.shift != nullptr && a.timing == Timing::kStep)
      unroll<kVec>([&](int i) { k.at[i] = k.at[i] / static_cast<float>(a.steps); });
  }

  // Sets the state before the first step; n is the first neuron's number, as in all of these functions.
  __device__ __forceinline__ void begin(const Neuron& a, int64_t n) {
    if (a.v_init == nullptr) {
      v = fill<float, kVec>(0);
    } else if (a.v_init_size == 1) {
      v = fill<float, kVec>(*a.v_init);
    } else {
      v = take(a.v_init + n % a.v_init_size);
    }
    r = fill<float, kVec>(0);
    number = 0;
    plane = 0;
    counts = {};
  }

  __device__ __forceinline__ Vec<float, kVec> load_channels(const float* p, float absent) const {
    return p != nullptr ? take(p + channel) : fill<float, kVec>(absent);
  }

  // Loads and stores what belongs to the neurons that exist.
  template <class E>
  __device__ __forceinline__ Vec<E, kVec> take(const E* p) const {
    if (whole) return load<Vec<E, kVec>>(p);
    return generate<kVec>([&](int i) { return i < live ? p[i] : E(0); });
  }
  template <class E>
  __device__ __forceinline__ void put(E* p, const Vec<E, kVec>& values) const {
    if (whole) return store(p, values);
    unroll<kVec>([&](int i) {
      if (i < live) p[i] = values.at[i];
    });
  }
  __device__ __forceinline__ void put_planes(uint8_t* p) const {
    if (whole) return store(p, static_cast<Planes<kVec>>(plane));
    put(p, generate<kVec>([&](int i) { return static_cast<uint8_t>(plane >> 8 * i); }));
  }

  // Call before the first step of a plane.
  __device__ __forceinline__ void begin_plane(const Neuron& a, int64_t n, int its_number, int its_steps) {
    number = its_number;
    steps = its_steps;
    plane = 0;
    if (!kResidual || a.residual_stored == nullptr) return;
    const uint8_t* stored = a.residual_stored + number * a.neurons + n;
    residual_plane = 0;
    if (whole) {
      residual_plane = load<Planes<kVec>>(stored);
    } else {
      const auto bytes = take(stored);
      unroll<kVec>([&](int i) { residual_plane |= static_cast<uint32_t>(bytes.at[i]) << 8 * i; });
    }
  }

  // Call after the last step of a plane, unless it is the window's last plane, which end() stores.
  __device__ __forceinline__ void end_plane(const Neuron& a, int64_t n) {
    counts.add(plane);
    put_planes(a.stored + number * a.neurons + n);
  }

  // Integrates the products y of the plane's steps from `first_step` on. kAnyLeak: by the same instructions whatever
  // the leak, for kernels that memory bounds.
  template <bool kAnyLeak = false, int kSteps>
  __device__ __forceinline__ void integrate(const Neuron& a, int64_t n, int first_step, Vec<float, kVec> (&y)[kSteps]) {
    unroll<kSteps>([&](int t) { y[t] = input_current(y[t], scale, k); });
    add_residual(a, n, first_step, y);
    kAnyLeak || a.leak != 1 ? advance<true>(a, first_step, y) : advance<false>(a, first_step, y);
  }

  // Adds the residual's currents to those of the layer.
  template <int kSteps>
  __device__ __forceinline__ void add_residual(const Neuron& a, int64_t n, int first_step,
                                               Vec<float, kVec> (&current)[kSteps]) {
    if (!residual) return;
    const auto residual_scale = load_channels(a.residual_scale, 1);
    if (a.residual_stored != nullptr) {
      const uint32_t spikes = residual_plane >> first_step;
      if (a.is_gated()) {
        r = rounded_add(r, generate<kVec>([&](int i) {
                          return static_cast<float>(__popc(spikes >> 8 * i & ((1u << kSteps) - 1)));
                        }));
      }
      unroll<kSteps>([&](int t) {
        const auto spike = generate<kVec>([&](int i) { return spikes >> (8 * i + t) & 1u ? 1.f : 0.f; });
        current[t] = rounded_add(current[t], rounded_mul(residual_scale, spike));
      });
    } else {
      const float* currents = a.residual_currents + (number * kPlaneSteps + first_step) * a.neurons + n;
      unroll<kSteps>([&](int t) {
        if (first_step + t >= steps) return;
        const float* at_step = currents + t * a.neurons;
        const auto present = whole ? load_once<Vec<float, kVec>>(at_step) : take(at_step);
        r = rounded_add(r, present);
        current[t] = rounded_add(current[t], rounded_mul(residual_scale, present));
      });
    }
  }

  template <bool kLeaky, int kSteps>
  __device__ __forceinline__ void advance(const Neuron& a, int first_step, const Vec<float, kVec> (&current)[kSteps]) {
    uint32_t spikes = 0;
    unroll_while<kSteps>([&](auto t_) {
      constexpr int t = t_.value;
      if (first_step + t >= steps) return false;
      unroll_while<kVec>([&](auto i_) {
        constexpr int i = i_.value;
        constexpr uint32_t kBit = 1u << (8 * i + t);
        v.at[i] = rounded_add(v.at[i], current[t].at[i]);
        fire<kBit, kLeaky>(v.at[i], spikes, a);
        return true;
      });
      return true;
    });
    plane |= spikes << first_step;
  }

  // z, from that of the layer's own product.
  __device__ __forceinline__ Vec<float, kVec> add_residual_sum(const Neuron& a, const Vec<float, kVec>& z) const {
    return rounded_add(z, rounded_mul(load_channels(a.residual_scale, 1), r));
  }

  // Window timing: integrates the product u of the window, then fires. Writes all outputs but the mask and returns the
  // open gates, bit i for neuron i.
  __device__ __forceinline__ uint32_t fire_window(const Neuron& a, int64_t n, const Vec<float, kVec>& u) {
    begin(a, n);
    auto z = input_current(u, scale, k);
    if (residual) {
      begin_plane(a, n, 0, 0);
      r = a.residual_stored == nullptr
              ? take(a.residual_currents + n)
              : generate<kVec>([&](int i) { return static_cast<float>(residual_plane >> 8 * i & 255u); });
      z = add_residual_sum(a, z);
    }
    v = rounded_add(v, z);
    fire_burst(a);
    counts = {plane};
    write(a, n);
    return a.is_gated() ? open_gates(a, z, a.steps) : 0;
  }

  // Fires the bursts of the neurons side by side.
  __device__ __forceinline__ void fire_burst(const Neuron& a) {
    const auto fire_all = [&] {
      unroll_while<kVec>([&](auto i) {
        fire<1u << 8 * i.value, false>(v.at[i.value], plane, a);
        return true;
      });
    };
#pragma unroll 1
    for (unsigned left = a.steps % 4u; left > 0; --left) fire_all();
    uint32_t before = ~0u;
#pragma unroll 1
    for (unsigned left = a.steps / 4u; left > 0 && plane != before; --left) {
      before = plane;
      unroll<4>([&](int) { fire_all(); });
    }
  }

  // Call after the last step, with the window's product. Writes all outputs but the mask and returns the open gates,
  // bit i for neuron i.
  __device__ __forceinline__ uint32_t end(const Neuron& a, int64_t n, const Vec<float, kVec>& u) {
    counts.add(plane);
    write(a, n);
    if (!a.is_gated()) return 0;
    auto shift = load_channels(a.shift, 0);
    if (a.T != a.steps) shift = rounded_mul(shift, fill<float, kVec>(share_of_shift(a.T, a.steps)));
    const auto z = input_current(u, scale, shift);
    return open_gates(a, residual ? add_residual_sum(a, z) : z, a.T);
  }

  // Returns bit i for neuron i, whose largest count is `most`. The ceiling, Neuron's, is computed only for layers that
  // clip.
  __device__ __forceinline__ uint32_t open_gates(const Neuron& a, const Vec<float, kVec>& z, int32_t most) const {
    uint32_t gates = 0;
    if (a.gate == Gate::kClip) {
      const float ceiling = rounded_mul(a.threshold, static_cast<float>(most));
      unroll<kVec>([&](int i) { gates |= gate_open(z.at[i], Gate::kClip, ceiling) ? 1u << i : 0; });
    } else {
      unroll<kVec>([&](int i) { gates |= gate_open(z.at[i], Gate::kRelu, 0.f) ? 1u << i : 0; });
    }
    return gates;
  }

  __device__ __forceinline__ void write(const Neuron& a, int64_t n) const {
    put_planes(a.stored + number * a.neurons + n);
    if (a.counts != nullptr) {
      with_type(a.counts_dtype, [&](auto element) {
        using E = decltype(element);
        put(static_cast<E*>(a.counts) + n,
            generate<kVec>([&](int i) { return static_cast<E>(static_cast<float>(counts[i])); }));
      });
    }
    if (a.v != nullptr) put(a.v + n, v);
    // The sum is finite only if all potentials are, so the usual case needs a single test.
    float sum = v.at[0];
    unroll<kVec - 1>([&](int i) { sum += v.at[i + 1]; });
    if (!is_finite(sum) && a.bad != nullptr) {
      uint32_t lost = 0;
      unroll<kVec>([&](int i) { lost |= !is_finite(v.at[i]) && i < live ? 1u << i : 0; });
      for (; lost != 0; lost &= lost - 1) {
        const int i = 31 - __clz(static_cast<int>(lost & -lost));
        a.bad[(n + i) / a.sample] = __int_as_float(0x7fc00000);
      }
    }
  }
};

// Writes the mask unless it is null. Eight neighbouring neurons share a byte: this lane has the gates of kVec of them,
// neuron n first, of which `live` exist; the next kVec are `lanes` lanes further on. All lanes of the warp have to call
// it. With `bytes` each neuron has a byte of its own, for groups whose outputs do not fill bytes.
template <int kVec>
__device__ __forceinline__ void put_gates(uint8_t* mask, int64_t n, int live, uint32_t gates, unsigned lanes,
                                          bool bytes = false) {
  if (mask == nullptr) return;
  if (bytes) {
#pragma unroll 1
    for (int i = 0; i < live; ++i) mask[n + i] = gates >> i & 1u;
    return;
  }
#pragma unroll
  for (unsigned bits = kVec, from = lanes; bits < 8; bits *= 2, from *= 2) {
    gates |= __shfl_down_sync(0xffffffffu, gates, from) << bits;
  }
  if (threadIdx.x / lanes % (8 / kVec) == 0 && live > 0) mask[n >> 3] = static_cast<uint8_t>(gates);
}

// What follows the product of a window's counts: it is written, or neurons integrate it and fire.
struct WindowEnd {
  Neuron a;
  float* u;  // null: neurons of window timing integrate the products and fire
  bool gate_bytes;

  // Ends the products of neighbouring neurons, of which n is the first.
  template <int kVec>
  __device__ __forceinline__ void operator()(Neurons<kVec, false> neurons, int64_t n,
                                             const Vec<float, kVec>& product) const {
    if (u != nullptr) {
      if (neurons.live > 0) neurons.put(u + n, product);
      return;
    }
    const uint32_t gates = neurons.live > 0 ? neurons.fire_window(a, n, product) : 0;
    put_gates<kVec>(a.mask, n, neurons.live, gates, kVec, gate_bytes);  // the next outputs: kVec lanes further on
  }
};

// Whether all arrays are aligned for a kernel with kVec = 4.
inline bool fit_four(const Neuron& a) {
  const bool by_channel = a.scale != nullptr || a.shift != nullptr || a.residual_scale != nullptr;
  return (!by_channel || a.channels % 4 == 0) &&
         (a.v_init == nullptr || a.v_init_size == 1 || a.v_init_size % 4 == 0) &&
         is_aligned(a.counts, size_of(a.counts_dtype) >= 4 ? 16 : 8) &&
         fit_four(a.neurons, a.scale, a.shift, a.residual_stored, a.residual_currents, a.residual_scale, a.v_init,
                  a.stored, a.v);
}

}  // namespace tandem::cuda
