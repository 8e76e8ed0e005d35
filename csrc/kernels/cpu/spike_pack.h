// Weights to tiles in fixed point: int32, scaled by a power of two per output so that no sum can overflow.
#pragma once

#include "spike_rule.h"

namespace tandem::cpu {

// The tiles of every group, one after another, as Tiling describes them, and their digits, unless `digits` is null.
// `units_only`: of the tiles, which will not be read then, the units alone. False: some weight is not finite.
int64_t tiles_size(const SpikeProduct& product);
bool pack_tiles(const SpikeProduct& product, int32_t* packed, int32_t* digits, bool units_only, ParallelFor parallel);

}  // namespace tandem::cpu
