// Dense products by vector instructions for bytes: every input times every weight, without lists or a matrix unit.
//
// Weights and inputs have the layout for the matrix unit: digits, with four inputs of an output next to each other.
// VNNI adds four products to a 32-bit sum; AVX2 adds two to a 16-bit sum, which is widened before it overflows.
#pragma once

#include "matrix_unit/matrix_unit.h"

namespace tandem::cpu {

// The instructions for products of bytes, from the slowest to the fastest. Processors with AVX-VNNI may lack AVX-512.
enum class ByteProducts { kNone, kAvx2, kAvxVnni, kAvx512Vnni };

// Whether there is AVX-VNNI, which AVX-512 VNNI does not imply.
bool has_avx_vnni();
// The fastest kind that the capability in use has.
ByteProducts byte_products();

// Like multiply_counts().
void multiply_counts_dense(const ExpandedInputs& inputs, const DigitColumn* columns, int registers, double* sums,
                           ByteProducts by);

// Like multiply_tile(), for columns of one digit.
void multiply_steps_dense(const ExpandedInputs& inputs, int T, const DigitColumn* columns, int registers, int32_t* sums,
                          ByteProducts by);

}  // namespace tandem::cpu
