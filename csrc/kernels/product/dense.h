// Products of counts without lists or a matrix unit: every input times every weight, by the vectors' products of bytes.
//
// Weights are the digits that the matrix unit multiplies, four inputs of an output side by side, and so are the inputs
// laid out. VNNI adds four products to a sum of 32 bits; AVX2 adds two to one of 16, which is widened in time.
#pragma once

#include "matrix_unit/matrix_unit.h"

namespace tandem::cpu {

// The processor's products of bytes, each kind better than the one before. Processors with AVX-VNNI may lack AVX-512.
enum class ByteProducts { kNone, kAvx2, kAvxVnni, kAvx512Vnni };

// Processors with products of the kinds before and after it need not have it.
bool has_avx_vnni();
// The best that the capability in use has.
ByteProducts byte_products();

// As multiply_counts().
void multiply_counts_dense(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, double* sums,
                           ByteProducts by);

// As multiply_tile(), of columns of one digit.
void multiply_steps_dense(const ExpandedInputs& inputs, int T, const DigitColumn* columns, int registers, int32_t* sums,
                          ByteProducts by);

}  // namespace tandem::cpu
