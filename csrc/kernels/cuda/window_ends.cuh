// What follows the product of a window's counts: it is written, or neurons integrate it and fire.
#pragma once

#include "neurons.cuh"

namespace tandem::cuda {

struct WindowEnd {
  Neuron<float> a;
  float* u;  // null: neurons of window timing integrate the products and fire
  bool whole;
  bool gate_bytes;
  unsigned lanes;  // from this lane to the one with the next outputs

  // The neurons of neighbouring outputs from `channel` on, of which `live` exist.
  template <int kVec>
  __device__ __forceinline__ Neurons<kVec, float, false> neurons(uint32_t channel, int live) const {
    Neurons<kVec, float, false> neurons;
    neurons.whole = whole;
    neurons.live = live;
    neurons.channel = channel;
    if (u == nullptr && live > 0) neurons.load_parameters(a);
    return neurons;
  }

  // Ends the products of the neurons, of which n is the first.
  template <int kVec>
  __device__ __forceinline__ void operator()(Neurons<kVec, float, false> neurons, int64_t n,
                                             const Vec<float, kVec>& product) const {
    if (u != nullptr) {
      if (neurons.live > 0) neurons.put(u + n, product);
      return;
    }
    uint32_t gates = 0;
    if (neurons.live > 0) {
      neurons.begin(a, a.v_init_size > 1 ? remainder(n, a.v_init_size) : 0);
      gates = neurons.fire_window(a, n, product);
    }
    put_gates<kVec>(a.mask, n, neurons.live, gates, lanes, gate_bytes);
  }
};

}  // namespace tandem::cuda
