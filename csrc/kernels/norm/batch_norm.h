// Batch normalisation of the product u [rows, channels], where a row is a sample or a pixel: statistics, gradients, and
// the scale and shift of each channel.
#pragma once

#include <cmath>

#include "../neuron/if_neuron.h"
#include "../parallel.h"

namespace tandem {

// z = gamma (gain u - mean(gain u)) / sqrt(var(gain u) + eps) + beta.
struct BatchNorm {
  const float* gain;  // [gain_size], one value or one per channel; null: 1
  int64_t gain_size;
  const float* gamma;  // [channels] or null: 1
  const float* beta;   // [channels] or null: 0
  float eps;
};

// The same for one channel: z = scale u + shift. slope is the slope of z in gain u, rstd = slope / gamma.
struct Normalised {
  float gain, rstd, slope, scale, shift;
};

TANDEM_HOST_DEVICE Normalised normalise(const BatchNorm& norm, int64_t channel, float mean, float var) {
  Normalised n;
  n.gain = norm.gain == nullptr ? 1.f : norm.gain[norm.gain_size == 1 ? 0 : channel];
  const float variance = rounded_add(rounded_mul(rounded_mul(n.gain, n.gain), var), norm.eps);
  n.rstd = rounded_add(1.f / std::sqrt(variance), rounded_mul(0.f, variance));  // NaN for an infinite variance
  n.slope = norm.gamma == nullptr ? n.rstd : rounded_mul(norm.gamma[channel], n.rstd);
  n.scale = rounded_mul(n.slope, n.gain);
  const float centre = rounded_mul(rounded_mul(n.gain, mean), n.slope);
  n.shift = rounded_add(norm.beta == nullptr ? 0.f : norm.beta[channel], -centre);
  return n;
}

// Mean and variance from sums in double, rounded once. Rounding cannot make the variance negative, and NaN stays NaN.
TANDEM_HOST_DEVICE void moments(double sum, double squares, int64_t rows, float& mean, float& var) {
  const double n = static_cast<double>(rows);
  const double m = sum / n;
  const double v = rounded_add(squares / n, -rounded_mul(m, m));
  mean = static_cast<float>(m);
  var = static_cast<float>(v < 0 ? 0 : v);
}

struct BatchNormStatistics {
  int64_t rows, channels;
  const void* product;  // [rows, channels]
  float factor;         // u = factor product
  BatchNorm norm;
  float* mean;                            // out [channels], of u
  float* var;                             // out [channels], of u, biased
  float* scale;                           // out [channels]
  float* shift;                           // out [channels]
  double* workspace = nullptr;            // on a GPU
  DType product_dtype = DType::kFloat32;  // on a GPU always
};

// With gz = open ? grad / threshold : 0 and xhat = (gain u - gain mean) rstd:
//   grad_beta = sum gz, grad_gamma = sum gz xhat,
//   grad_product = gain slope (gz - grad_beta / rows - xhat grad_gamma / rows).
struct BatchNormGrad {
  int64_t rows, channels;
  const void* grad;     // [rows, channels] of grad_dtype, the gradient of the counts
  const uint8_t* mask;  // a bit per neuron: whether the gate is open
  const void* product;  // u [rows, channels]
  const float* mean;    // [channels], of u
  const float* var;     // [channels], of u
  BatchNorm norm;       // without beta
  float threshold;
  DType grad_dtype;                       // of `grad` and `grad_product`
  void* grad_product;                     // out [rows, channels]
  float* grad_gamma;                      // out [channels]
  float* grad_beta;                       // out [channels]
  double* workspace = nullptr;            // on a GPU
  DType product_dtype = DType::kFloat32;  // on a GPU always
};

namespace cpu {

// Sums are taken in double and combined in an order that does not depend on the threads.
void batch_norm_statistics(const BatchNormStatistics& args, ParallelFor parallel);
void batch_norm_grad(const BatchNormGrad& args, ParallelFor parallel);

}  // namespace cpu

namespace cuda {

// The size of the workspace in doubles of device memory. The order of summation depends only on the shape.
int64_t batch_norm_workspace(int64_t rows, int64_t channels);

// Pointers are device memory, stream is a cudaStream_t. They return a cudaError_t and need at least one row.
int batch_norm_statistics(const BatchNormStatistics& args, void* stream);
int batch_norm_grad(const BatchNormGrad& args, void* stream);

}  // namespace cuda

}  // namespace tandem
