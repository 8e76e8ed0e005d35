// C entry points to the launchers, for ctypes.
#include "../../csrc/kernels/if_scan.h"
#include "../../csrc/kernels/spike_bits.h"
#include "../../csrc/kernels/spike_linear.h"

using namespace tandem;

extern "C" {

int emulated_if_scan(const void* currents, DType dtype, Source source, const NeuronArgs<float>* args) {
  return cuda::if_scan(currents, dtype, source, *args, nullptr);
}

int emulated_pack(const void* spikes, int32_t element_size, bool is_float, int32_t T, int64_t neurons,
                  uint8_t* planes) {
  return cuda::pack(spikes, element_size, is_float, T, neurons, planes, nullptr);
}

int emulated_unpack(const uint8_t* planes, int32_t T, int64_t neurons, void* spikes, int32_t element_size,
                    uint64_t one) {
  return cuda::unpack(planes, T, neurons, spikes, element_size, one, nullptr);
}

int emulated_counts(const uint8_t* planes, int32_t P, int64_t neurons, void* counts, DType dtype) {
  return cuda::counts(planes, P, neurons, counts, dtype, nullptr);
}

int emulated_gate_grad(const void* grad, DType dtype, const uint8_t* mask, double threshold, int64_t neurons,
                       void* grad_z) {
  return cuda::gate_grad(grad, dtype, mask, threshold, neurons, grad_z, nullptr);
}

int emulated_spike_linear(const uint8_t* planes, const void* weight, Weights type, int64_t K,
                          const NeuronArgs<float>* args) {
  return cuda::spike_linear(planes, weight, type, K, *args, nullptr);
}

}  // extern "C"
