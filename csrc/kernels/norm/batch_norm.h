// Batch normalisation of the product u [rows, channels], where a row is a sample or a pixel: statistics, gradients, and
// the scale and shift of each channel.
#pragma once

#include <cmath>

#include "../neuron/if_neuron.h"
#include "../parallel.h"

namespace tandem {

// z = gamma (gain u - mean(gain u)) / sqrt(var(gain u) + eps) + beta.
template <class C>
struct BatchNorm {
  const C* gain;  // [gain_size], one value or one per channel; null: 1
  int64_t gain_size;
  const C* gamma;  // [channels] or null: 1
  const C* beta;   // [channels] or null: 0
  C eps;
};

// The same for one channel: z = scale u + shift. slope is the slope of z in gain u, rstd = slope / gamma.
template <class C>
struct Normalised {
  C gain, rstd, slope, scale, shift;
};

template <class C>
TANDEM_HOST_DEVICE Normalised<C> normalise(const BatchNorm<C>& norm, int64_t channel, C mean, C var) {
  Normalised<C> n;
  n.gain = norm.gain == nullptr ? C(1) : norm.gain[norm.gain_size == 1 ? 0 : channel];
  const C variance = rounded_add(rounded_mul(rounded_mul(n.gain, n.gain), var), norm.eps);
  n.rstd = rounded_add(C(1) / std::sqrt(variance), rounded_mul(C(0), variance));  // NaN for an infinite variance
  n.slope = norm.gamma == nullptr ? n.rstd : rounded_mul(norm.gamma[channel], n.rstd);
  n.scale = rounded_mul(n.slope, n.gain);
  const C centre = rounded_mul(rounded_mul(n.gain, mean), n.slope);
  n.shift = rounded_add(norm.beta == nullptr ? C(0) : norm.beta[channel], -centre);
  return n;
}

// Mean and variance from sums in double, rounded once. Rounding cannot make the variance negative, and NaN stays NaN.
template <class C>
TANDEM_HOST_DEVICE void moments(double sum, double squares, int64_t rows, C& mean, C& var) {
  const double n = static_cast<double>(rows);
  const double m = sum / n;
  const double v = rounded_add(squares / n, -rounded_mul(m, m));
  mean = static_cast<C>(m);
  var = static_cast<C>(v < 0 ? 0 : v);
}

template <class C>
struct BatchNormStatistics {
  int64_t rows, channels;
  const C* product;  // [rows, channels]
  C factor;          // u = factor product
  BatchNorm<C> norm;
  C* mean;                      // out [channels], of u
  C* var;                       // out [channels], of u, biased
  C* scale;                     // out [channels]
  C* shift;                     // out [channels]
  double* workspace = nullptr;  // on a GPU
};

// With gz = open ? grad / threshold : 0 and xhat = (gain u - gain mean) rstd:
//   grad_beta = sum gz, grad_gamma = sum gz xhat,
//   grad_product = gain slope (gz - grad_beta / rows - xhat grad_gamma / rows).
template <class C>
struct BatchNormGrad {
  int64_t rows, channels;
  const void* grad;     // [rows, channels] of grad_dtype, the gradient of the counts
  const uint8_t* mask;  // a bit per neuron: whether the gate is open
  const C* product;     // u [rows, channels]
  const C* mean;        // [channels], of u
  const C* var;         // [channels], of u
  BatchNorm<C> norm;    // without beta
  C threshold;
  DType grad_dtype;             // of `grad` and `grad_product`; on the CPU C
  void* grad_product;           // out [rows, channels]
  C* grad_gamma;                // out [channels]
  C* grad_beta;                 // out [channels]
  double* workspace = nullptr;  // on a GPU
};

namespace cpu {

// Sums are taken in double and combined in an order that does not depend on the threads.
void batch_norm_statistics(const BatchNormStatistics<float>& args, ParallelFor parallel);
void batch_norm_statistics(const BatchNormStatistics<double>& args, ParallelFor parallel);
void batch_norm_grad(const BatchNormGrad<float>& args, ParallelFor parallel);
void batch_norm_grad(const BatchNormGrad<double>& args, ParallelFor parallel);

}  // namespace cpu

namespace cuda {

// The size of the workspace in doubles of device memory. The order of summation depends only on the shape.
int64_t batch_norm_workspace(int64_t rows, int64_t channels);

// Pointers are device memory, stream is a cudaStream_t. They return a cudaError_t and need at least one row.
int batch_norm_statistics(const BatchNormStatistics<float>& args, void* stream);
int batch_norm_statistics(const BatchNormStatistics<double>& args, void* stream);
int batch_norm_grad(const BatchNormGrad<float>& args, void* stream);
int batch_norm_grad(const BatchNormGrad<double>& args, void* stream);

}  // namespace cuda

}  // namespace tandem
