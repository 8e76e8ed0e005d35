// Weights of few bits: integers of a byte, and for each output what a unit of them is worth.
#pragma once

#include "../parallel.h"

namespace tandem::cpu {

// Of each row of weights [rows, size]: step = max |w| / largest, 1 where that is 0, NaN where a weight is NaN; and
// q = w / step, rounded to nearest, halves to even.
void quantise(const float* weights, int64_t rows, int64_t size, int largest, int8_t* q, float* step,
              ParallelFor parallel);

}  // namespace tandem::cpu
