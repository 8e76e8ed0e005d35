// kVec neighbouring IF neurons in the registers of one thread: the scan runs on these, and so does the epilogue of
// every fused product.
#pragma once

#include "vec.cuh"

namespace tandem::cuda {

template <int kVec, class C = float>
struct Neurons {
  using Args = Neuron<C>;

  Vec<C, kVec> v, z, scale, k;
  uint32_t channel;         // of the first neuron
  uint32_t plane;           // the spikes of up to eight steps, one byte per neuron
  uint32_t counts;          // one byte per neuron: T <= 255
  uint32_t residual_plane;  // the residual's spikes of the same steps

  // The state before the first step; v_init[at] belongs to the first neuron, unless there is one value for all.
  __device__ __forceinline__ void begin(const Args& a, int64_t at) {
    if (a.v_init == nullptr) {
      v = fill<C, kVec>(0);
    } else if (a.v_init_size == 1) {
      v = fill<C, kVec>(*a.v_init);
    } else {
      v = load<Vec<C, kVec>>(a.v_init + at);
    }
    z = fill<C, kVec>(0);
    plane = counts = 0;
  }

  __device__ __forceinline__ void load_parameters(const Args& a, int64_t first_channel) {
    channel = static_cast<uint32_t>(first_channel);
    scale = load_channels(a.scale, 1);
    k = load_channels(a.shift, 0);
    if (a.shift != nullptr) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) k.at[i] = k.at[i] / static_cast<C>(a.steps);
    }
  }

  __device__ __forceinline__ Vec<C, kVec> load_channels(const C* p, C absent) const {
    return p != nullptr ? load<Vec<C, kVec>>(p + channel) : fill<C, kVec>(absent);
  }

  // Before the first step of plane p.
  __device__ __forceinline__ void begin_plane(const Args& a, int64_t n, int p) {
    plane = 0;
    if (a.residual_planes != nullptr) residual_plane = load_planes<kVec>(a.residual_planes + p * a.neurons + n);
  }

  // After the last step of plane p. The last plane is for end(), which may have to silence it.
  __device__ __forceinline__ void end_plane(const Args& a, int64_t n, int p) {
    counts += popcount_bytes(plane);
    store_planes<kVec>(a.planes + p * a.neurons + n, plane);
  }

  // Turns what the product gives at kSteps steps into currents, in place.
  template <int kSteps>
  __device__ __forceinline__ void scale_products(Vec<C, kVec> (&y)[kSteps]) const {
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) y[t].at[i] = input_current(y[t].at[i], scale.at[i], k.at[i]);
    }
  }

  // Adds the residual's currents to those of the steps first + at, first + at + 1, ... up to first + steps, where the
  // plane begins at step `first` and has `steps` steps.
  template <int kSteps>
  __device__ __forceinline__ void add_residual(const Args& a, int64_t n, int first, int at, int steps,
                                               Vec<C, kVec> (&current)[kSteps]) const {
    if (a.residual_planes != nullptr) {
      const auto residual_scale = load_channels(a.residual_scale, 1);
      const uint32_t spikes = residual_plane >> at;
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
          const auto r = load_once<Vec<C, kVec>>(residual + t * a.neurons);
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            current[t].at[i] = rounded_add(current[t].at[i], rounded_mul(residual_scale.at[i], r.at[i]));
          }
        }
      }
    }
  }

  // Integrates the steps at, at + 1, ... of a plane that has `steps` steps.
  template <int kSteps>
  __device__ __forceinline__ void advance(const Args& a, int at, int steps, const Vec<C, kVec> (&current)[kSteps]) {
    uint32_t spikes = 0;
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      if (at + t >= steps) continue;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        z.at[i] = rounded_add(z.at[i], current[t].at[i]);
        if (step(v.at[i], current[t].at[i], a)) spikes |= 1u << (8 * i + t);
      }
    }
    plane |= spikes << at;
  }

  // After the last step: writes all outputs but the mask and returns the open gates, bit i for neuron i.
  __device__ __forceinline__ uint32_t end(const Args& a, int64_t n) {
    const C ceiling = rounded_mul(a.threshold, static_cast<C>(a.T));
    uint32_t gates = 0;
    uint32_t open_bytes = 0;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (gate_open(z.at[i], a.gate, ceiling)) {
        gates |= 1u << i;
        open_bytes |= 255u << (8 * i);
      }
    }
    const int last = (a.T - 1) / kPlaneSteps;
    counts += popcount_bytes(plane);
    if (a.gate == Gate::kResu) {
      plane &= open_bytes;
      counts &= open_bytes;
      for (int p = 0; p < last; ++p) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          if ((gates >> i & 1u) == 0) a.planes[p * a.neurons + n + i] = 0;
        }
      }
    }
    store_planes<kVec>(a.planes + last * a.neurons + n, plane);
    if (a.counts != nullptr) store_counts<kVec>(a.counts, a.counts_dtype, n, counts);
    if (a.v != nullptr) store(a.v + n, v);
    if (a.bad != nullptr) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (!is_finite(v.at[i])) a.bad[quotient(n + i, a.sample)] = __int_as_float(0x7fc00000);
      }
    }
    return gates;
  }
};

// Are the arrays a kernel with kVec = 4 touches aligned for it?
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
