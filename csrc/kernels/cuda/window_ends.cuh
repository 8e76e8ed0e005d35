// What follows the product of a window's counts: it is written, or neurons integrate it and fire.
#pragma once

#include "neurons.cuh"
#include "product_fill.cuh"

namespace tandem::cuda {

struct WindowEnd {
  Neuron<float> a;
  float* u;  // null: neurons of window timing integrate the products and fire

  // Ends the products of neighbouring neurons, of which n is the first.
  template <int kVec>
  __device__ __forceinline__ void operator()(const DeviceGeometry& g, Neurons<kVec, float, false> neurons, int64_t n,
                                             const Vec<float, kVec>& product) const {
    if (u != nullptr) {
      if (neurons.live > 0) neurons.put(u + n, product);
      return;
    }
    uint32_t gates = 0;
    if (neurons.live > 0) {
      neurons.begin(a, n);
      gates = neurons.fire_window(a, n, product);
    }
    put_gates<kVec>(a.mask, n, neurons.live, gates, kVec, g.gate_bytes);  // the next outputs: kVec lanes further on
  }
};

}  // namespace tandem::cuda
