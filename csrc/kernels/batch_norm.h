// Batch normalisation of the product u [rows, channels], a row being a sample or a pixel.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace tandem {

template <class C>
struct BatchNormGrad {
  int64_t rows, channels;
  const C* grad;        // [rows, channels], of the counts
  const uint8_t* mask;  // bit-packed, which gates are open
  const C* product;     // u [rows, channels]
  const C* mean;        // [channels], of u
  const C* rstd;        // [channels], 1 / sqrt(gain^2 var + eps)
  const C* slope;       // [channels], gamma rstd
  const C* gain;        // [channels]
  C threshold;
  C* grad_product;  // out [rows, channels]
  C* grad_gamma;    // out [channels]
  C* grad_beta;     // out [channels]
};

namespace cpu {

// Per channel: sum of u and of u^2, in double, combined in an order that does not depend on the threads.
void channel_sums(const float* u, int64_t rows, int64_t channels, double* sum, double* sum_of_squares,
                  ParallelFor parallel);
void channel_sums(const double* u, int64_t rows, int64_t channels, double* sum, double* sum_of_squares,
                  ParallelFor parallel);

// With gz = open ? grad / threshold : 0 and xhat = (gain u - gain mean) rstd:
//   grad_beta = sum gz, grad_gamma = sum gz xhat,
//   grad_product = gain slope (gz - grad_beta / rows - xhat grad_gamma / rows).
void batch_norm_grad(const BatchNormGrad<float>& args, ParallelFor parallel);
void batch_norm_grad(const BatchNormGrad<double>& args, ParallelFor parallel);

}  // namespace cpu

}  // namespace tandem
