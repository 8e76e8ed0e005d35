// C entry points to the launchers, for ctypes.
#include "../../csrc/kernels/batch_norm.h"
#include "../../csrc/kernels/if_scan.h"
#include "../../csrc/kernels/spike_bits.h"
#include "../../csrc/kernels/spike_product.h"

using namespace tandem;

extern "C" {

void* emulation_stream();

int emulated_if_scan(const void* currents, DType dtype, Source source, const NeuronArgs<float>* args) {
  return cuda::if_scan(currents, dtype, source, *args, emulation_stream());
}

int emulated_if_scan64(const void* currents, DType dtype, Source source, const NeuronArgs<double>* args) {
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
SpikeProduct product_of(const int64_t* sizes) {
  SpikeProduct product{};
  product.weight_channels_last = sizes[14] != 0;
  int64_t* const fields[] = {&product.batch,    &product.height,  &product.width,
                             &product.channels, &product.outputs, &product.groups};
  for (int i = 0; i < 6; ++i) *fields[i] = sizes[i];
  for (int axis = 0; axis < 2; ++axis) {
    product.kernel[axis] = sizes[6 + axis];
    product.stride[axis] = sizes[8 + axis];
    product.padding[axis] = sizes[10 + axis];
    product.dilation[axis] = sizes[12 + axis];
  }
  return product;
}

}  // namespace

extern "C" {

int emulated_product_if(const uint8_t* planes, const void* weight, const int64_t* sizes, cuda::Weights weights,
                        const NeuronArgs<float>* args) {
  SpikeProduct product = product_of(sizes);
  product.planes = planes;
  product.weight = weight;
  return cuda::product_if(product, weights, *args, emulation_stream());
}

// With a mask.
int emulated_has_product_if(const int64_t* sizes, cuda::Weights weights) {
  uint8_t mask = 0;
  NeuronArgs<float> neuron{};
  neuron.mask = &mask;
  return cuda::has_product_if(product_of(sizes), weights, neuron);
}

int emulated_favours_product_if(const int64_t* sizes, cuda::Weights weights, int32_t T) {
  return cuda::favours_product_if(product_of(sizes), weights, T);
}

}  // extern "C"
