// What follows the product of a window's counts: it is written, or neurons integrate it and fire.
#pragma once

#include "neurons.cuh"

namespace tandem::cuda {

// The products of neighbouring outputs at one pixel. n is the number of the first neuron.
template <int kVec>
struct Products {
  Vec<float, kVec> u;
  int live;  // outputs that exist; 0 if the pixel does not
  uint32_t channel;
  int64_t n;
};

struct WindowEnd {
  Neuron<float> a;
  float* u;  // null: neurons of window timing integrate the products and fire
  bool whole;
  bool gate_bytes;
  unsigned lanes;  // from this lane to the one with the next outputs

  template <int kVec>
  __device__ __forceinline__ void operator()(const Products<kVec>& products) const {
    u != nullptr ? write(products) : fire(products);
  }

 private:
  template <int kVec>
  __device__ __forceinline__ void write(const Products<kVec>& products) const {
    if (whole && products.live > 0) return store(u + products.n, products.u);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if (j < products.live) u[products.n + j] = products.u.at[j];
    }
  }
  template <int kVec>
  __device__ __forceinline__ void fire(const Products<kVec>& products) const {
    uint32_t gates = 0;
    if (products.live > 0) {
      Neurons<kVec, float, false> neurons;
      neurons.whole = whole;
      neurons.live = products.live;
      neurons.channel = products.channel;
      neurons.begin(a, a.v_init_size > 1 ? remainder(products.n, a.v_init_size) : 0);
      gates = neurons.fire_window(a, products.n, products.u);
    }
    put_gates<kVec>(a.mask, products.n, products.live, gates, lanes, gate_bytes);
  }
};

}  // namespace tandem::cuda
