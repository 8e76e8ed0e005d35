// y[t] = W s[t] for all steps of a window, and the neurons it drives, in one kernel. Rows of the product are outputs,
// its columns samples, one mma per step: a warp ends with all steps of its neurons in registers. It turns them over in
// shared memory, so that each lane integrates one neuron and neighbours store together. Weights and spike planes pass
// through a ring of stages in shared memory.
#include "../spike_linear.h"
#include "neurons.cuh"
#include "spike_operands.cuh"

namespace tandem::cuda {

namespace {

constexpr int kTileDepth = 128;  // depths of a stage
constexpr int kWarpBatch = 8;    // samples of a warp: the columns of an mma

// What a neuron keeps from one round of steps to the next.
struct State {
  float v, z;
  uint32_t counts;
};

// kSteps steps at a time by kWarpsOut x kWarpsBatch tiles, each the work of kWarpsDepth warps that share its depth.
template <class Ops, int steps, int kWarpsOut, int kWarpsBatch, int warps_depth>
struct Shape {
  using Operands = Ops;
  using Weight = typename Operands::Weight;
  using Sum = typename Operands::Sum;

  static constexpr int kSteps = steps;
  static constexpr int kWarpsDepth = warps_depth;
  static constexpr int kPlanes = (kSteps + kPlaneSteps - 1) / kPlaneSteps;
  static constexpr int kTiles = 16 / kSteps;  // of sixteen outputs: 64 sums a thread, whatever kSteps
  static constexpr int kOutputs = 16 * kTiles * kWarpsOut;
  static constexpr int kBatch = kWarpBatch * kWarpsBatch;
  static constexpr int kThreads = 32 * kWarpsOut * kWarpsBatch * kWarpsDepth;

  static constexpr int kWeightSize = static_cast<int>(sizeof(Weight));
  static constexpr int kWeightRow = kTileDepth * kWeightSize + Operands::kWeightPad;
  static constexpr int kSpikeRow = kTileDepth + 16;
  static constexpr int kWeightBytes = kOutputs * kWeightRow;
  static constexpr int kStageBytes = kWeightBytes + kPlanes * kBatch * kSpikeRow;
  static constexpr int kStages = kWeightSize == 4 ? 3 : 4;

  // The sums of a warp [step, sample, output]. Lanes write them at samples 2 q and outputs g, and read them in a row.
  static constexpr int kSumRow = 16 * kTiles + 4;
  static constexpr int kSumStep = kWarpBatch * kSumRow;
  static constexpr int kSumWarp = kSteps * kSumStep;
  static constexpr int kSumTiles = kSumWarp * kWarpsOut * kWarpsBatch;  // to the next share of the depth
  static constexpr int kSumBytes = 4 * kSumTiles * kWarpsDepth;
  static constexpr int kStateBytes = kOutputs * kBatch * static_cast<int>(sizeof(State));

  static constexpr int kSharedBytes = kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;

  // Where the running thread stands.
  struct Place {
    int lane = static_cast<int>(threadIdx.x) % 32;
    int g = lane / 4;
    int q = lane % 4;
    int warp = static_cast<int>(threadIdx.x) / 32;
    int depth = warp / (kWarpsOut * kWarpsBatch);
    int tile = warp % (kWarpsOut * kWarpsBatch);
    int row = tile / kWarpsBatch * 16 * kTiles;    // first of the warp's outputs in the block
    int column = tile % kWarpsBatch * kWarpBatch;  // first of its samples
  };
};

// Sixteen bytes from element k on of a row of K elements; zeros past its end and in place of a row that is not there.
template <class E>
__device__ __forceinline__ void copy_piece(unsigned char* to, const E* row, int64_t k, int64_t K, bool exists,
                                           bool aligned) {
  if (aligned) {
    cp_async_16(to, row + k, exists && k < K);
  } else {
    for (int i = 0; i < 16 / static_cast<int>(sizeof(E)); ++i) {
      reinterpret_cast<E*>(to)[i] = exists && k + i < K ? row[k + i] : E{};
    }
  }
}

// Requests the block's weights and spikes at the depths [k, k + kTileDepth), spikes in the planes from first_plane on.
template <class S>
__device__ __forceinline__ void fill_stage(unsigned char* stage, const uint8_t* planes, int first_plane,
                                           const typename S::Weight* weight, int64_t k, int64_t K, bool aligned,
                                           const NeuronArgs<float>& a) {
  const int64_t batch = a.neurons / a.channels;
  const int P = (a.T + kPlaneSteps - 1) / kPlaneSteps;
  constexpr int kElements = 16 / S::kWeightSize;
  constexpr int kPieces = kTileDepth / kElements;
  for (int i = static_cast<int>(threadIdx.x); i < S::kOutputs * kPieces; i += S::kThreads) {
    const int row = i / kPieces;
    const int piece = i % kPieces;
    const int64_t o = static_cast<int64_t>(blockIdx.y) * S::kOutputs + row;
    copy_piece(stage + row * S::kWeightRow + 16 * piece, weight + o * K, k + piece * kElements, K, o < a.channels,
               aligned);
  }
  constexpr int kSpikePieces = kTileDepth / 16;
  for (int i = static_cast<int>(threadIdx.x); i < S::kPlanes * S::kBatch * kSpikePieces; i += S::kThreads) {
    const int row = i / kSpikePieces;
    const int piece = i % kSpikePieces;
    const int p = first_plane + row / S::kBatch;
    const int64_t b = static_cast<int64_t>(blockIdx.x) * S::kBatch + row % S::kBatch;
    copy_piece(stage + S::kWeightBytes + row * S::kSpikeRow + 16 * piece, planes + (p * batch + b) * K, k + piece * 16,
               K, p < P && b < batch, aligned);
  }
}

template <class S>
using Sums = typename S::Sum[S::kTiles][S::kSteps][4];

// Adds the products of one stage.
template <class S>
__device__ __forceinline__ void multiply_stage(const unsigned char* stage, const typename S::Place& at, Sums<S>& sums) {
  using Operands = typename S::Operands;
  constexpr int kDepth = Operands::kDepth;
#pragma unroll 2
  for (int k = 0; k < kTileDepth; k += kDepth * S::kWarpsDepth) {
    const int depth = k + at.depth * kDepth;
    typename Operands::Spikes spikes[S::kPlanes];
#pragma unroll
    for (int p = 0; p < S::kPlanes; ++p) {
      const int row = p * S::kBatch + at.column + at.g;
      spikes[p] = Operands::load_spikes(stage + S::kWeightBytes + row * S::kSpikeRow + depth, at.q);
    }
    uint32_t weights[S::kTiles][Operands::kTerms][4];
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      const int row = at.row + 16 * tile;
      Operands::load_weights(stage + row * S::kWeightRow + depth * S::kWeightSize, S::kWeightRow, at.lane,
                             weights[tile]);
    }
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) {
#pragma unroll
      for (int term = 0; term < Operands::kTerms; ++term) {
        uint32_t b[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          b[r] = Operands::spikes_at(spikes[t / kPlaneSteps], t % kPlaneSteps, term, r);
        }
#pragma unroll
        for (int tile = 0; tile < S::kTiles; ++tile) Operands::multiply(sums[tile][t], weights[tile][term], b);
      }
    }
  }
}

// Lays the sums of the running warp out in shared memory.
template <class S>
__device__ __forceinline__ void store_sums(typename S::Sum* warp_sums, const typename S::Place& at,
                                           const Sums<S>& sums) {
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int sample = 2 * at.q + r % 2;
        const int output = 16 * tile + at.g + r / 2 * 8;
        warp_sums[t * S::kSumStep + sample * S::kSumRow + output] = sums[tile][t][r];
      }
    }
  }
}

// Integrates neuron n, output o, over the steps first, first + 1, ... up to first + kSteps or T; its products begin at
// `sums`. Returns its gate if these steps are the last.
template <class S>
__device__ __forceinline__ uint32_t integrate(const NeuronArgs<float>& a, int64_t n, int64_t o, int first,
                                              const typename S::Sum* sums, State& state) {
  Neurons<1> neuron;
  neuron.begin(a, a.v_init_size == a.neurons ? n : o);
  neuron.load_parameters(a, o);
  if (first > 0) {
    neuron.v.at[0] = state.v;
    neuron.z.at[0] = state.z;
    neuron.counts = state.counts;
  }
  const int last = (a.T - 1) / kPlaneSteps;
#pragma unroll 1
  for (int p = first / kPlaneSteps; p <= last && p < first / kPlaneSteps + S::kPlanes; ++p) {
    constexpr int kSteps = S::kSteps < kPlaneSteps ? S::kSteps : kPlaneSteps;
    const int steps = min(a.T - p * kPlaneSteps, kSteps);
    Vec<float, 1> current[kSteps];
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      const auto* sum = sums + (p * kPlaneSteps - first + t) * S::kSumStep;
      auto total = *sum;
#pragma unroll
      for (int depth = 1; depth < S::kWarpsDepth; ++depth) total += sum[depth * S::kSumTiles];
      current[t].at[0] = S::Operands::product(total, t);
    }
    neuron.begin_plane(a, n, p);
    neuron.scale_products(current);
    neuron.add_residual(a, n, p * kPlaneSteps, 0, steps, current);
    neuron.advance(a, 0, steps, current);
    if (p < last) neuron.end_plane(a, n, p);
  }
  if (first + S::kSteps >= a.T) return neuron.end(a, n);
  state = {neuron.v.at[0], neuron.z.at[0], neuron.counts};
  return 0;
}

// Integrates the tile of the running warp; warps that share its depth take turns.
template <class S>
__device__ __forceinline__ void integrate_tile(const NeuronArgs<float>& a, int first, const typename S::Place& at,
                                               const typename S::Sum* tile_sums, State* states) {
  constexpr int kTileOutputs = 16 * S::kTiles;
  constexpr int kTurns = kWarpBatch * kTileOutputs / 32;
  const int64_t batch = a.neurons / a.channels;
#pragma unroll 1
  for (int turn = at.depth; turn < kTurns; turn += S::kWarpsDepth) {
    // At sixteen outputs a warp takes two samples at once, four apart for the sake of the banks.
    const int output = (turn * 32 + at.lane) % kTileOutputs;
    const int sample = kTileOutputs == 16 ? turn + at.lane / 16 * 4 : turn * 32 / kTileOutputs;
    const int64_t o = static_cast<int64_t>(blockIdx.y) * S::kOutputs + at.row + output;
    const int64_t b = static_cast<int64_t>(blockIdx.x) * S::kBatch + at.column + sample;
    const int64_t n = b * a.channels + o;
    const bool live = o < a.channels && b < batch;
    uint32_t gate = 0;
    if (live) {
      gate = integrate<S>(a, n, o, first, tile_sums + sample * S::kSumRow + output,
                          states[(at.tile * kTurns + turn) * 32 + at.lane]);
    }
    if (a.mask != nullptr && first + S::kSteps >= a.T) {
      const uint32_t gates = __ballot_sync(0xffffffffu, static_cast<int>(gate)) >> at.lane;
      if (live && at.lane % 8 == 0) a.mask[n / 8] = static_cast<uint8_t>(gates);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads)
    spike_linear_kernel(const uint8_t* __restrict__ planes, const typename S::Weight* __restrict__ weight, int64_t K,
                        bool aligned, const __grid_constant__ NeuronArgs<float> a) {
  TANDEM_DYNAMIC_SHARED(memory);
  const typename S::Place at;
  const int stages = static_cast<int>((K + kTileDepth - 1) / kTileDepth);
  auto* tile_sums = reinterpret_cast<typename S::Sum*>(memory) + at.tile * S::kSumWarp;
  auto* states = reinterpret_cast<State*>(memory + S::kSharedBytes);
#pragma unroll 1
  for (int first = 0; first < a.T; first += S::kSteps) {
    const auto request = [&](int stage) {
      if (stage < stages) {
        fill_stage<S>(memory + stage % S::kStages * S::kStageBytes, planes, first / kPlaneSteps, weight,
                      static_cast<int64_t>(stage) * kTileDepth, K, aligned, a);
      }
      cp_async_commit();
    };
    for (int stage = 0; stage < S::kStages - 1; ++stage) request(stage);
    Sums<S> sums = {};
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      cp_async_wait<S::kStages - 2>();
      __syncthreads();  // this stage has come, and the one that is requested next has been read
      request(stage + S::kStages - 1);
      multiply_stage<S>(memory + stage % S::kStages * S::kStageBytes, at, sums);
    }
    __syncthreads();
    store_sums<S>(tile_sums + at.depth * S::kSumTiles, at, sums);
    __syncthreads();
    integrate_tile<S>(a, first, at, tile_sums, states);
    __syncthreads();
  }
}

template <class S>
int launch(const uint8_t* planes, const void* weight, int64_t K, const NeuronArgs<float>& a, cudaStream_t stream) {
  const int shared_bytes = S::kSharedBytes + (a.T > S::kSteps ? S::kStateBytes : 0);
  const cudaError_t status =
      cudaFuncSetAttribute(&spike_linear_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status != cudaSuccess) return status;
  const int64_t batch = a.neurons / a.channels;
  // Blocks that share weights run side by side.
  const dim3 grid(static_cast<unsigned>((batch + S::kBatch - 1) / S::kBatch),
                  static_cast<unsigned>((a.channels + S::kOutputs - 1) / S::kOutputs));
  const bool aligned = K % 16 == 0 && is_aligned(planes, 16) && is_aligned(weight, 16);
  return TANDEM_LAUNCH(spike_linear_kernel<S>, grid, dim3(S::kThreads), shared_bytes, stream, planes,
                       static_cast<const typename S::Weight*>(weight), K, aligned, a);
}

// Few samples: the warps of a block share the depth, so that there are blocks enough. Else four times eight samples
// share what is read of the weights.
template <class Operands, int kSteps>
int launch_for(const uint8_t* planes, const void* weight, int64_t K, const NeuronArgs<float>& a, cudaStream_t stream) {
  if (a.neurons / a.channels <= kWarpBatch) {
    return launch<Shape<Operands, kSteps, 1, 1, 4>>(planes, weight, K, a, stream);
  }
  return launch<Shape<Operands, kSteps, kSteps / 4, 4, 1>>(planes, weight, K, a, stream);
}

template <class Operands>
int launch_for(const uint8_t* planes, const void* weight, int64_t K, const NeuronArgs<float>& a, cudaStream_t stream) {
  if (a.T <= 4) return launch_for<Operands, 4>(planes, weight, K, a, stream);
  if (a.T <= 8) return launch_for<Operands, 8>(planes, weight, K, a, stream);
  return launch_for<Operands, 16>(planes, weight, K, a, stream);
}

}  // namespace

int spike_linear(const uint8_t* planes, const void* weight, Weights type, int64_t K, const NeuronArgs<float>& args,
                 void* stream) {
  if (args.neurons == 0) return cudaSuccess;
  if (args.mask != nullptr && args.channels % 8 != 0) return cudaErrorInvalidValue;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (type) {
    case Weights::kFloat16:
      return launch_for<Float16Weights>(planes, weight, K, args, on);
    case Weights::kBFloat16:
      return launch_for<BFloat16Weights>(planes, weight, K, args, on);
    case Weights::kFloat32:
      return launch_for<Float32Weights>(planes, weight, K, args, on);
    case Weights::kFloat32AsFloat16:
      return launch_for<Float32AsFloat16Weights>(planes, weight, K, args, on);
    case Weights::kInt8:
      if (K >= 1 << 17) return cudaErrorInvalidValue;  // 2^7 times a sum of K int8 has to fit in 32 bits
      return launch_for<Int8Weights>(planes, weight, K, args, on);
  }
  return cudaErrorInvalidValue;
}

}  // namespace tandem::cuda
