// A layer of spiking neurons: synapses that read spike planes, neurons that write them.
#pragma once

#include "neuron/if_neuron.h"
#include "norm/batch_norm.h"
#include "parallel.h"

namespace tandem {

// y[t] = W s[t], a 2-d convolution. A 1-d convolution has height 1; a linear layer is a 1 x 1 image of K channels.
struct Geometry {
  int64_t batch, height, width, channels;
  int64_t outputs;
  int64_t groups;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // vertical, horizontal

  int64_t out_height() const { return extent(height, 0); }
  int64_t out_width() const { return extent(width, 1); }
  int64_t rows() const { return batch * out_height() * out_width(); }
  int64_t neurons() const { return rows() * outputs; }
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

// Weights as their owner has them. An int8 weight is an exact integer; what one is worth belongs into the neurons'
// scale.
struct Weights {
  const void* data;  // [outputs, channels / groups, kernel] or, channels last, [outputs, kernel, channels / groups]
  DType dtype;       // not float64
  bool channels_last;
};

// How the sums are taken. None of the ways changes a result.
enum class Way : int32_t {
  kFastest = 0,  // for this input
  kLists1 = 1,   // inputs are listed by the pattern of their spikes in so many steps (product/lists.h)
  kLists2 = 2,
  kLists4 = 4,
  kMatrixUnit = 8,   // all inputs times all weights (product/matrix_unit), where the processor can
  kPlain = 16,       // inputs one by one (product/plain.h), of kernels with more taps than a list can name
  kTileByTile = 32,  // lists for a few rows, weights prepared tile by tile
  kDense = 64,       // the same of counts, or by int8 weights (product/dense.h), where the processor multiplies bytes
                     // weights of one digit alone
  kLists = 128,      // lists, of whatever patterns cost least
};

struct Layer {
  Geometry geometry;
  Weights weights;
  const void* prepared;   // what prepare() made of the weights; on the CPU null: they are prepared in this call
  const uint8_t* planes;  // [P, batch, height, width, channels], P = ceil(T / 8); with window timing counts, P = 1
  Neuron<float> neuron;   // neuron.neurons = geometry.neurons(), neuron.channels = geometry.outputs
  Way way;

  bool counted() const { return neuron.timing == Timing::kWindow; }
  int plane_count() const { return counted() ? 1 : (neuron.T + 7) / 8; }
};

// Batch normalisation of the product by the statistics of the batch. The bias before it cancels and is left out.
struct LayerNorm {
  BatchNorm<float> norm;
  float* product;  // out [rows, outputs], u = sum of y[t] over the window
  float* mean;     // out [outputs], of u
  float* var;      // out [outputs], of u, biased
};

namespace cpu {

// Each output has a unit, a power of two, and integers w, its weights in that unit, so that no sum of them exceeds
// int32. That is the meaning of its weights: sums are exact, and depend on no order, layout, way, thread or processor.
// The unit leaves 29 to 31 bits for the absolute sum of the weights; that of int8 weights is 1. Where a weight is not
// finite it is NaN, and so is the output's current at every step.
//
// prepare() writes them as this processor multiplies them: prepared_size() bytes, 64-byte aligned. They depend on the
// weights and the geometry but for batch, height, width, stride and padding.
int64_t prepared_size(const Geometry& geometry, const Weights& weights);
void prepare(const Geometry& geometry, const Weights& weights, void* memory, ParallelFor parallel);

// Planes to planes.
void run(const Layer& layer, ParallelFor parallel);

// u = W c [rows, outputs], the sum of y[t] over the window. Of layer.neuron it reads T and timing alone.
void window_product(const Layer& layer, float* u, ParallelFor parallel);

// window_product(), batch_norm_statistics() and run() with the scale and shift that these give, and the same bits;
// scale and shift of layer.neuron are not looked at.
void run_normalised(const Layer& layer, const LayerNorm& norm, ParallelFor parallel);

}  // namespace cpu

namespace cuda {

// The type of the weights, and what becomes of it for the tensor cores. Weights::dtype is not looked at.
enum class Operand : int32_t {
  kFloat16 = 0,
  kBFloat16 = 1,
  kFloat32 = 2,        // in the units and integers of the CPU's kernels, of which sums are exact; to be prepared
  kFloat32High = 3,    // as the sum of two bfloat16, which keep 16 bits of a weight
  kFloat32Medium = 4,  // rounded to bfloat16
  kInt8 = 5,           // exact
};

// Is there a fused kernel? The weights of an output have to be in the order kernel, channel; and the mask takes eight
// outputs of a group at a time, but for kFloat32.
bool can_run(const Layer& layer, Operand operand);

// Is it the faster way, or are the library's product and the scan? By the arithmetic in docs/cuda.md.
bool prefers_run(const Layer& layer, Operand operand);

// Pointers are device memory, stream is a cudaStream_t; returns a cudaError_t.
int run(const Layer& layer, Operand operand, void* stream);

// u = W c [rows, outputs] of counts, planes of window timing. Is there a kernel, and is it the faster way?
bool prefers_window_product(const Layer& layer, Operand operand);
int window_product(const Layer& layer, Operand operand, float* u, void* stream);

}  // namespace cuda

}  // namespace tandem
