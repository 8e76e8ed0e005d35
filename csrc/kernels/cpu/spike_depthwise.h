// Depthwise products: every output reads one input channel, so there is nothing to list; all sixteen lanes are inputs.
#pragma once

#include "../spike_product.h"

namespace tandem::cpu {

inline bool is_depthwise(const SpikeProduct& product) { return product.groups > 1 && product.group_channels() == 1; }

// The same weights, [outputs, 1, kernel], as those of a product of one channel: so they are packed.
inline SpikeProduct single_channel(SpikeProduct product) {
  product.channels = product.groups = 1;
  product.bucket_width = 1;  // of no meaning here
  return product;
}

// As product_if().
bool depthwise_if(const SpikeProduct& product, const NeuronArgs<float>& neuron, ParallelFor parallel);

}  // namespace tandem::cpu
