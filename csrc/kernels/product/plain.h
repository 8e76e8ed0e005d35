// Sums without lists: every input that spikes, step by step. For kernels of more taps than a list can name.
#pragma once

#include "plan.h"
#include "tile.h"

namespace tandem::cpu {

// The sums of tile i of a group for its rows, [rows, planes, 8, 16 R]. `tile.weights` are all K-blocks, int32.
void sum_plain(const Layer& layer, const Tiling& tiling, const Tile& tile, int64_t group, int32_t* sums);

}  // namespace tandem::cpu
