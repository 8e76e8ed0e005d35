// A block's tile of the product y[t] = W s[t]: its stages in shared memory and their multiplication on the tensor
// cores, weights as digits times spikes as bytes. A row of the product is an output, a column a pixel at one step. A
// sample of a linear layer is an image of one pixel.
#pragma once

#include "digits.h"
#include "vec.cuh"

namespace tandem::cuda {

constexpr int kTileDepth = 128;  // inputs per stage
constexpr int kMmaDepth = 32;
constexpr int kMmaPixels = 8;

// Bytes of shared memory that a block needs beyond what it asks for.
constexpr int kReserved = 1024;
// The least shared memory of a multiprocessor: before Ampere, since.
constexpr int kLeastShared = 64 * 1024, kLeastSharedAmpere = 100 * 1024;

// A block computes kSteps steps of kWarpsOut x kWarpsPixels tiles; kWarpsDepth warps split the depth of a tile.
// `counted`: of window timing, which multiplies counts; kSteps times as many pixels take the place of the steps.
template <bool counted, int steps, int kWarpsOut, int kWarpsPixels, int warps_depth>
struct Shape {
  static_assert(!counted || steps == 2, "one ldmatrix loads two groups of pixels");
  static constexpr bool kCounted = counted;
  static constexpr int kSteps = steps;
  static constexpr bool kRounds = steps == 2 * kPlaneSteps;  // longer windows take several rounds
  static constexpr int kWarpsDepth = warps_depth;
  static constexpr int kDigits = kCounted ? kMostDigits : 1;  // that have sums of their own
  static constexpr int kPlanes = kCounted ? 1 : (kSteps + kPlaneSteps - 1) / kPlaneSteps;
  static constexpr int kPlaneSums = kSteps < kPlaneSteps ? kSteps : kPlaneSteps;
  static constexpr int kTiles = kCounted ? 2 : 16 / kSteps;  // of sixteen outputs, per warp
  static constexpr int kOutputs = 16 * kTiles * kWarpsOut;
  static constexpr int kTilePixels = kMmaPixels * (kCounted ? steps : 1);
  static constexpr int kPixels = kTilePixels * kWarpsPixels;
  static constexpr int kThreads = 32 * kWarpsOut * kWarpsPixels * kWarpsDepth;

  // A stage: rows of weights, then rows of spikes, padded against bank conflicts.
  static constexpr int kRow = kTileDepth + 16;
  static constexpr int kWeightBytes = kOutputs * kRow;
  static constexpr int kStageBytes = kWeightBytes + kPlanes * kPixels * kRow;

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
  // The state of two neurons between two rounds, in words of eight bytes: v, the sum of the residual, counts, and the
  // sum of each one's product.
  static constexpr int kStateWords = 5;
  static constexpr int kStateBytes = kRounds ? 8 * kStateWords * kItems * kThreads : 0;
  static_assert(!kRounds || kVec == 2, "a state has two neurons");

  // Shared memory of a block whose ring has this many stages. Blocks with rounds have the state behind the ring.
  static TANDEM_HOST_DEVICE constexpr int ring_bytes(int stages) {
    return stages * kStageBytes > kSumBytes ? stages * kStageBytes : kSumBytes;
  }
  static TANDEM_HOST_DEVICE constexpr int block_bytes(int stages) { return ring_bytes(stages) + kStateBytes; }

  // Blocks that share a multiprocessor, as far as registers and shared memory allow. Blocks whose warps split the depth
  // of several pixels are for grids that have fewer blocks than the card has multiprocessors.
  static constexpr int kWanted = kThreads == 128 ? 3 : kWarpsDepth > 1 ? 1 : 2;
  static TANDEM_HOST_DEVICE constexpr int blocks(int shared_memory) {
    const int fitting = shared_memory / (block_bytes(2) + kReserved);
    return fitting < 1 ? 1 : fitting < kWanted ? fitting : kWanted;
  }
  // For __launch_bounds__.
  static constexpr int kBlocks = blocks(kAmpere ? kLeastSharedAmpere : kLeastShared);

  // The stages of the ring on a card with this shared memory per multiprocessor, one of 2, 3, 4 and 8; 0 if not even
  // two fit.
  static constexpr int stages(int shared_memory) {
    const int least = shared_memory < kLeastSharedAmpere ? kLeastShared : kLeastSharedAmpere;
    const int room = shared_memory / blocks(least) - kReserved;
    for (const int stages : {kWarpsDepth > 1 ? 8 : 4, 4, 3, 2}) {
      if (block_bytes(stages) <= room) return stages;
    }
    return 0;
  }

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
using Sums = int32_t[S::kTiles][S::kSteps][4];

// Shifts the sums up, for the products of the next lower digit. They may wrap around modulo 2^32, but the final sums
// fit.
template <class S>
__device__ __forceinline__ void begin_digit(Sums<S>& sums) {
#pragma unroll
  for (int i = 0; i < S::kTiles * S::kSteps * 4; ++i) {
    int32_t& sum = sums[i / (4 * S::kSteps)][i / 4 % S::kSteps][i % 4];
    sum = static_cast<int32_t>(static_cast<uint32_t>(sum) << 8);
  }
}

// Adds the sums of a digit to those of the next lower one.
template <class S>
__device__ __forceinline__ void add_digit(const Sums<S>& digit, Sums<S>& lower) {
#pragma unroll
  for (int i = 0; i < S::kTiles * S::kSteps * 4; ++i) {
    lower[i / (4 * S::kSteps)][i / 4 % S::kSteps][i % 4] += digit[i / (4 * S::kSteps)][i / 4 % S::kSteps][i % 4] * 256;
  }
}

// Adds the products of one stage. A byte of a spike plane has eight steps, so one load of spikes serves eight products.
// `steps`: of the round; products of steps beyond it are left out, in pairs.
template <class S>
__device__ __forceinline__ void multiply_stage(Shared stage, Shared spike_stage, const typename S::Place& at, int steps,
                                               Sums<S>& sums) {
  constexpr int kGroups = S::kCounted ? S::kSteps : S::kPlanes;  // of eight rows of spikes
  constexpr int kGroupRows = S::kCounted ? kMmaPixels : S::kPixels;
  const Shared lane_weights = stage + ((at.row + at.lane % 16) * S::kRow + at.depth * kMmaDepth + at.lane / 16 * 16);
  const int group = at.lane / 16 * (kGroups - 1);  // the upper half of the lanes points to the second group
  const Shared lane_spikes = spike_stage + (S::kWeightBytes + (at.column + group * kGroupRows + at.lane % 8) * S::kRow +
                                            at.depth * kMmaDepth + at.lane / 8 % 2 * 16);
  unroll_while<kTileDepth / kMmaDepth / S::kWarpsDepth>([&](auto turn) {
    constexpr int k = turn.value * kMmaDepth * S::kWarpsDepth;
    uint32_t spikes[2 * kGroups];  // of each group the two halves of the depth
    ldmatrix<k>(spikes, lane_spikes);
    uint32_t weights[S::kTiles][4];
    unroll_while<S::kTiles>([&](auto tile) {
      ldmatrix<16 * tile.value * S::kRow + k>(weights[tile.value], lane_weights);
      return true;
    });
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) {
      if (!S::kCounted && t % 2 == 0 && t >= (S::kSteps + 1) / 2 && t != 4 && t >= steps) break;
      uint32_t b[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        b[r] = spikes[(S::kCounted ? t : t / kPlaneSteps) * 2 + r];
        if (!S::kCounted) b[r] = b[r] >> t % kPlaneSteps & 0x01010101u;
      }
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) mma(sums[tile][t], weights[tile], b);
    }
    return true;
  });
}

// The sums of an item's neurons at step t.
template <class S>
__device__ __forceinline__ Vec<int32_t, S::kVec> sums_of(const Sums<S>& sums, int item, int t) {
  Vec<int32_t, S::kVec> out;
#pragma unroll
  for (int i = 0; i < S::kVec; ++i) out.at[i] = sums[item / 2 * S::kUnitTiles + i / 2][t][i % 2 * 2 + item % 2];
  return out;
}

// Adds the sums of the warps that split a depth. They are left in `parts`, at the indices that part() gives.
template <class S>
__device__ __forceinline__ void add_up(Vec<int32_t, S::kVec>* parts, const typename S::Place& at, const Sums<S>& sums) {
  constexpr int kShare = S::kThreads / S::kWarpsDepth * S::kItems * S::kSteps;
#pragma unroll
  for (int item = 0; item < S::kItems; ++item) {
#pragma unroll
    for (int t = 0; t < S::kSteps; ++t) parts[at.depth * kShare + at.part(item, t)] = sums_of<S>(sums, item, t);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kShare; i += S::kThreads) {
    auto total = parts[i];
#pragma unroll
    for (int depth = 1; depth < S::kWarpsDepth; ++depth) {
      const auto part = parts[depth * kShare + i];
#pragma unroll
      for (int j = 0; j < S::kVec; ++j) total.at[j] += part.at[j];
    }
    parts[i] = total;
  }
}

}  // namespace tandem::cuda
