// What batch normalisation makes of a layer of spike products, one neuron at a time.
#pragma once

#include "kernels/norm/batch_norm.h"
#include "product_layer.h"

namespace tandem::test {

// Statistics of the product and, from them, what the neurons are scaled and shifted by.
struct PlainNorm {
  std::vector<float> product, mean, var, scale, shift;

  PlainNorm(const ProductLayer& layer, const LayerNorm& norm) {
    const int64_t channels = layer.shape.outputs, rows = layer.args.neurons / channels;
    for (int64_t n = 0; n < layer.args.neurons; ++n) {
      product.push_back(layer.window(n));
    }
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, squares = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const double u = product[r * channels + c];
        sum += u;
        squares += u * u;
      }
      float m = 0, v = 0;
      moments(sum, squares, rows, m, v);
      const Normalised<float> n = normalise(norm.norm, c, m, v);
      mean.push_back(m);
      var.push_back(v);
      scale.push_back(n.scale);
      shift.push_back(n.shift);
    }
  }
};

inline std::vector<float> multiples(int64_t n, float unit, int period) {
  std::vector<float> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = unit * static_cast<float>(1 + i * 7 % period - period / 2);
  return out;
}

}  // namespace tandem::test
