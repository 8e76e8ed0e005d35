// Few-bit weights: int8 integers, and the step of each output.
#pragma once

#include "../parallel.h"

namespace tandem::cpu {

// For each row of weights [rows, size]: step = max |w| / largest, or 1 if that is 0, or NaN if a weight is NaN; with
// largest <= 3 (2 or 3 bits) a share of it, 1 to 1/4, with the least squared error. q = w / step, rounded to nearest
// even and clipped to ±largest.
void quantise(const float* weights, int64_t rows, int64_t size, int largest, int8_t* q, float* step,
              ParallelFor parallel);

}  // namespace tandem::cpu
