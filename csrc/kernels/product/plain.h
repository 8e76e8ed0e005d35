// Sums without lists, input by input, for kernels with more taps than list entries can name.
#pragma once

#include "tile.h"
#include "tiling.h"

namespace tandem::cpu {

// Computes the sums of a tile of `group`: [rows, planes, 8, 16 R]. `tile.weights`: all K-blocks, int32.
void sum_plain(const Layer& layer, const Tiling& tiling, const Tile& tile, int64_t group, int32_t* sums);

}  // namespace tandem::cpu
