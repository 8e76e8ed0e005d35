// A layer that normalises its product by the statistics of the batch.
#pragma once

#include "../layer.h"
#include "batch_norm.h"

namespace tandem {

// A bias before the normalisation would cancel and is left out.
struct LayerNorm {
  BatchNorm<float> norm;
  float* product;  // out [rows, outputs], u = sum of y[t] over the window
  float* mean;     // out [outputs], of u
  float* var;      // out [outputs], of u, biased
};

namespace cpu {

// Gives the same bits as window_product(), batch_norm_statistics(), and run() with the scale and shift of these
// statistics. scale and shift of layer.neuron are ignored.
void run_normalised(const Layer& layer, const LayerNorm& norm, ParallelFor parallel);

}  // namespace cpu

}  // namespace tandem
