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

// The tiles of each kernel. A block computes kSteps steps of kOutWarps x kPixelWarps tiles. A warp multiplies kTiles
// mma tiles of sixteen outputs by kColumns operands of eight columns: by as many steps of eight pixels, so that kSteps
// / kColumns warps share a tile's steps; or with window timing by the counts of as many times eight pixels. kDepthWarps
// warps split the depth of a tile. kDigits: that have sums of their own, with window timing all, else 1.
template <int steps>
struct WideTiles {
  static constexpr int kDigits = 1, kSteps = steps, kColumns = steps == 16 ? 8 : 4, kTiles = steps == 16 ? 2 : 4;
  static constexpr int kOutWarps = 1, kPixelWarps = kTiles, kDepthWarps = 1;
};
template <int steps>
struct DeepTiles {
  static constexpr int kDigits = 1, kSteps = steps, kColumns = steps == 4 ? 4 : 8, kTiles = steps == 4 ? 4 : 2;
  static constexpr int kOutWarps = 1, kPixelWarps = 2, kDepthWarps = steps == 16 ? 2 : 4;
};
template <int steps>
struct NarrowTiles : DeepTiles<steps> {
  static constexpr int kPixelWarps = 1, kDepthWarps = 4;
};
template <int digits>
struct CountTiles {
  static constexpr int kDigits = digits, kSteps = 1, kColumns = 2, kTiles = 2;
  static constexpr int kOutWarps = 2, kPixelWarps = 4, kDepthWarps = 1;
};

template <class Tiles>
struct TileShape : Tiles {
  using Tiles::kColumns, Tiles::kDepthWarps, Tiles::kDigits, Tiles::kOutWarps, Tiles::kPixelWarps, Tiles::kSteps,
      Tiles::kTiles;
  static constexpr Timing kTiming = kDigits > 1 ? Timing::kWindow : Timing::kStep;
  static_assert(kTiming == Timing::kStep || (kSteps == 1 && kColumns == 2), "one ldmatrix loads two groups of pixels");
  static_assert(kTiming == Timing::kWindow || (kOutWarps == 1 && kPlaneSteps % kColumns == 0),
                "a warp's steps are in one plane");
  static constexpr int kSums = kTiles * kColumns * 4;  // of a thread
  static constexpr int kStepWarps = kTiming == Timing::kWindow ? 1 : kSteps / kColumns;
  static constexpr int kWarps = kOutWarps * kPixelWarps * kStepWarps * kDepthWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr bool kRounds = kSteps > kPlaneSteps;  // longer windows take several rounds
  static constexpr int kPlanes = kRounds ? kSteps / kPlaneSteps : 1;
  static constexpr int kPlaneSums = kSteps < kPlaneSteps ? kSteps : kPlaneSteps;
  static constexpr int kLeastSteps = kSteps == 8 ? 5 : 1;  // shorter windows have a shape of their own
  static constexpr int kOutputs = 16 * kTiles * kOutWarps;
  static constexpr int kTilePixels = kMmaPixels * (kTiming == Timing::kWindow ? kColumns : 1);
  static constexpr int kPixels = kTilePixels * kPixelWarps;

  // A stage: of kDepth inputs rows of weights (of counts all digits' rows), then rows of spikes. In each line of 128
  // bytes the sixteens are permuted, so that eight rows of one depth are in different banks.
  static constexpr int kDepth = kDigits > 2 ? 64 : 128;
  static TANDEM_HOST_DEVICE constexpr unsigned swizzled(unsigned row, unsigned depth) {
    const unsigned byte = row * kDepth + depth;
    return byte ^ byte / 128 % 8 * 16;
  }
  static constexpr int kDigitBytes = kOutputs * kDepth;
  // A warp multiplies a stage slice by slice, each the depth of an mma; those of other depth warps lie between.
  static constexpr int kSliceBytes = kMmaDepth * kDepthWarps;
  static constexpr int kSlices = kDepth / kSliceBytes;
  static constexpr int kStageBytes = kDigits * kDigitBytes + kPlanes * kPixels * kDepth;

  // Two mma tiles are a pair. Of it a thread has the sums of four neighbouring outputs for each of two neighbouring
  // pixels: row_of() orders the outputs accordingly.
  static constexpr int kPairs = kTiles / 2;
  static __device__ __forceinline__ constexpr int row_of(unsigned output) {
    return static_cast<int>(output % 4 * 8 + output / 4 % 8 + output / 32 * 32);
  }
  // Warps exchange their sums of a plane, of every second pixel, in shared memory: [depth warp, item, step, lane]. An
  // item is what one warp integrates, a pair's outputs at a tile's pixels; a warp has kWarpItems at most.
  static constexpr int kItems = kPairs * kPixelWarps;
  static constexpr int kWarpItems = (kItems + kWarps - 1) / kWarps;
  static_assert(kWarpItems <= 2, "a warp has two items at most");
  static constexpr int kSumBytes = kTiming == Timing::kWindow ? 0 : 16 * 32 * kPlaneSums * kItems * kDepthWarps;
  // The state of neurons between two planes: five rows of sixteen bytes a thread.
  static constexpr int kStateRow = 16 * 32 * kItems * 2;
  static constexpr int kStateBytes = kRounds ? 5 * kStateRow : 0;

  // Shared memory of a block whose ring has this many stages. The state lies behind the ring.
  static TANDEM_HOST_DEVICE constexpr int ring_bytes(int stages) {
    return stages * kStageBytes > kSumBytes ? stages * kStageBytes : kSumBytes;
  }
  static TANDEM_HOST_DEVICE constexpr int block_bytes(int stages) { return ring_bytes(stages) + kStateBytes; }

  // Blocks that share a multiprocessor, as far as registers and shared memory allow. Eight warps that split a depth
  // are for grids that have fewer blocks than the card has multiprocessors.
  static constexpr int kWanted = kThreads == 128 ? 3 : kDepthWarps > 1 ? 1 : 2;
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
    for (const int stages : {kDepthWarps > 1 ? 8 : 4, 4, 3}) {
      if (block_bytes(stages) <= room) return stages;
    }
    return 2;
  }

  // The thread's position in the block's tile. What follows from it is not computed ahead of the loop in which it is
  // made.
  struct Position {
    unsigned thread = kept(threadIdx.x);
    int lane = thread % 32;
    int g = lane / 4;
    int q = lane % 4;
    int warp = thread / 32;
    int pixel_warp = warp % kPixelWarps;
    int row = warp / kPixelWarps % kOutWarps * 16 * kTiles;               // first of the warp's outputs
    int column = pixel_warp * kTilePixels;                                // first of its pixels
    int step = warp / (kPixelWarps * kOutWarps) % kStepWarps * kColumns;  // first of its steps
    int depth = warp / (kPixelWarps * kOutWarps * kStepWarps);
  };
};

// Of each tile and column of a warp.
template <class S>
using Sums = int32_t[S::kSums / 4][4];

// Adds the products of one stage, which has so many digits. A byte of a spike plane has eight steps, so one load of
// spikes serves all steps of a warp. `steps`: that are left in the round, from the warp's first; products of steps
// beyond it are left out, in pairs. The next slice of the depth lies in the same line, which is permuted: an XOR of the
// address.
template <class S>
__device__ __forceinline__ void multiply_stage(uint32_t weights_at, uint32_t spikes_at, int digits, int step, int steps,
                                               Sums<S> (&sums)[S::kDigits]) {
  weights_at = kept(weights_at);
  spikes_at = kept(spikes_at);
  constexpr int kWords =
      S::kTiming == Timing::kWindow ? 4 : 2;  // of spikes a slice: for each group of columns the halves of the depth
  constexpr int kLoad = S::kSlices * kWords < 4 ? 2 : 4;  // at once
  uint32_t spikes[S::kSlices * kWords / kLoad][kLoad], rows[S::kSlices];
  unroll_while<S::kDigits * S::kSlices>([&](auto i) {
    constexpr int digit = i.value / S::kSlices, slice = i.value % S::kSlices, first = slice * kWords / kLoad;
    if (digit > 0 && slice == 0 && digit >= digits) return false;
    if constexpr (digit == 0 && slice * kWords % kLoad == 0) {
      ldmatrix<0>(spikes[first], spikes_at ^ slice * S::kSliceBytes);
      if (S::kTiming == Timing::kStep) unroll<kLoad>([&](int r) { spikes[first][r] >>= step; });
    }
    const uint32_t* words = spikes[first] + slice * kWords % kLoad;
    if (digit == 0) rows[slice] = slice == 0 ? weights_at : kept(weights_at ^ slice * S::kSliceBytes);
    uint32_t weights[S::kTiles][4];
    unroll_while<S::kTiles>([&](auto tile) {
      ldmatrix<digit * S::kDigitBytes + 16 * tile.value * S::kDepth>(weights[tile.value], rows[slice]);
      return true;
    });
#pragma unroll
    for (int t = 0; t < S::kColumns; ++t) {
      const bool sure =
          S::kTiming == Timing::kWindow || t % 2 == 1 || t == 0 || (S::kStepWarps == 1 && t < S::kLeastSteps);
      if (!sure && t >= steps) break;
      uint32_t b[2];
      unroll<2>([&](int r) { b[r] = S::kTiming == Timing::kWindow ? words[2 * t + r] : words[r] >> t & 0x01010101u; });
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) mma(sums[digit][tile * S::kColumns + t], weights[tile], b);
    }
    return true;
  });
}

// Of a pair the sums of four neighbouring outputs for the first (side 0) or second of the thread's pixels.
template <class S>
__device__ __forceinline__ Vec<int32_t, 4> sums_of(const Sums<S>& sums, int pair, int side, int column) {
  return generate<4>([&](int i) { return sums[(2 * pair + i / 2) * S::kColumns + column][i % 2 * 2 + side]; });
}

}  // namespace tandem::cuda
