// Linear and convolutional layers in one kernel: the product of spikes and weights for all steps of a window on the
// tensor cores, then the neurons. Each step has its own mma, so that a warp ends with all steps of its neurons in
// registers. There a thread integrates four neighbouring outputs for each of two pixels. Weights and spike planes pass
// through a ring of stages in shared memory.
#include "neurons.cuh"
#include "product_launch.cuh"

namespace tandem::cuda {

namespace {

template <class S>
using NeuronsOf = Neurons<S::kVec, float, S::kRounds>;

// The neurons of an item: kVec neighbouring outputs at one of the thread's two pixels.
template <class S>
__device__ __forceinline__ NeuronsOf<S> neurons_of(const Neuron<float>& a, const DeviceGeometry& g,
                                                   const typename S::Place& at, int item) {
  const int output = static_cast<int>(blockIdx.y) * S::kOutputs + at.row + (item / 2 * 8 + at.g) * S::kVec;
  NeuronsOf<S> neurons;
  neurons.whole = g.outputs_aligned;
  neurons.live = min(g.group_outputs - output, S::kVec);
  neurons.channel = blockIdx.z * static_cast<uint32_t>(g.group_outputs) + output;
  if (neurons.live > 0) neurons.load_parameters(a);
  return neurons;
}

// Integrates an item's neurons over the steps of a round that begins at step `first`. products(t) gives their products
// at step first + t.
template <class S, class Products>
__device__ __forceinline__ void integrate(const Neuron<float>& a, const DeviceGeometry& g, const typename S::Place& at,
                                          NeuronsOf<S> neurons, int first, int item, float* states,
                                          const Products& products) {
  constexpr int kVec = S::kVec;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + at.column + 2 * at.q + item % 2;
  const int64_t n = pixel * a.channels + neurons.channel;
  float* state = states + item * S::kStateWords * S::kThreads + threadIdx.x;
  uint32_t gates = 0;
  const bool live = neurons.live > 0 && pixel < g.pixels;
  if (live) {
    if (!S::kRounds || first == 0) {
      neurons.begin(a, a.v_init_size > 1 ? remainder(n, a.v_init_size) : 0);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        neurons.v.at[i] = state[i * S::kThreads];
        neurons.z.at[i] = state[(kVec + i) * S::kThreads];
      }
      if constexpr (S::kRounds) {
        neurons.counts.even = __float_as_uint(state[2 * kVec * S::kThreads]);
        neurons.counts.odd = __float_as_uint(state[(2 * kVec + 1) * S::kThreads]);
      }
    }
#pragma unroll
    for (int plane = 0; plane < S::kPlanes; ++plane) {
      constexpr int kSumSteps = S::kSteps < kPlaneSteps ? S::kSteps : kPlaneSteps;
      const int begin = first + plane * kPlaneSteps;
      if (S::kRounds && begin >= a.T) continue;
      Vec<float, kVec> current[kSumSteps];
#pragma unroll
      for (int t = 0; t < kSumSteps; ++t) {
        const auto sums = products(plane * kPlaneSteps + t);
#pragma unroll
        for (int i = 0; i < kVec; ++i) current[t].at[i] = S::Operands::product(sums.at[i], t);
      }
      if constexpr (S::Operands::kDigits) {
        const auto units = neurons.load_channels(g.units, 1);
#pragma unroll
        for (int t = 0; t < kSumSteps; ++t) {
#pragma unroll
          for (int i = 0; i < kVec; ++i) current[t].at[i] = rounded_mul(current[t].at[i], units.at[i]);
        }
      }
      const int steps = S::kRounds ? min(a.T - begin, kSumSteps) : a.T;
      if (S::kSteps == 8) __builtin_assume(steps > 4);  // shorter windows have their own kernel
      neurons.begin_plane(a, n, begin / kPlaneSteps);
      neurons.scale_products(current);
      neurons.add_residual(a, n, begin, 0, steps, current);
      neurons.advance(a, 0, steps, current);
      if (S::kRounds && begin + kPlaneSteps < a.T) {
        neurons.end_plane(a, n, begin / kPlaneSteps);
      } else {
        gates = neurons.end(a, n, begin / kPlaneSteps);
      }
    }
    if (S::kRounds && first + S::kSteps < a.T) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        state[i * S::kThreads] = neurons.v.at[i];
        state[(kVec + i) * S::kThreads] = neurons.z.at[i];
      }
      if constexpr (S::kRounds) {
        state[2 * kVec * S::kThreads] = __uint_as_float(neurons.counts.even);
        state[(2 * kVec + 1) * S::kThreads] = __uint_as_float(neurons.counts.odd);
      }
    }
  }
  if (S::kRounds && first + S::kSteps < a.T) return;
  put_gates<kVec>(a.mask, n, live, gates, 4);  // the next outputs belong to the lane four further on
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    product_if_kernel(const __grid_constant__ DeviceGeometry g, const __grid_constant__ Neuron<float> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const typename S::Place at;
  auto* states = reinterpret_cast<float*>(memory + S::kSharedBytes);
  const int digits = count_digits<S>(g);
#pragma unroll 1
  for (int round = 0; round < (S::kRounds ? (a.T + S::kSteps - 1) / S::kSteps : 1); ++round) {
    const int first = S::kRounds ? round * S::kSteps : 0;
    Sums<S> sums = {};
    multiply<S>(g, first / kPlaneSteps, digits, 0, memory, at, sums);
    if constexpr (S::kWarpsDepth == 1) {
#pragma unroll
      for (int item = 0; item < S::kItems; item += 2) {
        const auto neurons = neurons_of<S>(a, g, at, item);
#pragma unroll
        for (int i = item; i < item + 2; ++i) {
          integrate<S>(a, g, at, neurons, first, i, states, [&](int t) { return sums_of<S>(sums, i, t); });
        }
      }
    } else {
      static_assert(S::kItems <= S::kWarpsDepth, "a warp each");
      __syncthreads();
      auto* parts = reinterpret_cast<Vec<typename S::Sum, S::kVec>*>(memory);
      add_up<S>(memory, at, sums, [&](int i, const Vec<typename S::Sum, S::kVec>& total) { parts[i] = total; });
      __syncthreads();
      const int item = at.depth;
      if (item < S::kItems) {
        integrate<S>(a, g, at, neurons_of<S>(a, g, at, item), first, item, states,
                     [&](int t) { return parts[at.part(item, t)]; });
      }
    }
    if (S::kRounds) __syncthreads();  // the ring has been read
  }
}

template <class S>
int launch(const Layer& layer, cudaStream_t stream) {
  const Neuron<float>& a = layer.neuron;
  DeviceGeometry g = geometry_for<S>(layer);
  // The same for every window length: another host thread may be between this call and its launch.
  const int most_bytes = S::kSharedBytes + (S::kRounds ? S::kStateBytes : 0);
  const cudaError_t status =
      cudaFuncSetAttribute(&product_if_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes);
  if (status != cudaSuccess) return cudaGetLastError();  // clears the error
  g.outputs_aligned = g.group_outputs % 4 == 0 && fit_four(a);
  const int shared_bytes = S::kSharedBytes + (a.T > S::kSteps ? S::kStateBytes : 0);
  product_if_kernel<S><<<grid_of<S>(layer.geometry), S::kThreads, shared_bytes, stream>>>(g, a);
  return cudaGetLastError();
}

int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    cudaGetLastError();
  }
  return count;
}

// A wide block shares each value that it reads among four times eight pixels and the outputs of two warps. If that
// gives fewer blocks than multiprocessors, blocks are smaller and their warps split the depth.
template <class Operands, int kSteps>
int launch_for(const Layer& layer, cudaStream_t stream) {
  using Wide = Shape<Operands, kSteps, kSteps == 4 ? 1 : 2, 4, 1>;
  if (layer.geometry.rows() <= kWarpPixels) return launch<Shape<Operands, kSteps, 1, 1, 4>>(layer, stream);
  const dim3 grid = grid_of<Wide>(layer.geometry);
  const bool few = int64_t{grid.x} * grid.y * grid.z < multiprocessors();
  using Deep = Shape<Operands, kSteps, kSteps == 16 ? 2 : 1, 2, kSteps == 16 ? 2 : 4>;
  return few ? launch<Deep>(layer, stream) : launch<Wide>(layer, stream);
}

template <class Operands>
int launch_for(const Layer& layer, cudaStream_t stream) {
  if (layer.neuron.T <= 4) return launch_for<Operands, 4>(layer, stream);
  if (layer.neuron.T <= 8) return launch_for<Operands, 8>(layer, stream);
  return launch_for<Operands, 16>(layer, stream);
}

}  // namespace

bool can_run(const Layer& layer, Operand operand) {
  return can_multiply(layer, operand) && (fits_tiles(layer, operand) || is_plain(layer, operand));
}

bool prefers_run(const Layer& layer, Operand operand) {
  if (operand == Operand::kFloat32) return true;  // no other kernel gives the CPU's bits
  if (!fills_tiles(layer)) return false;
  // At "high", the library's product in TensorFloat-32 is faster than two bfloat16 terms. That pays where tensor cores
  // are the limit and the sums are long enough to make up for currents in memory. The library's products of 16-bit
  // types are no alternative: they round the currents to 16 bits.
  const bool compute_bound = !layer.counted() && layer.neuron.T * layer.geometry.rows() > 256;
  return !(operand == Operand::kFloat32High && compute_bound && layer.geometry.inputs() > 768);
}

int run(const Layer& layer, Operand operand, void* stream) {
  if (layer.neuron.neurons == 0) return cudaSuccess;
  if (!can_run(layer, operand) || !is_prepared(layer, operand)) return cudaErrorInvalidValue;
  if (layer.counted()) return run_window(layer, operand, stream);
  if (is_plain(layer, operand)) return run_plain(layer, stream);
  return launch_for(
      operand, [&](auto operands) { return launch_for<decltype(operands)>(layer, static_cast<cudaStream_t>(stream)); });
}

}  // namespace tandem::cuda
