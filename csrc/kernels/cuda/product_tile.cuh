// A block's tile of the product y[t] = W s[t]: its stages in shared memory and their multiplication on the tensor
// cores, weights as digits times spikes as bytes. A row of the product is an output, a column a pixel at one step. A
// sample of a linear layer is an image of one pixel.
#pragma once

#include "digits.h"
#include "vec.cuh"

namespace tandem::cuda {

constexpr int kMmaDepth = 32;
constexpr int kMmaPixels = 8;

// The least shared memory of a multiprocessor: before Ampere, since.
constexpr int kLeastShared = 64 * 1024, kLeastSharedAmpere = 100 * 1024;
// Bytes of shared memory that a block needs beyond what it asks for.
TANDEM_HOST_DEVICE constexpr int reserved(int shared_memory) { return shared_memory < kLeastSharedAmpere ? 0 : 1024; }

// A block computes `steps` steps of out_warps x pixel_warps tiles. A warp multiplies `tiles` mma tiles of sixteen
// outputs by `columns` operands of eight columns: by as many steps of eight pixels, so that steps / columns warps share
// a tile's steps; or, if `counted` (window timing), by the counts of as many times eight pixels. depth_warps warps
// split the depth of a tile.
template <bool counted, int steps, int columns, int tiles, int out_warps, int pixel_warps, int depth_warps>
struct Shape {
  static_assert(!counted || (steps == 1 && columns == 2), "one ldmatrix loads two groups of pixels");
  static_assert(counted || (out_warps == 1 && kPlaneSteps % columns == 0), "a warp's steps are in one plane");
  static constexpr bool kCounted = counted;
  static constexpr int kSteps = steps;
  static constexpr int kColumns = columns;
  static constexpr int kTiles = tiles;
  static constexpr int kPixelWarps = pixel_warps;
  static constexpr int kDepthWarps = depth_warps;
  static constexpr int kStepWarps = counted ? 1 : steps / columns;
  static constexpr int kWarps = out_warps * pixel_warps * kStepWarps * depth_warps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr bool kRounds = steps > kPlaneSteps;        // longer windows take several rounds
  static constexpr int kDigits = kCounted ? kMostDigits : 1;  // that have sums of their own
  static constexpr int kPlanes = kRounds ? steps / kPlaneSteps : 1;
  static constexpr int kPlaneSums = steps < kPlaneSteps ? steps : kPlaneSteps;
  static constexpr int kLeastSteps = steps == 8 ? 5 : 1;  // shorter windows have a shape of their own
  static constexpr int kOutputs = 16 * kTiles * out_warps;
  static constexpr int kTilePixels = kMmaPixels * (kCounted ? columns : 1);
  static constexpr int kPixels = kTilePixels * pixel_warps;

  // A stage: of kDepth inputs rows of weights (of counts all digits' rows), then rows of spikes. Rows follow each other
  // in lines of 128 bytes, padded against bank conflicts.
  static constexpr int kDepth = kCounted ? 64 : 128;
  static constexpr int kLineRows = 128 / kDepth;
  static TANDEM_HOST_DEVICE constexpr int row_at(int row) { return row / kLineRows * 144 + row % kLineRows * kDepth; }
  static constexpr int kDigitBytes = row_at(kOutputs);
  static constexpr int kStageBytes = kDigits * kDigitBytes + row_at(kPlanes * kPixels);

  // Two mma tiles are a unit. Of it a thread has the sums of four neighbouring outputs for each of two neighbouring
  // pixels: row_of() orders the outputs accordingly.
  static constexpr int kUnits = kTiles / 2;
  static __device__ __forceinline__ constexpr int row_of(unsigned output) {
    return static_cast<int>(output % 4 * 8 + output / 4 % 8 + output / 32 * 32);
  }
  // Warps exchange their sums of a plane, of every second pixel, in shared memory: [depth warp, item, step, lane]. An
  // item is what one warp integrates, a unit's outputs at a tile's pixels; some warps have one in every turn.
  static constexpr int kItems = kUnits * pixel_warps;
  static constexpr int kTurns = (kItems + kWarps - 1) / kWarps;
  static_assert(kTurns <= 2, "a warp has two items at most");
  static constexpr int kSumBytes = kCounted ? 0 : 16 * 32 * kPlaneSums * kItems * depth_warps;
  // The state of neurons between two planes: rows of sixteen bytes a thread.
  static constexpr int kStateRows = 5;
  static constexpr int kStateRow = 16 * 32 * kItems * 2;
  static constexpr int kStateBytes = kRounds ? kStateRows * kStateRow : 0;

  // Shared memory of a block whose ring has this many stages. The state lies behind the ring.
  static TANDEM_HOST_DEVICE constexpr int ring_bytes(int stages) {
    return stages * kStageBytes > kSumBytes ? stages * kStageBytes : kSumBytes;
  }
  static TANDEM_HOST_DEVICE constexpr int block_bytes(int stages) { return ring_bytes(stages) + kStateBytes; }

  // Blocks that share a multiprocessor, as far as registers and shared memory allow. Eight warps that split a depth
  // are for grids that have fewer blocks than the card has multiprocessors.
  static constexpr int kWanted = kThreads == 128 ? 3 : depth_warps > 1 ? 1 : 2;
  static TANDEM_HOST_DEVICE constexpr int blocks(int shared_memory) {
    const int fitting = shared_memory / (block_bytes(2) + reserved(shared_memory));
    return fitting < 1 ? 1 : fitting < kWanted ? fitting : kWanted;
  }
  // For __launch_bounds__.
  static constexpr int kBlocks = blocks(kAmpere ? kLeastSharedAmpere : kLeastShared);

  // The stages of the ring on a card with this shared memory per multiprocessor, one of 2, 3, 4 and 8.
  static constexpr int stages(int shared_memory) {
    const int least = shared_memory < kLeastSharedAmpere ? kLeastShared : kLeastSharedAmpere;
    const int room = shared_memory / blocks(least) - reserved(shared_memory);
    for (const int stages : {depth_warps > 1 ? 8 : 4, 4, 3}) {
      if (block_bytes(stages) <= room) return stages;
    }
    return 2;
  }

  // The thread's position in the block's tile. What follows from it is not computed ahead of the loop in which it is
  // made.
  struct Place {
    int thread = kept(static_cast<int>(threadIdx.x));
    int lane = thread % 32;
    int g = lane / 4;
    int q = lane % 4;
    int warp = thread / 32;
    int pixel_warp = warp % pixel_warps;
    int row = warp / pixel_warps % out_warps * 16 * kTiles;              // first of the warp's outputs
    int column = pixel_warp * kTilePixels;                               // first of its pixels
    int step = warp / (pixel_warps * out_warps) % kStepWarps * columns;  // first of its steps
    int depth = warp / (pixel_warps * out_warps * kStepWarps);
  };
};

template <class S>
using Sums = int32_t[S::kTiles][S::kColumns][4];

// Calls each(sum, i) for the sums: i counts them.
template <class S, class Each>
__device__ __forceinline__ void each_sum(Sums<S>& sums, const Each& each) {
  unroll<S::kTiles * S::kColumns * 4>([&](int i) { each(sums[i / (4 * S::kColumns)][i / 4 % S::kColumns][i % 4], i); });
}

// Adds the products of one stage, which has so many digits. A byte of a spike plane has eight steps, so one load of
// spikes serves all steps of a warp. `steps`: that are left in the round, from the warp's first; products of steps
// beyond it are left out, in pairs.
template <class S>
__device__ __forceinline__ void multiply_stage(uint32_t weights_at, uint32_t spikes_at, int digits, int step, int steps,
                                               Sums<S> (&sums)[S::kDigits]) {
  weights_at = kept(weights_at);
  spikes_at = kept(spikes_at);
  constexpr int kTurns = S::kDepth / kMmaDepth / S::kDepthWarps;
  constexpr int kStep = kMmaDepth * S::kDepthWarps;
  constexpr int kGroups = S::kCounted ? S::kColumns : 1;  // of eight rows of spikes
  uint32_t spikes[kTurns][2 * kGroups];                   // of each group the two halves of the depth
  unroll_while<S::kDigits * kTurns>([&](auto i) {
    constexpr int digit = i.value / kTurns, turn = i.value % kTurns;
    if (digit > 0 && turn == 0 && digit >= digits) return false;
    if constexpr (digit == 0) {
      ldmatrix<turn * kStep>(spikes[turn], spikes_at);
      if (!S::kCounted) unroll<2>([&](int r) { spikes[turn][r] >>= step; });
    }
    uint32_t weights[S::kTiles][4];
    unroll_while<S::kTiles>([&](auto tile) {
      constexpr int at = digit * S::kDigitBytes + S::row_at(16 * tile.value) + turn * kStep;
      ldmatrix<at>(weights[tile.value], weights_at);
      return true;
    });
#pragma unroll
    for (int t = 0; t < S::kColumns; ++t) {
      const bool sure = S::kCounted || t % 2 == 1 || t == 0 || (S::kStepWarps == 1 && t < S::kLeastSteps);
      if (!sure && t >= steps) break;
      uint32_t b[2];
      unroll<2>([&](int r) { b[r] = S::kCounted ? spikes[turn][2 * t + r] : spikes[turn][r] >> t & 0x01010101u; });
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) mma(sums[digit][tile][t], weights[tile], b);
    }
    return true;
  });
}

// Of a unit the sums of four neighbouring outputs for the first (side 0) or second of the thread's pixels.
template <class S>
__device__ __forceinline__ Vec<int32_t, 4> sums_of(const Sums<S>& sums, int unit, int side, int column) {
  return generate<4>([&](int i) { return sums[2 * unit + i / 2][column][i % 2 * 2 + side]; });
}

}  // namespace tandem::cuda
