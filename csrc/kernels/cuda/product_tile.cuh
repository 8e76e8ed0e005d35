// A block's tile of the product y[t] = W s[t]: its stages in shared memory and their multiplication. A row of the
// product is an output, a column a pixel at one step. A sample of a linear layer is an image of one pixel.
#pragma once

#include "spike_operands.cuh"

namespace tandem::cuda {

constexpr int kTileDepth = 128;  // inputs per stage
constexpr int kWarpPixels = 8;   // the columns of an mma

// A block computes kSteps steps of kWarpsOut x kWarpsPixels tiles. kWarpsDepth warps split the depth of a tile. If the
// operands are counts, eight more pixels take the place of each step.
template <class Ops, int steps, int kWarpsOut, int kWarpsPixels, int warps_depth>
struct Shape {
  using Operands = Ops;
  using Weight = typename Operands::Weight;
  using Sum = typename Operands::Sum;

  static constexpr int kSteps = steps;
  static constexpr bool kRounds = steps == 2 * kPlaneSteps;  // longer windows take several rounds
  static constexpr int kWarpsDepth = warps_depth;
  static constexpr int kPlanes = (kSteps + kPlaneSteps - 1) / kPlaneSteps;
  static constexpr int kTiles = 16 / kSteps;  // of sixteen outputs, per warp: 64 sums per thread for every kSteps
  static constexpr int kOutputs = 16 * kTiles * kWarpsOut;
  static constexpr int kTilePixels = kWarpPixels * (Ops::kCounted ? steps : 1);
  static constexpr int kPixels = kTilePixels * kWarpsPixels;
  static constexpr int kThreads = 32 * kWarpsOut * kWarpsPixels * kWarpsDepth;
  // Blocks that share a multiprocessor, as far as registers allow.
  static constexpr int kBlocks = kThreads == 128 ? 3 : Operands::kTerms == 1 ? 2 : 1;

  // A stage: rows of weights, then rows of spikes, padded against bank conflicts.
  static constexpr int kWeightSize = static_cast<int>(sizeof(Weight));
  static constexpr int kWeightRow = kTileDepth * kWeightSize + Operands::kWeightPad;
  static constexpr int kSpikeRow = kTileDepth + 16;
  static constexpr int kWeightBytes = kOutputs * kWeightRow;
  static constexpr int kStageBytes = kWeightBytes + kPlanes * kPixels * kSpikeRow;

  // A thread ends with the sums of kVec neighbouring outputs for each of two neighbouring pixels: row_of() orders the
  // outputs of kUnitTiles mma tiles accordingly.
  static constexpr int kUnitTiles = kTiles < 2 ? kTiles : 2;
  static constexpr int kVec = 2 * kUnitTiles;
  static constexpr int kItems = 2 * kTiles / kUnitTiles;  // items of a thread, each of kVec neurons
  static __device__ __forceinline__ constexpr int row_of(unsigned output) {
    return static_cast<int>(output % kVec * 8 + output / kVec % 8 + output / (8 * kVec) * (8 * kVec));
  }
  // Warps that split a depth add their sums in shared memory: [warp, item, step, lane, kVec].
  static constexpr int kSumBytes = kWarpsDepth == 1 ? 0 : kThreads * 16 * kTiles * kSteps;
  // For counts times digits also the sums of all digits but the lowest: int32 has no room for all digits.
  static constexpr int kHigherBytes = Operands::kCounted && Operands::kDigits ? kSumBytes / kWarpsDepth : 0;
  // The state of kVec neurons between two rounds: v, z, counts.
  static constexpr int kStateWords = 2 * kVec + 2;
  static constexpr int kStateBytes = 4 * kStateWords * kItems * kThreads;

  // As many stages as fit into the shared memory that every GPU since Ampere has.
  static constexpr int kFitting = (96 * 1024 - kHigherBytes - (kPlanes > 1 ? kStateBytes : 0)) / kStageBytes;
  static constexpr int kMost = kWarpsDepth > 1 ? 8 : 4;
  static constexpr int kStages = kFitting < kMost ? kFitting : kMost;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kRingBytes > kSumBytes ? kRingBytes : kSumBytes;
  static_assert(kStages >= 2, "the next stage has to come while this one is multiplied");

  // Spikes are copied in pieces of sixteen bytes.
  static constexpr int kSpikePieces = kTileDepth / 16;
  static constexpr int kSpikeTurns = (kPlanes * kPixels * kSpikePieces + kThreads - 1) / kThreads;

  // The thread's position in the block's tile.
  struct Place {
    int lane = static_cast<int>(threadIdx.x) % 32;
    int g = lane / 4;
    int q = lane % 4;
    int warp = static_cast<int>(threadIdx.x) / 32;
    int depth = warp / (kWarpsOut * kWarpsPixels);
    int tile = warp % (kWarpsOut * kWarpsPixels);
    int row = tile / kWarpsPixels * 16 * kTiles;     // first of the warp's outputs in the block
    int column = tile % kWarpsPixels * kTilePixels;  // first of its pixels

    // The index of the lane's sums in shared memory.
    __device__ __forceinline__ int part(int item, int t) const {
      return ((tile * kItems + item) * kSteps + t) * 32 + lane;
    }
  };
};

template <class S>
using Sums = typename S::Sum[S::kTiles][S::kSteps][4];

// Shifts the sums up, for the products of the next lower digit.
template <class S>
__device__ __forceinline__ void begin_digit(Sums<S>& sums) {
#pragma unroll
  for (int i = 0; i < S::kTiles * S::kSteps * 4; ++i) {
    auto& sum = sums[i / (4 * S::kSteps)][i / 4 % S::kSteps][i % 4];
    sum *= 256;
  }
}

// Adds the products of one stage.
template <class S>
__device__ __forceinline__ void multiply_stage(Shared stage, const typename S::Place& at, Sums<S>& sums) {
  using Operands = typename S::Operands;
  constexpr int kDepth = Operands::kDepth;
  const Shared lane_weights = stage + (at.row * S::kWeightRow + at.depth * kDepth * S::kWeightSize +
                                       Operands::weights_of(at.lane, S::kWeightRow));
  const Shared lane_spikes = stage + (S::kWeightBytes + (at.column + at.g) * S::kSpikeRow + at.depth * kDepth);
#pragma unroll(Operands::kTerms == 1 ? 64 / kDepth : S::kSteps == 4 ? 1 : 2)
  for (int k = 0; k < kTileDepth; k += kDepth * S::kWarpsDepth) {
    constexpr int kRows = Operands::kCounted ? S::kSteps : S::kPlanes;
    typename Operands::Spikes spikes[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = i * (Operands::kCounted ? kWarpPixels : S::kPixels);
      spikes[i] = Operands::load_spikes(lane_spikes.pointer + row * S::kSpikeRow + k, at.q);
    }
    uint32_t weights[S::kTiles][Operands::kTerms][4];
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      Operands::load_weights(lane_weights + (16 * tile * S::kWeightRow + k * S::kWeightSize), S::kWeightRow,
                             weights[tile]);
    }
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) {
      uint32_t b[2];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        b[r] = Operands::spikes_at(spikes[Operands::kCounted ? t : t / kPlaneSteps], t % kPlaneSteps, r);
#pragma unroll
      for (int term = 0; term < Operands::kTerms; ++term) {
#pragma unroll
        for (int tile = 0; tile < S::kTiles; ++tile) Operands::multiply(sums[tile][t], weights[tile][term], b);
      }
    }
  }
}

// The sums of an item's neurons at step t.
template <class S>
__device__ __forceinline__ Vec<typename S::Sum, S::kVec> sums_of(const Sums<S>& sums, int item, int t) {
  Vec<typename S::Sum, S::kVec> out;
#pragma unroll
  for (int i = 0; i < S::kVec; ++i) out.at[i] = sums[item / 2 * S::kUnitTiles + i / 2][t][i % 2 * 2 + item % 2];
  return out;
}

// Adds the sums of the warps that split a depth. Calls take(i, total) for each index i that part() gives.
template <class S, class Take>
__device__ __forceinline__ void add_up(unsigned char* memory, const typename S::Place& at, const Sums<S>& sums,
                                       const Take& take) {
  using Part = Vec<typename S::Sum, S::kVec>;
  constexpr int kShare = S::kThreads / S::kWarpsDepth * S::kItems * S::kSteps;
  auto* parts = reinterpret_cast<Part*>(memory);
#pragma unroll
  for (int item = 0; item < S::kItems; ++item) {
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) parts[at.depth * kShare + at.part(item, t)] = sums_of<S>(sums, item, t);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kShare; i += S::kThreads) {
    Part total = parts[i];
#pragma unroll
    for (int depth = 1; depth < S::kWarpsDepth; ++depth) {
      const Part part = parts[depth * kShare + i];
#pragma unroll
      for (int j = 0; j < S::kVec; ++j) total.at[j] += part.at[j];
    }
    take(i, total);
  }
}

}  // namespace tandem::cuda
