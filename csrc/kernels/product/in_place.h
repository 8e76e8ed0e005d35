// Weights used where they lie: unit and product of an output in one go, while its weights are in the L1 cache. For a
// few rows, which preparing would cost more than it saves, and for kernels of more taps than a list can name.
#pragma once

#include "../layer.h"

namespace tandem::cpu {

// As run(), window_product(). Of a layer without prepared weights.
Refusal run_in_place(const Layer& layer, ParallelFor parallel);
Refusal window_product_in_place(const Layer& layer, float* u, ParallelFor parallel);

}  // namespace tandem::cpu
