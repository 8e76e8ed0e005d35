// One kernel around each instruction that csrc/kernels/cuda/ptx.cuh wraps, its operands laid out as the PTX manual
// says. golden.py knows the results.
#include "../../csrc/kernels/cuda/choose.h"
#include "../../csrc/kernels/cuda/vec.cuh"

namespace tandem::cuda {

namespace {

// Row g (+ 8), depths k, k + 1, ... of A [16][32]; column g of B [8][32]; D [16][8].
__global__ void mma_kernel(const int8_t* a, const void* b, int32_t* d) {
  const int lane = static_cast<int>(threadIdx.x);
  const int g = lane / 4;
  const int q = lane % 4;
  const auto* columns = static_cast<const uint8_t*>(b);
  uint32_t fragment_a[4];
  uint32_t fragment_b[2];
  int32_t sum[4];
  for (int r = 0; r < 4; ++r) {
    fragment_a[r] = load<uint32_t>(a + (g + r % 2 * 8) * 32 + r / 2 * 16 + q * 4);
    sum[r] = d[(g + r / 2 * 8) * 8 + 2 * q + r % 2];
  }
  for (int r = 0; r < 2; ++r) fragment_b[r] = load<uint32_t>(columns + g * 32 + r * 16 + q * 4);
  mma(sum, fragment_a, fragment_b);
  for (int r = 0; r < 4; ++r) d[(g + r / 2 * 8) * 8 + 2 * q + r % 2] = sum[r];
}

// Four signed and four unsigned bytes of each lane.
__global__ void dot_kernel(const uint32_t* a, const void* b, int32_t* d) {
  d[threadIdx.x] = dot(a[threadIdx.x], static_cast<const uint32_t*>(b)[threadIdx.x]);
}

// Sixteen bytes a lane by way of shared memory, `bytes` at a time; odd lanes have none to copy, and name no address.
template <int bytes>
__device__ void copy(const uint8_t* from, uint8_t* to) {
  extern __shared__ __align__(16) unsigned char memory[];
  const bool valid = threadIdx.x % 2 == 0;
  const int begin = 16 * static_cast<int>(threadIdx.x);
  for (int at = begin; at < begin + 16; at += bytes) {
    cp_async<bytes>(shared_address(memory + at), valid ? from + at : nullptr, valid);
  }
  cp_async_commit();
  cp_async_wait<0>();
  for (int at = begin; at < begin + 16; ++at) to[at] = memory[at];
}
__global__ void cp_async_16_kernel(const uint8_t* from, const void*, uint8_t* to) { copy<16>(from, to); }
__global__ void cp_async_8_kernel(const uint8_t* from, const void*, uint8_t* to) { copy<8>(from, to); }
__global__ void cp_async_4_kernel(const uint8_t* from, const void*, uint8_t* to) { copy<4>(from, to); }
__global__ void cp_async_1_kernel(const uint8_t* from, const void*, uint8_t* to) { copy<1>(from, to); }

// Of each lane a sum and a number, of 64 bits.
__global__ void add_wide_kernel(const int64_t* in, const void*, int64_t* out) {
  int64_t sum = in[2 * threadIdx.x];
  add_wide<256>(sum, static_cast<int32_t>(in[2 * threadIdx.x + 1]));
  out[threadIdx.x] = sum;
}

// Of each lane v, threshold and leak; out v and the spikes, to which bit 5 may be added.
template <bool kLeaky>
__device__ void fire_once(const float* in, float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  float v = in[3 * lane];
  uint32_t spikes = 1;
  Neuron<float> neuron{};
  neuron.threshold = in[3 * lane + 1];
  neuron.leak = in[3 * lane + 2];
  fire<32, kLeaky>(v, spikes, neuron);
  out[2 * lane] = v;
  out[2 * lane + 1] = static_cast<float>(spikes);
}

__global__ void fire_kernel(const float* in, const void*, float* out) { fire_once<false>(in, out); }
__global__ void fire_leaky_kernel(const float* in, const void*, float* out) { fire_once<true>(in, out); }

// Matrices of 8 x 16 bytes, one after the other, `offset` further on in memory; out [lane][matrix].
template <int offset, int matrices>
__device__ void read_matrices(const uint8_t* from, uint32_t* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 16; ++i) memory[16 * lane + i] = from[16 * lane + i];
  __syncthreads();
  uint32_t r[matrices];
  ldmatrix<offset>(r, shared_address(memory + 16 * (lane % (8 * matrices))));
  for (int i = 0; i < matrices; ++i) out[matrices * lane + i] = r[i];
}
__global__ void ldmatrix_kernel(const uint8_t* from, const void*, uint32_t* out) { read_matrices<0, 4>(from, out); }
__global__ void ldmatrix_2_kernel(const uint8_t* from, const void*, uint32_t* out) { read_matrices<16, 2>(from, out); }

}  // namespace

}  // namespace tandem::cuda

using namespace tandem::cuda;

// The kernel, with so many bytes of shared memory, on `stream`.
#define WRAPPER(name, shared_bytes, In, Out)                                                                \
  extern "C" int wrapper_##name(const void* a, const void* b, void* d, void* stream) {                      \
    name##_kernel<<<1, 32, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<const In*>(a), b, \
                                                                              static_cast<Out*>(d));        \
    return cudaGetLastError();                                                                              \
  }

WRAPPER(mma, 0, int8_t, int32_t)
WRAPPER(dot, 0, uint32_t, int32_t)
WRAPPER(cp_async_16, 512, uint8_t, uint8_t)
WRAPPER(cp_async_8, 512, uint8_t, uint8_t)
WRAPPER(cp_async_4, 512, uint8_t, uint8_t)
WRAPPER(cp_async_1, 512, uint8_t, uint8_t)
WRAPPER(add_wide, 0, int64_t, int64_t)
WRAPPER(fire, 0, float, float)
WRAPPER(fire_leaky, 0, float, float)
WRAPPER(ldmatrix, 512, uint8_t, uint32_t)
WRAPPER(ldmatrix_2, 512, uint8_t, uint32_t)

// Runs a linear layer of float32 weights, which are prepared, with step timing at T = 8, as on a card of so many
// multiprocessors with so much shared memory. run_on: the extension's tandem_run_on().
extern "C" int forced_linear(decltype(&tandem_run_on) run_on, const uint8_t* planes, const void* digits, int64_t batch,
                             int64_t inputs, int64_t outputs, int32_t multiprocessors, int32_t shared, uint8_t* spikes,
                             void* stream) {
  tandem::Layer layer{};
  layer.geometry = {batch, 1, 1, inputs, outputs, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}};
  layer.prepared = digits;
  layer.planes = planes;
  layer.neuron.neurons = batch * outputs;
  layer.neuron.channels = outputs;
  layer.neuron.T = layer.neuron.steps = 8;
  layer.neuron.threshold = layer.neuron.leak = 1;
  layer.neuron.planes = spikes;
  return run_on(layer, {multiprocessors, shared}, stream);
}
