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

struct Write {
  float* u;
  bool whole;

  template <int kVec>
  __device__ __forceinline__ void operator()(const Products<kVec>& products) const {
    if (whole && products.live > 0) return store(u + products.n, products.u);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if (j < products.live) u[products.n + j] = products.u.at[j];
    }
  }
};

// Neurons of window timing integrate the products and fire.
struct Fire {
  Neuron<float> a;
  bool whole;
  unsigned lanes;  // from this lane to the one with the next outputs

  template <int kVec>
  __device__ __forceinline__ void operator()(const Products<kVec>& products) const {
    uint32_t gates = 0;
    if (products.live > 0) {
      Neurons<kVec, float, false> neurons;
      neurons.whole = whole;
      neurons.live = products.live;
      neurons.channel = products.channel;
      neurons.begin(a, a.v_init_size > 1 ? remainder(products.n, a.v_init_size) : 0);
      gates = neurons.fire_window(a, products.n, products.u);
    }
    put_gates<kVec>(a.mask, products.n, products.live > 0, gates, lanes);
  }
};

}  // namespace tandem::cuda
