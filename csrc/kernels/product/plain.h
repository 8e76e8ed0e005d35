// Products input by input, with outputs in lanes and sums in registers: for depthwise layers, where every output reads
// one input channel, so that there is nothing to list, and for kernels with more taps than list entries can name.
#pragma once

#include "tile.h"
#include "tiling.h"

namespace tandem::cpu {

// Weights are int32. Fires the neurons of a tile at every step.
void fire_plain(const Layer& layer, const Tiling& tiling, const Tile& tile, uint8_t* open);

// The sums of counts over the window, [rows, 16 R], exact integers.
void sum_plain(const Layer& layer, const Tiling& tiling, const Tile& tile, double* windows);

}  // namespace tandem::cpu
