// Products of counts without lists or a matrix unit: every input times every weight, by the vectors' products of bytes.
//
// Weights are the digits that the matrix unit multiplies, four inputs of an output side by side, and so are the inputs
// laid out. AVX-512 VNNI adds four products to a sum of 32 bits; AVX2 adds two to one of 16, which is widened in time.
#pragma once

#include "matrix_unit/matrix_unit.h"

namespace tandem::cpu {

// Has the capability in use products of bytes?
bool has_byte_products();

// Has it only those whose sums have 16 bits? Then they have to know the largest count.
bool counts_are_limited();

// As multiply_counts().
void multiply_counts_dense(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, double* sums);

}  // namespace tandem::cpu
