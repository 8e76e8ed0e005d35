// Weights to tiles in fixed point: int32, scaled by a power of two per output so that no sum can overflow.
#pragma once

#include "spike_rule.h"

namespace tandem::cpu {

// The tiles of every group, one after another, as Tiling describes them, and their digits, unless `digits` is null.
// False: some weight is not finite.
int64_t tiles_size(const SpikeProduct& product);
bool pack_tiles(const SpikeProduct& product, int32_t* packed, int32_t* digits, ParallelFor parallel);

}  // namespace tandem::cpu
