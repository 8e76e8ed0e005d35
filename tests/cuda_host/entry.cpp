// C entry points to the launchers, for ctypes.
#include "../../csrc/kernels/cuda/digits.h"
#include "../../csrc/kernels/neuron/scan.h"
#include "../../csrc/kernels/norm/batch_norm.h"
#include "../../csrc/kernels/planes/bits.h"

using namespace tandem;

extern "C" {

void* emulation_stream();

int emulated_if_scan(const void* currents, DType dtype, Source source, const Neuron<float>* args) {
  return cuda::if_scan(currents, dtype, source, *args, emulation_stream());
}

int emulated_if_scan64(const void* currents, DType dtype, Source source, const Neuron<double>* args) {
  return cuda::if_scan(currents, dtype, source, *args, emulation_stream());
}

int emulated_pack(const void* spikes, int32_t element_size, bool is_float, int32_t T, int64_t neurons,
                  uint8_t* planes) {
  return cuda::pack(spikes, element_size, is_float, T, neurons, planes, emulation_stream());
}

int emulated_unpack(const uint8_t* planes, int32_t T, int64_t neurons, void* spikes, int32_t element_size,
                    uint64_t one) {
  return cuda::unpack(planes, T, neurons, spikes, element_size, one, emulation_stream());
}

int emulated_counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, DType dtype) {
  return cuda::counts(planes, P, neurons, counts, dtype, emulation_stream());
}

int emulated_count_bytes(const uint8_t* planes, int32_t P, int64_t neurons, uint8_t* counts) {
  return cuda::count_bytes(planes, P, neurons, counts, emulation_stream());
}

int emulated_burst_planes(const uint8_t* counts, int32_t T, int64_t neurons, uint8_t* planes) {
  return cuda::burst_planes(counts, T, neurons, planes, emulation_stream());
}

int emulated_gate_grad(const void* grad, DType dtype, const uint8_t* mask, double threshold, int64_t neurons,
                       void* grad_z) {
  return cuda::gate_grad(grad, dtype, mask, threshold, neurons, grad_z, emulation_stream());
}

int emulated_batch_norm_statistics(const BatchNormStatistics<float>* args, double* workspace) {
  return cuda::batch_norm_statistics(*args, workspace, emulation_stream());
}
int emulated_batch_norm_statistics64(const BatchNormStatistics<double>* args, double* workspace) {
  return cuda::batch_norm_statistics(*args, workspace, emulation_stream());
}
int emulated_batch_norm_grad(const BatchNormGrad<float>* args, double* workspace) {
  return cuda::batch_norm_grad(*args, workspace, emulation_stream());
}
int emulated_batch_norm_grad64(const BatchNormGrad<double>* args, double* workspace) {
  return cuda::batch_norm_grad(*args, workspace, emulation_stream());
}
int64_t emulated_batch_norm_workspace(int64_t rows, int64_t channels) {
  return cuda::batch_norm_workspace(rows, channels);
}

}  // extern "C"

namespace {

// sizes: batch, height, width, channels, outputs, groups; kernel, stride, padding, dilation, two of each; are the
// weights channels last.
Layer layer_of(const int64_t* sizes, int32_t T) {
  Layer layer{};
  Geometry& geometry = layer.geometry;
  layer.weights.channels_last = sizes[14] != 0;
  layer.neuron.T = T;
  int64_t* const fields[] = {&geometry.batch,    &geometry.height,  &geometry.width,
                             &geometry.channels, &geometry.outputs, &geometry.groups};
  for (int i = 0; i < 6; ++i) *fields[i] = sizes[i];
  for (int axis = 0; axis < 2; ++axis) {
    geometry.kernel[axis] = sizes[6 + axis];
    geometry.stride[axis] = sizes[8 + axis];
    geometry.padding[axis] = sizes[10 + axis];
    geometry.dilation[axis] = sizes[12 + axis];
  }
  return layer;
}

}  // namespace

extern "C" {

int64_t emulated_prepared_size(const int64_t* sizes) { return cuda::prepared_size(layer_of(sizes, 1).geometry); }

int emulated_prepare(const float* weight, const int64_t* sizes, void* memory) {
  const Layer layer = layer_of(sizes, 1);
  return cuda::prepare(layer.geometry, {weight, DType::kFloat32, layer.weights.channels_last}, memory,
                       emulation_stream());
}

int emulated_product_if(const uint8_t* planes, const void* weight, const void* prepared, const int64_t* sizes,
                        cuda::Operand operand, const Neuron<float>* args) {
  Layer layer = layer_of(sizes, args->T);
  layer.planes = planes;
  layer.weights.data = weight;
  layer.prepared = prepared;
  layer.neuron = *args;
  return cuda::run(layer, operand, emulation_stream());
}

// `planes` are counts.
int emulated_window_product(const uint8_t* planes, const void* weight, const void* prepared, const int64_t* sizes,
                            cuda::Operand operand, float* u) {
  Layer layer = layer_of(sizes, 255);
  layer.planes = planes;
  layer.weights.data = weight;
  layer.prepared = prepared;
  layer.neuron.timing = Timing::kWindow;
  return cuda::window_product(layer, operand, u, emulation_stream());
}

// With a mask.
int emulated_has_product_if(const int64_t* sizes, cuda::Operand operand) {
  uint8_t mask = 0;
  Layer layer = layer_of(sizes, 1);
  layer.neuron.mask = &mask;
  return cuda::can_run(layer, operand);
}

int emulated_favours_product_if(const int64_t* sizes, cuda::Operand operand, int32_t T) {
  return cuda::prefers_run(layer_of(sizes, T), operand);
}

}  // extern "C"
