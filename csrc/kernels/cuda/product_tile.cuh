// A block's tile of the product y[t] = W s[t]: its stages in shared memory, and how they are multiplied. A row
// of the product is an output, a column a pixel at one step; a linear layer's sample is an image of one pixel.
#pragma once

#include "spike_operands.cuh"

namespace tandem::cuda {

constexpr int kTileDepth = 128;  // depths of a stage
constexpr int kWarpPixels = 8;   // the columns of an mma

// kSteps steps at a time by kWarpsOut x kWarpsPixels tiles, each the work of kWarpsDepth warps that share its depth.
// With operands that are counts, eight pixels each take the place of a step.
template <class Ops, int steps, int kWarpsOut, int kWarpsPixels, int warps_depth>
struct Shape {
  using Operands = Ops;
  using Weight = typename Operands::Weight;
  using Sum = typename Operands::Sum;

  static constexpr int kSteps = steps;
  static constexpr bool kRounds = steps == 2 * kPlaneSteps;  // a longer window takes more of them
  static constexpr int kWarpsDepth = warps_depth;
  static constexpr int kPlanes = (kSteps + kPlaneSteps - 1) / kPlaneSteps;
  static constexpr int kTiles = 16 / kSteps;  // of sixteen outputs: 64 sums a thread, whatever kSteps
  static constexpr int kOutputs = 16 * kTiles * kWarpsOut;
  static constexpr int kTilePixels = kWarpPixels * (Ops::kCounted ? steps : 1);
  static constexpr int kPixels = kTilePixels * kWarpsPixels;
  static constexpr int kThreads = 32 * kWarpsOut * kWarpsPixels * kWarpsDepth;
  // That share a multiprocessor, as far as registers go.
  static constexpr int kBlocks = kThreads == 128 ? 3 : Operands::kTerms == 1 ? 2 : 1;

  // A stage: rows of weights, then rows of spikes, padded for even use of the banks.
  static constexpr int kWeightSize = static_cast<int>(sizeof(Weight));
  static constexpr int kWeightRow = kTileDepth * kWeightSize + Operands::kWeightPad;
  static constexpr int kSpikeRow = kTileDepth + 16;
  static constexpr int kWeightBytes = kOutputs * kWeightRow;
  static constexpr int kStageBytes = kWeightBytes + kPlanes * kPixels * kSpikeRow;

  // A thread ends with the sums of kVec neighbouring outputs for each of two neighbouring pixels: a unit of so many
  // tiles has its outputs in the order that leaves them there.
  static constexpr int kUnitTiles = kTiles < 2 ? kTiles : 2;
  static constexpr int kVec = 2 * kUnitTiles;
  static constexpr int kItems = 2 * kTiles / kUnitTiles;  // kVec neurons each, of a thread
  static __device__ __forceinline__ constexpr int row_of(unsigned output) {
    return static_cast<int>(output % kVec * 8 + output / kVec % 8 + output / (8 * kVec) * (8 * kVec));
  }
  // Where warps share a depth, they add up their sums in shared memory [warp, item, step, lane, kVec].
  static constexpr int kSumBytes = kWarpsDepth == 1 ? 0 : kThreads * 16 * kTiles * kSteps;
  // Of counts times digits also the sums of all digits but the lowest, which a sum of the lowest has no room for.
  static constexpr int kHigherBytes = Operands::kCounted && Operands::kDigits ? kSumBytes / kWarpsDepth : 0;
  // What kVec neurons keep from one round of steps to the next: v, z, counts.
  static constexpr int kStateWords = 2 * kVec + 2;
  static constexpr int kStateBytes = 4 * kStateWords * kItems * kThreads;

  // As many stages as fit into what every GPU since Ampere has.
  static constexpr int kFitting = (96 * 1024 - kHigherBytes - (kPlanes > 1 ? kStateBytes : 0)) / kStageBytes;
  static constexpr int kMost = kWarpsDepth > 1 ? 8 : 4;
  static constexpr int kStages = kFitting < kMost ? kFitting : kMost;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kRingBytes > kSumBytes ? kRingBytes : kSumBytes;
  static_assert(kStages >= 2, "the next stage has to come while this one is multiplied");

  // Sixteen bytes of spikes at a time.
  static constexpr int kSpikePieces = kTileDepth / 16;
  static constexpr int kSpikeTurns = (kPlanes * kPixels * kSpikePieces + kThreads - 1) / kThreads;

  // Where the running thread stands.
  struct Place {
    int lane = static_cast<int>(threadIdx.x) % 32;
    int g = lane / 4;
    int q = lane % 4;
    int warp = static_cast<int>(threadIdx.x) / 32;
    int depth = warp / (kWarpsOut * kWarpsPixels);
    int tile = warp % (kWarpsOut * kWarpsPixels);
    int row = tile / kWarpsPixels * 16 * kTiles;     // first of the warp's outputs in the block
    int column = tile % kWarpsPixels * kTilePixels;  // first of its pixels

    // Of the parts of its tile in shared memory.
    __device__ __forceinline__ int part(int item, int t) const {
      return ((tile * kItems + item) * kSteps + t) * 32 + lane;
    }
  };
};

template <class S>
using Sums = typename S::Sum[S::kTiles][S::kSteps][4];

// Makes room in the sums for the products of the next lower digit.
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

// Adds up the sums of the warps that share a depth. Calls take(i, sums) for number i of the parts of each tile.
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
