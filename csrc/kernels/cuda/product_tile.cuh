// A block's tile of the product y[t] = W s[t]: its stages in shared memory, and how they are multiplied. A row
// of the product is an output, a column a pixel at one step; a linear layer's sample is an image of one pixel.
#pragma once

#include "spike_operands.cuh"

namespace tandem::cuda {

constexpr int kTileDepth = 128;  // depths of a stage
constexpr int kWarpPixels = 8;   // the columns of an mma

// What a neuron keeps from one plane to the next.
struct State {
  float v, z;
  uint32_t counts;
};

// kSteps steps at a time by kWarpsOut x kWarpsPixels tiles, each the work of kWarpsDepth warps that share its depth.
template <class Ops, int steps, int kWarpsOut, int kWarpsPixels, int warps_depth>
struct Shape {
  using Operands = Ops;
  using Weight = typename Operands::Weight;
  using Sum = typename Operands::Sum;

  static constexpr int kSteps = steps;
  static constexpr int kWarpsDepth = warps_depth;
  static constexpr int kPlanes = (kSteps + kPlaneSteps - 1) / kPlaneSteps;
  static constexpr int kTiles = 16 / kSteps;  // of sixteen outputs: 64 sums a thread, whatever kSteps
  static constexpr int kOutputs = 16 * kTiles * kWarpsOut;
  static constexpr int kPixels = kWarpPixels * kWarpsPixels;
  static constexpr int kThreads = 32 * kWarpsOut * kWarpsPixels * kWarpsDepth;
  // That share a multiprocessor, as far as registers go.
  static constexpr int kBlocks = kThreads == 128 ? 3 : Operands::kTerms == 1 ? 2 : 1;

  // A stage: rows of weights, then rows of spikes, padded for even use of the banks.
  static constexpr int kWeightSize = static_cast<int>(sizeof(Weight));
  static constexpr int kWeightRow = kTileDepth * kWeightSize + Operands::kWeightPad;
  static constexpr int kSpikeRow = kTileDepth + 16;
  static constexpr int kWeightBytes = kOutputs * kWeightRow;
  static constexpr int kStageBytes = kWeightBytes + kPlanes * kPixels * kSpikeRow;

  // The sums of a warp in one plane [step, pixel, output]. Lanes write them at pixels 2 q and outputs g, and read them
  // in a row.
  static constexpr int kSumSteps = kSteps < kPlaneSteps ? kSteps : kPlaneSteps;
  static constexpr int kSumRow = 16 * kTiles + 4;
  static constexpr int kSumStep = kWarpPixels * kSumRow;
  static constexpr int kSumWarp = kSumSteps * kSumStep;
  static constexpr int kSumTiles = kSumWarp * kWarpsOut * kWarpsPixels;  // to the next share of the depth
  static constexpr int kSumBytes = 4 * kSumTiles * kWarpsDepth;
  static constexpr int kStateBytes = kOutputs * kPixels * static_cast<int>(sizeof(State));

  // As many stages as fit into what every GPU since Ampere has.
  static constexpr int kFitting = (96 * 1024 - (kPlanes > 1 ? kStateBytes : 0)) / kStageBytes;
  static constexpr int kStages = kFitting < 4 ? kFitting : 4;
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
    int column = tile % kWarpsPixels * kWarpPixels;  // first of its pixels
  };
};

template <class S>
using Sums = typename S::Sum[S::kTiles][S::kSteps][4];

// Adds the products of one stage.
template <class S>
__device__ __forceinline__ void multiply_stage(const unsigned char* stage, const typename S::Place& at, Sums<S>& sums) {
  using Operands = typename S::Operands;
  constexpr int kDepth = Operands::kDepth;
#pragma unroll(Operands::kTerms == 1 ? 2 : 1)
  for (int k = 0; k < kTileDepth; k += kDepth * S::kWarpsDepth) {
    const int depth = k + at.depth * kDepth;
    typename Operands::Spikes spikes[S::kPlanes];
#pragma unroll
    for (int p = 0; p < S::kPlanes; ++p) {
      const int row = p * S::kPixels + at.column + at.g;
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
      uint32_t b[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) b[r] = Operands::spikes_at(spikes[t / kPlaneSteps], t % kPlaneSteps, r);
#pragma unroll
      for (int term = 0; term < Operands::kTerms; ++term) {
#pragma unroll
        for (int tile = 0; tile < S::kTiles; ++tile) Operands::multiply(sums[tile][t], weights[tile][term], b);
      }
    }
  }
}

// Lays the sums of the running warp in one of the round's planes out in shared memory.
template <class S>
__device__ __forceinline__ void store_sums(typename S::Sum* warp_sums, const typename S::Place& at, const Sums<S>& sums,
                                           int plane) {
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int t = 0; t < S::kSumSteps; ++t) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int pixel = 2 * at.q + r % 2;
        const int output = 16 * tile + at.g + r / 2 * 8;
        warp_sums[t * S::kSumStep + pixel * S::kSumRow + output] = sums[tile][plane * kPlaneSteps + t][r];
      }
    }
  }
}

}  // namespace tandem::cuda
