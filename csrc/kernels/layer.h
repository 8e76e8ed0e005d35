// The interface of the kernels: a layer whose synapses read spike trains and whose neurons write them.
#pragma once

#include "neuron/if_neuron.h"
#include "parallel.h"

namespace tandem {

// y[t] = W s[t], a 2-d convolution. A 1-d convolution has height 1; a linear layer is an image of 1 x 1 pixels with K
// channels.
struct Geometry {
  int64_t batch, height, width, channels;
  int64_t outputs;
  int64_t groups;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // vertical, horizontal
  int64_t after[2];  // further padding at the end; below 0, that much of the end is not read

  // How far a kernel moves along an axis; below 0 it does not fit.
  int64_t room(int axis) const {
    return (axis == 0 ? height : width) + 2 * padding[axis] + after[axis] - dilation[axis] * (kernel[axis] - 1) - 1;
  }
  int64_t out_height() const { return room(0) / stride[0] + 1; }
  int64_t out_width() const { return room(1) / stride[1] + 1; }
  int64_t rows() const { return batch * out_height() * out_width(); }
  int64_t neurons() const { return rows() * outputs; }
  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return outputs / groups; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t inputs() const { return taps() * group_channels(); }  // terms of one current
  bool is_linear() const { return height * width * taps() == 1 && padding[0] + padding[1] == 0 && rows() == batch; }
  bool is_depthwise() const { return groups > 1 && channels == groups; }  // every output reads one channel

  // The row (axis 0) or column (axis 1) of the input that an output reads at position k of the kernel, and whether it
  // exists: outside of the image are zeros.
  int64_t input(int axis, int64_t output, int64_t k) const {
    return output * stride[axis] - padding[axis] + k * dilation[axis];
  }
  bool has_input(int axis, int64_t i) const { return i >= 0 && i < (axis == 0 ? height : width); }
  int64_t sheet_size() const { return batch * height * width * channels; }
  // The offset of a pixel of sample b in sheet p.
  int64_t pixel(int64_t p, int64_t b, int64_t y, int64_t x) const {
    return (((p * batch + b) * height + y) * width + x) * channels;
  }
};

// Weights in the caller's layout. int8 weights are exact integers; their quantisation step is part of the neurons'
// scale.
struct Weights {
  const void* data;  // [outputs, channels / groups, kernel] or, channels last, [outputs, kernel, channels / groups]
  DType dtype;       // any but float64
  bool channels_last;
};

// How the sums are computed. All algorithms give the same bits.
enum class Algorithm : int32_t {
  kFastest = 0,  // the one that dispatch/choose.h takes
  kLists = 1,    // active inputs are listed by their spike pattern (product/lists.h)
  kDigits = 2,   // all inputs times all weights, as products of bytes (product/digits/digits.h)
  kPlain = 3,    // input by input (product/plain.cpp): depthwise layers, and kernels with too many taps for lists
  kFilter = 4,   // in float32 with a bound of the error, exactly where that leaves a doubt (product/filter.h)
};

// How a layer is multiplied.
struct Way {
  Algorithm algorithm;
  int32_t steps;  // of a pattern of lists: 1, 2 or 4; 0: as many as cost least
};

struct Layer {
  Geometry geometry;
  Weights weights;
  const void* prepared;   // from prepare(); may be null on the CPU, which then prepares the weights in this call
  const uint8_t* stored;  // [sheets, batch, height, width, channels]
  Neuron neuron;          // neuron.neurons = geometry.neurons(), neuron.channels = geometry.outputs
  Way way;                // zeros: the fastest

  Timing timing() const { return neuron.timing; }
  bool wants_sums() const { return neuron.stored == nullptr; }  // window_product(): exact sums, no spikes
  int sheets() const { return tandem::sheets(neuron.T, neuron.timing); }
  // Whether a byte of the mask has outputs of two groups or pixels: a GPU's kernels then need neuron.open.
  bool gate_bytes() const { return neuron.mask != nullptr && geometry.group_outputs() % 8 != 0; }
};

namespace cpu {

class Workspace;

// Each output has a unit, a power of two, and its weights are integers in that unit, so that no sum of them exceeds
// int32. This defines the value of the weights: sums are exact and depend on no order, layout, algorithm, thread
// or processor. The unit leaves 29 to 31 bits for the absolute sum of float32 weights, and gives weights of 16 bits two
// digits; for int8 weights it is 1. If a weight of an output is not finite, the unit is NaN, and so are the output's
// currents at every step.
//
// prepare() writes the weights as this processor multiplies them: prepared_size() bytes, 64-byte aligned. They depend
// on the weights and on the geometry except batch, height, width, stride and padding.
int64_t prepared_size(const Geometry& geometry, const Weights& weights);
void prepare(const Geometry& geometry, const Weights& weights, void* memory, ParallelFor parallel);
// The same in the workspace, as much of it as the algorithm reads.
const void* prepare(const Geometry& geometry, const Weights& weights, Algorithm algorithm, Workspace& workspace,
                    ParallelFor parallel);
// The same for a layer with step timing that is both multiplied as counts and run. Sets layer.prepared and layer.way.
void prepare_twice(Layer& layer, Workspace& workspace, ParallelFor parallel);

// Runs a layer: from spike trains to spike trains.
void run(const Layer& layer, ParallelFor parallel);

// u = W c [rows, outputs], the sum of y[t] over the window. Of layer.neuron only T and timing are used.
void window_product(const Layer& layer, float* u, ParallelFor parallel);
// Adds them to sums [rows, outputs], without rounding.
void add_window_product(const Layer& layer, double* sums, ParallelFor parallel);

}  // namespace cpu

namespace cuda {

// The weights as signed digits in the units of cpu::prepare(): prepared_size() bytes at `memory`, 16-byte aligned. They
// depend on the weights and on the geometry except batch, height, width, stride, padding and dilation. Pointers are
// device memory, stream is a cudaStream_t; returns a cudaError_t.
int64_t prepared_size(const Geometry& geometry, DType dtype);
int prepare(const Geometry& geometry, const Weights& weights, void* memory, void* stream);

// Whether the sizes of the layer fit the kernels' 32-bit numbers.
bool can_run(const Layer& layer);

// Run layers whose weights are prepared; of `weights` only dtype is used. The second: u = W c [rows, outputs], the
// product of counts.
int run(const Layer& layer, void* stream);
int window_product(const Layer& layer, float* u, void* stream);

}  // namespace cuda

}  // namespace tandem
