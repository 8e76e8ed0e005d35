// Spike products fused with IF neurons: linear and convolutional layers that read spike planes and write spike planes.
#pragma once

#include "batch_norm.h"
#include "if_neuron.h"
#include "parallel.h"

namespace tandem {

// y[t] = W s[t], a 2-d convolution. A 1-d convolution has height 1; a linear layer is a 1 x 1 image of K channels.
struct SpikeProduct {
  const uint8_t* planes;  // [P, batch, height, width, channels], P = ceil(T / 8)
  int64_t batch, height, width, channels;
  int64_t outputs;
  int64_t groups;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // vertical, horizontal

  const void* weight;  // [outputs, channels / groups, kernel] or, channels last, [outputs, kernel, channels / groups]
  DType weight_dtype;  // not float64
  bool weight_channels_last;
  const int32_t* packed;  // what pack_weights() made, or null: packed anew in this call
  int32_t bucket_width;   // steps per bucket, 1, 2 or 4; 8: no buckets, but all inputs times all weights, where the
                          // processor has a matrix unit; 0: the fastest for this input. It does not change the result

  int64_t out_height() const { return extent(height, 0); }
  int64_t out_width() const { return extent(width, 1); }
  int64_t rows() const { return batch * out_height() * out_width(); }
  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return outputs / groups; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t inputs() const { return taps() * group_channels(); }  // summands of one current
  bool is_linear() const { return height * width * taps() == 1 && rows() == batch; }

 private:
  int64_t extent(int64_t size, int axis) const {
    return (size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis] + 1;
  }
};

// Batch normalisation of the product by the statistics of the batch. The bias before it cancels and is left out.
struct BatchNormForward {
  BatchNorm<float> norm;
  float* product;  // out [rows, outputs], u = sum of y[t] over the window
  float* mean;     // out [outputs], of u
  float* var;      // out [outputs], of u, biased
};

namespace cpu {

// Sums are exact, so the result depends on nothing but the arguments: weights are rounded to fixed point, 29 to 31 bits
// of the absolute sum of their output's weights, and added as int32.
//
// Packing makes these integers, `packed_size` of them, 64-byte aligned; they depend on the layer's shape and weights and
// on the processor. False: some weight is not finite, and `packed` is not usable.
int64_t packed_size(const SpikeProduct& product);
bool pack_weights(const SpikeProduct& product, int32_t* packed, ParallelFor parallel);

// The layer's spike trains. neuron.neurons = rows() * outputs, neuron.channels = outputs. False: some weight is not
// finite, or the kernel has more than 8191 taps, and nothing was written.
bool product_if(const SpikeProduct& product, const NeuronArgs<float>& neuron, ParallelFor parallel);

// The same with scale and shift from the batch's own statistics; those of `neuron` are not looked at.
bool product_norm_if(const SpikeProduct& product, const BatchNormForward& norm, const NeuronArgs<float>& neuron,
                     ParallelFor parallel);

}  // namespace cpu

namespace cuda {

// The type of the weights, and what becomes of it for the tensor cores. SpikeProduct.weight_dtype is not looked at.
enum class Weights : int32_t {
  kFloat16 = 0,
  kBFloat16 = 1,
  kFloat32 = 2,        // as the sum of three bfloat16, which is exact
  kFloat32High = 3,    // of two, which keep 16 bits of a weight
  kFloat32Medium = 4,  // rounded to bfloat16
  kInt8 = 5,           // exact; NeuronArgs.scale holds what one unit is worth
};

// Is there a fused kernel? The weights of an output have to be in the order kernel, channel; and the mask takes eight
// outputs of a group at a time.
bool has_product_if(const SpikeProduct& product, Weights weights, const NeuronArgs<float>& neuron);

// Is it the faster way for T steps, or are the library's product and the scan? By the arithmetic in docs/cuda.md.
bool favours_product_if(const SpikeProduct& product, Weights weights, int32_t T);

// As cpu::product_if. Pointers are device memory, stream is a cudaStream_t; returns a cudaError_t.
int product_if(const SpikeProduct& product, Weights weights, const NeuronArgs<float>& neuron, void* stream);

}  // namespace cuda

}  // namespace tandem
