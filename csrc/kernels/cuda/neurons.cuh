// kVec neighbouring IF neurons in the registers of one thread. The scan and the epilogues of all fused products use
// them.
#pragma once

#include "vec.cuh"

namespace tandem::cuda {

// kLong: the window may have more than 255 steps.
template <int kVec, class C = float, bool kLong = true>
struct Neurons {
  using Args = Neuron<C>;

  bool whole = true;  // load and store as one vector; else one by one, as far as they exist
  int live = kVec;    // neurons that exist
  Vec<C, kVec> v, z, r, scale, k;
  uint32_t channel;  // of the first neuron
  uint32_t plane;    // the spikes of up to eight steps, one byte per neuron
  Counts<kLong> counts;
  uint32_t residual_plane;  // the residual's spikes of the same steps

  // Sets the state before the first step. v_init[at] is the potential of the first neuron, unless v_init has one value
  // for all.
  __device__ __forceinline__ void begin(const Args& a, int64_t at) {
    if (a.v_init == nullptr) {
      v = fill<C, kVec>(0);
    } else if (a.v_init_size == 1) {
      v = fill<C, kVec>(*a.v_init);
    } else {
      v = take(a.v_init + at);
    }
    z = r = fill<C, kVec>(0);
    plane = 0;
    counts = {};
  }

  // pause() saves the state after a piece of a window; resume() restores it before the next piece. u is the sum of
  // y[t].
  __device__ __forceinline__ void pause(const Args& a, int64_t n, const Vec<C, kVec>& u) const {
    one_by_one([&](int i) { a.carried.counts[n + i] = static_cast<uint16_t>(counts[i]); });
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (i < live) {
        a.carried.v[n + i] = v.at[i];
        a.carried.r[n + i] = r.at[i];
        a.carried.u[n + i] = u.at[i];
      }
    }
  }
  __device__ __forceinline__ void resume(const Args& a, int64_t n, Vec<C, kVec>& u) {
    v = take(a.carried.v + n);
    r = take(a.carried.r + n);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (i < live) u.at[i] = static_cast<C>(a.carried.u[n + i]);
    }
    one_by_one([&](int i) { counts.set(i, a.carried.counts[n + i]); });
  }

  __device__ __forceinline__ void load_parameters(const Args& a) {
    scale = load_channels(a.scale, 1);
    k = load_channels(a.shift, 0);
    if (a.shift != nullptr) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) k.at[i] = k.at[i] / static_cast<C>(a.steps);
    }
  }

  __device__ __forceinline__ Vec<C, kVec> load_channels(const C* p, C absent) const {
    return p != nullptr ? take(p + channel) : fill<C, kVec>(absent);
  }

  __device__ __forceinline__ Vec<C, kVec> take(const C* p) const {
    if (whole) return load<Vec<C, kVec>>(p);
    auto out = fill<C, kVec>(0);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (i < live) out.at[i] = p[i];
    }
    return out;
  }

  // Calls each(i) for the neurons that exist.
  template <class Each>
  __device__ __forceinline__ void one_by_one(const Each& each) const {
#pragma unroll 1
    for (int i = 0; i < live; ++i) each(i);
  }

  __device__ __forceinline__ void put_planes(uint8_t* p) const {
    if (whole) return store_planes<kVec>(p, plane);
    one_by_one([&](int i) { store_planes<1>(p + i, plane >> 8 * i); });
  }

  // Call before the first step of plane p.
  __device__ __forceinline__ void begin_plane(const Args& a, int64_t n, int p) {
    plane = 0;
    if (a.residual_planes == nullptr) return;
    const uint8_t* residual = a.residual_planes + p * a.neurons + n;
    if (whole) {
      residual_plane = load_planes<kVec>(residual);
    } else {
      residual_plane = 0;
      one_by_one([&](int i) { residual_plane |= load_planes<1>(residual + i) << 8 * i; });
    }
  }

  // Call after the last step of plane p, unless it is the window's last plane, which end() stores.
  __device__ __forceinline__ void end_plane(const Args& a, int64_t n, int p) {
    counts.add(plane);
    put_planes(a.planes + p * a.neurons + n);
  }

  // Turns the products of kSteps steps into currents, in place.
  template <int kSteps>
  __device__ __forceinline__ void scale_products(Vec<C, kVec> (&y)[kSteps]) const {
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) y[t].at[i] = input_current(y[t].at[i], scale.at[i], k.at[i]);
    }
  }

  // Adds the residual's currents of steps first + at, first + at + 1, ... to `current`. The plane begins at step
  // `first` and has `steps` steps.
  template <int kSteps>
  __device__ __forceinline__ void add_residual(const Args& a, int64_t n, int first, int at, int steps,
                                               Vec<C, kVec> (&current)[kSteps]) {
    if (a.residual_planes != nullptr) {
      const auto residual_scale = load_channels(a.residual_scale, 1);
      const uint32_t spikes = residual_plane >> at;
      if (is_gated(a)) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          r.at[i] = rounded_add(r.at[i], static_cast<C>(__popc(spikes >> 8 * i & ((1u << kSteps) - 1))));
        }
      }
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          const C spike = spikes >> (8 * i + t) & 1u ? C(1) : C(0);
          current[t].at[i] = rounded_add(current[t].at[i], rounded_mul(residual_scale.at[i], spike));
        }
      }
    } else if (a.residual_currents != nullptr) {
      const auto residual_scale = load_channels(a.residual_scale, 1);
      const C* residual = a.residual_currents + (first + at) * a.neurons + n;
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        if (at + t < steps) {
          const C* at_step = residual + t * a.neurons;
          const auto here = whole ? load_once<Vec<C, kVec>>(at_step) : take(at_step);
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            r.at[i] = rounded_add(r.at[i], here.at[i]);
            current[t].at[i] = rounded_add(current[t].at[i], rounded_mul(residual_scale.at[i], here.at[i]));
          }
        }
      }
    }
  }

  // Integrates the steps at, at + 1, ... of a plane that has `steps` steps.
  template <int kSteps>
  __device__ __forceinline__ void advance(const Args& a, int at, int steps, const Vec<C, kVec> (&current)[kSteps]) {
    uint32_t spikes = 0;
    unroll_while<kSteps>([&](auto t_) {
      constexpr int t = t_.value;
      if (at + t >= steps) return false;
      unroll_while<kVec>([&](auto i_) {
        constexpr int i = i_.value;
        constexpr uint32_t kBit = 1u << (8 * i + t);
        const C I = current[t].at[i];
        if constexpr (std::is_same_v<C, float>) {
          v.at[i] = rounded_add(v.at[i], I);
          fire<kBit>(v.at[i], spikes, a);
        } else {
          if (step(v.at[i], I, a)) spikes |= kBit;
        }
        return true;
      });
      return true;
    });
    plane |= spikes << at;
  }

  // Adds the sum of the residual to z.
  __device__ __forceinline__ void sum_residual(const Args& a) {
    const auto residual_scale = load_channels(a.residual_scale, 1);
#pragma unroll
    for (int i = 0; i < kVec; ++i) z.at[i] = rounded_add(z.at[i], rounded_mul(residual_scale.at[i], r.at[i]));
  }

  // Computes z from the product u of the window, after its last step.
  __device__ __forceinline__ void sum_up(const Args& a, const Vec<C, kVec>& u) {
    auto shift = load_channels(a.shift, 0);
    if (a.window() != a.steps) {
      const C share = share_of_shift<C>(a.window(), a.steps);
#pragma unroll
      for (int i = 0; i < kVec; ++i) shift.at[i] = rounded_mul(shift.at[i], share);
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) z.at[i] = input_current(u.at[i], scale.at[i], shift.at[i]);
    if (a.residual_planes != nullptr || a.residual_currents != nullptr) sum_residual(a);
  }

  // Window timing: integrates the product u of the window, then fires. Writes all outputs but the mask and returns the
  // open gates, bit i for neuron i.
  __device__ __forceinline__ uint32_t fire_window(const Args& a, int64_t n, const Vec<C, kVec>& u) {
    scale = load_channels(a.scale, 1);
    k = load_channels(a.shift, 0);
#pragma unroll
    for (int i = 0; i < kVec; ++i) z.at[i] = input_current(u.at[i], scale.at[i], k.at[i]);
    if (a.residual_planes != nullptr || a.residual_currents != nullptr) {
      if (a.residual_planes != nullptr) {
        begin_plane(a, n, 0);
#pragma unroll
        for (int i = 0; i < kVec; ++i) r.at[i] = static_cast<C>(residual_plane >> 8 * i & 255u);
      } else {
        r = take(a.residual_currents + n);
      }
      sum_residual(a);
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      v.at[i] = rounded_add(v.at[i], z.at[i]);
      plane |= static_cast<uint32_t>(burst(v.at[i], a.threshold, a.T)) << 8 * i;
    }
    counts.bytes = plane;
    return write(a, n, 0, open_gates(a));
  }

  // Call after the last step, which is in plane `last`, with the window's product. Writes all outputs but the mask and
  // returns the open gates, bit i for neuron i.
  __device__ __forceinline__ uint32_t end(const Args& a, int64_t n, int last, const Vec<C, kVec>& u) {
    if (is_gated(a)) sum_up(a, u);
    const uint32_t gates = open_gates(a);
    counts.add(plane);
    return write(a, n, last, gates);
  }

  // Returns bit i for neuron i. The ceiling is computed only for clipping layers, which are few.
  __device__ __forceinline__ uint32_t open_gates(const Args& a) const {
    uint32_t gates = 0;
    if (a.gate == Gate::kClip) {
      const C ceiling = rounded_mul(a.threshold, static_cast<C>(kLong ? a.window() : a.T));
#pragma unroll
      for (int i = 0; i < kVec; ++i) gates |= gate_open(z.at[i], Gate::kClip, ceiling) ? 1u << i : 0;
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) gates |= gate_open(z.at[i], Gate::kRelu, C(0)) ? 1u << i : 0;
    }
    return gates;
  }

  __device__ __forceinline__ uint32_t write(const Args& a, int64_t n, int last, uint32_t gates) const {
    uint8_t* planes = a.planes + last * a.neurons + n;
    if (whole) {
      store_planes<kVec>(planes, plane);
      if (a.counts != nullptr) store_counts<kVec>(a.counts, a.counts_dtype, n, counts);
      if (a.v != nullptr) store(a.v + n, v);
    } else {
      put_planes(planes);
      if (a.counts != nullptr) {
        one_by_one([&](int i) { store_counts<1>(a.counts, a.counts_dtype, n + i, counts, i); });
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (a.v != nullptr && i < live) a.v[n + i] = v.at[i];
      }
    }
    // The sum is finite only if all potentials are, so the usual case needs a single test.
    C sum = v.at[0];
#pragma unroll
    for (int i = 1; i < kVec; ++i) sum += v.at[i];
    if (!is_finite(sum)) {
      uint32_t lost = 0;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (!is_finite(v.at[i]) && (whole || i < live)) lost |= 1u << i;
      }
#pragma unroll 1
      for (int i = 0; a.bad != nullptr && lost >> i != 0; ++i) {
        if ((lost >> i & 1u) != 0) a.bad[quotient(n + i, a.sample)] = __int_as_float(0x7fc00000);
      }
    }
    return gates;
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

// Whether all arrays are aligned for a kernel with kVec = 4.
inline bool fit_four(const Neuron<float>& a) {
  const bool by_channel = a.scale != nullptr || a.shift != nullptr || a.residual_scale != nullptr;
  const size_t count_bytes = size_of(a.counts_dtype) >= 4 ? 16 : 8;
  return a.neurons % 4 == 0 && (!by_channel || a.channels % 4 == 0) &&
         (a.v_init == nullptr || a.v_init_size == 1 || a.v_init_size % 4 == 0) && is_aligned(a.scale, 16) &&
         is_aligned(a.shift, 16) && is_aligned(a.residual_planes, 4) && is_aligned(a.residual_currents, 16) &&
         is_aligned(a.residual_scale, 16) && is_aligned(a.v_init, 16) && is_aligned(a.planes, 4) &&
         is_aligned(a.counts, count_bytes) && is_aligned(a.v, 16);
}

}  // namespace tandem::cuda
