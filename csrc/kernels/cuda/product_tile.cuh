// A block's tile of the product y[t] = W s[t]: its stages in shared memory and their multiplication on the tensor
// cores, weights as digits times spikes as bytes. A row of the product is an output, a column a pixel at one step. A
// sample of a linear layer is an image of one pixel.
#pragma once

#include "digits.h"
#include "vec.cuh"

namespace tandem::cuda {

constexpr int kMmaOutputs = 16, kMmaPixels = 8, kMmaDepth = 32;

// The least shared memory of a multiprocessor: before Ampere, since.
constexpr int kLeastShared = 64 * 1024, kLeastSharedAmpere = 100 * 1024;
// Bytes of shared memory that a block needs beyond what it asks for.
TANDEM_HOST_DEVICE constexpr int reserved(int shared_memory) { return shared_memory < kLeastSharedAmpere ? 0 : 1024; }

// What a block or a warp computes.
template <int outputs, int pixels, int steps = 1>
struct Tile {
  static constexpr int kOutputs = outputs, kPixels = pixels, kSteps = steps;
};

// Step timing. A stage has one digit of kDepth inputs: the highest digit of all inputs comes first, then the sums are
// shifted and the next digit follows. kDepthWarps warps split the depth of a warp's tile and add up their sums.
template <class Block, class Warp, int depth_warps = 1>
struct StepTiles : Block {
  using W = Warp;
  static constexpr Timing kTiming = Timing::kStep;
  static constexpr int kDepth = 128, kDepthWarps = depth_warps, kDigits = 1, kSums = 1;
};
// Window timing: the bytes are counts. A stage has all digits, up to kDigits, of kDepth inputs. With two sums the
// lowest digit has its own, since the sum of all may not fit; products of digits above are shifted and added to the
// last sum.
template <class Block, class Warp, int depth, int digits, int sums>
struct CountTiles : Block {
  using W = Warp;
  static constexpr Timing kTiming = Timing::kWindow;
  static constexpr int kDepth = depth, kDepthWarps = 1, kDigits = digits, kSums = sums;
};

// All kernels, by the tiles of a block and of each warp: outputs, pixels and steps. choose_kernel() takes one of them.
struct Wide4 : StepTiles<Tile<64, 64, 4>, Tile<32, 16, 4>> {};
struct Wide8 : StepTiles<Tile<64, 32, 8>, Tile<64, 8, 4>> {};
struct Wide16 : StepTiles<Tile<32, 16, 16>, Tile<32, 8, 8>> {};
struct Deep4 : StepTiles<Tile<64, 16, 4>, Tile<64, 8, 4>, 4> {};
struct Deep8 : StepTiles<Tile<32, 16, 8>, Tile<32, 8, 8>, 4> {};
struct Deep16 : StepTiles<Tile<32, 16, 16>, Tile<32, 8, 8>, 2> {};
struct Narrow4 : StepTiles<Tile<64, 8, 4>, Tile<64, 8, 4>, 4> {};
struct Narrow8 : StepTiles<Tile<32, 8, 8>, Tile<32, 8, 8>, 4> {};
struct Narrow16 : StepTiles<Tile<32, 8, 16>, Tile<32, 8, 8>, 4> {};
struct LargeCounts : CountTiles<Tile<128, 256>, Tile<64, 64>, 32, 2, 1> {};
struct WideCounts : CountTiles<Tile<128, 128>, Tile<32, 64>, 32, kMostDigits, 2> {};
struct NarrowCounts : CountTiles<Tile<32, 64>, Tile<32, 16>, 64, kMostDigits, 2> {};

template <class Tiles>
struct TileShape : Tiles {
  using Tiles::kOutputs, Tiles::kPixels, Tiles::kSteps, Tiles::kDepth, Tiles::kDepthWarps, Tiles::kDigits, Tiles::kSums,
      Tiles::kTiming;
  using Warp = typename Tiles::W;

  // A warp multiplies kTiles mma tiles of sixteen outputs by kColumns operands, of eight pixels at a step each.
  static constexpr int kTiles = Warp::kOutputs / kMmaOutputs, kGroups = Warp::kPixels / kMmaPixels;
  static constexpr int kWarpSteps = Warp::kSteps, kColumns = kGroups * kWarpSteps;
  static constexpr int kThreadSums = kSums * kTiles * kColumns * 4;
  static constexpr int kOutWarps = kOutputs / Warp::kOutputs, kPixelWarps = kPixels / Warp::kPixels;
  static constexpr int kStepWarps = kSteps / kWarpSteps;
  static constexpr int kWarps = kOutWarps * kPixelWarps * kStepWarps * kDepthWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr bool kRounds = kSteps > kPlaneSteps;  // longer windows take several rounds
  static constexpr int kPlanes = kRounds ? kSteps / kPlaneSteps : 1;
  static constexpr int kPlaneSums = kSteps < kPlaneSteps ? kSteps : kPlaneSteps;
  static constexpr int kLeastSteps = kSteps == 8 ? 5 : 1;  // shorter windows have a shape of their own
  static_assert(kPlaneSteps % kWarpSteps == 0, "a warp's steps are in one plane");

  // A stage: of kDepth inputs rows of spikes, then rows of weights for each digit. In each line of 128 bytes the
  // sixteens are permuted, so that eight rows of one depth are in different banks; the next eight are permuted alike.
  static TANDEM_HOST_DEVICE constexpr unsigned swizzled(unsigned row, unsigned depth) {
    const unsigned byte = row * kDepth + depth;
    return byte ^ byte / 128 % (kDepth / 16) * 16;
  }
  static constexpr int kSpikeBytes = kPlanes * kPixels * kDepth, kDigitBytes = kOutputs * kDepth;
  static TANDEM_HOST_DEVICE constexpr int stage_bytes(int digits) { return kSpikeBytes + digits * kDigitBytes; }
  // A warp multiplies a stage slice by slice, each the depth of an mma; those of other depth warps lie between.
  static constexpr int kSliceBytes = kMmaDepth * kDepthWarps;
  static constexpr int kSlices = kDepth / kSliceBytes;

  // Two mma tiles are a pair. Of it a thread has the sums of four neighbouring outputs for each of two neighbouring
  // pixels: the rows of weights are in that order.
  static constexpr int kPairs = kTiles / 2;
  static __device__ __forceinline__ constexpr int output_of(int row) {
    return row / 8 % 4 + row % 8 * 4 + row / 32 * 32;
  }
  // Warps exchange their sums of a plane, of every second pixel, in shared memory: [depth warp, item, step, lane]. An
  // item is what one warp integrates, a pair's outputs at eight pixels; a warp has kWarpItems at most. With window
  // timing each thread stores the sums of a pair for itself.
  static constexpr int kPixelItems = kPixels / kMmaPixels, kItems = kOutputs / 32 * kPixelItems;
  static constexpr int kWarpItems = (kItems + kWarps - 1) / kWarps;
  static_assert(kTiming == Timing::kWindow || kWarpItems <= 2, "a warp has two items at most");
  static constexpr int kSumBytes =
      kTiming == Timing::kWindow ? 16 * kThreads * 2 * kGroups : 16 * 32 * kPlaneSums * kItems * kDepthWarps;
  // The state of neurons between two planes: four rows of sixteen bytes a thread, one of eight.
  static constexpr int kStateRow = 16 * 32 * kItems * 2;
  static constexpr int kStateBytes = kRounds ? 9 * kStateRow / 2 : 0;

  // Shared memory of a block whose ring has so many stages, of so many digits each. The state lies behind the ring.
  static TANDEM_HOST_DEVICE constexpr int ring_bytes(int stages, int digits) {
    return stages * stage_bytes(digits) > kSumBytes ? stages * stage_bytes(digits) : kSumBytes;
  }
  static TANDEM_HOST_DEVICE constexpr int block_bytes(int stages, int digits) {
    return ring_bytes(stages, digits) + kStateBytes;
  }

  // Blocks that share a multiprocessor, as far as registers and shared memory allow. Eight warps that split a depth
  // are for grids that have fewer blocks than the card has multiprocessors; on Turing copies need registers.
  static TANDEM_HOST_DEVICE constexpr int blocks(int shared_memory) {
    const bool alone = kDepthWarps > 1 || kThreadSums > 64 || shared_memory < kLeastSharedAmpere;
    const int wanted = kThreads == 128 ? 3 : alone ? 1 : 2;
    const int fitting = shared_memory / (block_bytes(2, kDigits) + reserved(shared_memory));
    return fitting < 1 ? 1 : fitting < wanted ? fitting : wanted;
  }
  // For __launch_bounds__.
  static constexpr int kBlocks = kFewRegisters && kGroups > 1 ? 1 : blocks(kAmpere ? kLeastSharedAmpere : kLeastShared);

  // The stages of the ring on a card with this shared memory per multiprocessor, one of 2, 3, 4 and 8; 0: no two fit.
  static constexpr int stages(int shared_memory, int digits) {
    const int least = shared_memory < kLeastSharedAmpere ? kLeastShared : kLeastSharedAmpere;
    const int room = shared_memory / blocks(least) - reserved(shared_memory);
    for (const int stages : {kDepthWarps > 1 || kTiming == Timing::kWindow ? 8 : 4, 4, 3, 2}) {
      if (block_bytes(stages, digits) <= room) return stages;
    }
    return 0;
  }

  // The thread's position in the block's tile.
  struct Position {
    unsigned thread = threadIdx.x;
    int lane = thread % 32;
    int g = lane / 4;
    int q = lane % 4;
    int warp = thread / 32;
    int row = warp / kPixelWarps % kOutWarps * Warp::kOutputs;                // first of the warp's outputs
    int column = warp % kPixelWarps * Warp::kPixels;                          // first of its pixels
    int step = warp / (kPixelWarps * kOutWarps) % kStepWarps * Warp::kSteps;  // first of its steps
    int depth = warp / (kPixelWarps * kOutWarps * kStepWarps);
  };
};

// Of each mma tile and column of a warp.
template <class S>
using Sums = int32_t[S::kTiles][S::kColumns][4];

// Adds the products of one stage, which has so many digits. A byte of a spike plane has eight steps, so one load of
// spikes serves all steps of a warp. `steps`: that are left in the round, from the warp's first; products of steps
// beyond it are left out, in pairs. The next slice of the depth lies in the same line, which is permuted: an XOR of the
// address.
template <class S>
__device__ __forceinline__ void multiply_stage(uint32_t weights_at, uint32_t spikes_at, int digits, int step, int steps,
                                               Sums<S> (&sums)[S::kSums]) {
  // Words of spikes: for each slice and group of pixels the halves of the depth. An ldmatrix loads four, of two groups
  // or, if a warp has one group, of two slices.
  constexpr int kWords = 2 * S::kGroups, kLoad = S::kSlices * kWords < 4 ? 2 : 4;
  constexpr int kSliceLoads = kWords < kLoad ? 1 : kWords / kLoad;
  uint32_t spikes[S::kSlices * kWords / kLoad][kLoad];
  unroll_while<S::kSlices>([&](auto slice) {
    constexpr int kFirst = slice.value * kWords / kLoad;
    if constexpr (slice.value * kWords % kLoad == 0) {
      unroll_while<kSliceLoads>([&](auto i) {
        uint32_t (&loaded)[kLoad] = spikes[kFirst + i.value];
        ldmatrix<i.value * 2 * kMmaPixels * S::kDepth>(loaded, spikes_at ^ slice.value * S::kSliceBytes);
        if (S::kWarpSteps < S::kPlaneSums) unroll<kLoad>([&](int r) { loaded[r] >>= step; });
        return true;
      });
    }
    const auto word = [&](int i) {
      return spikes[(slice.value * kWords + i) / kLoad][(slice.value * kWords + i) % kLoad];
    };
    const uint32_t rows = weights_at ^ slice.value * S::kSliceBytes;
    unroll_while<S::kDigits>([&](auto digit) {
      if (digit.value > 0 && digit.value >= digits) return false;
      uint32_t weights[S::kTiles][4];
      unroll_while<S::kTiles>([&](auto tile) {
        ldmatrix<digit.value * S::kDigitBytes + kMmaOutputs * tile.value * S::kDepth>(weights[tile.value], rows);
        return true;
      });
      unroll<S::kGroups>([&](int group) {
#pragma unroll
        for (int t = 0; t < S::kWarpSteps; ++t) {
          const bool sure = t % 2 == 1 || t == 0 || (S::kStepWarps == 1 && t < S::kLeastSteps);
          if (!sure && t >= steps) break;
          uint32_t b[2];
          unroll<2>([&](int half) {
            b[half] = word(2 * group + half);
            if (S::kTiming == Timing::kStep) b[half] = b[half] >> t & 0x01010101u;
          });
          unroll<S::kTiles>([&](int tile) {
            constexpr int kOwn = digit.value < S::kSums ? digit.value : S::kSums - 1;
            int32_t (&sum)[4] = sums[kOwn][tile][group * S::kWarpSteps + t];
            if (digit.value == kOwn) return mma(sum, weights[tile], b);
            int32_t products[4] = {};
            mma(products, weights[tile], b);
            unroll<4>([&](int i) { add_product<1 << 8 * (digit.value - kOwn)>(sum[i], products[i]); });
          });
        }
      });
      return true;
    });
    return true;
  });
}

// Of a pair the sums of four neighbouring outputs for the first (side 0) or second of the thread's pixels.
template <class S>
__device__ __forceinline__ Vec<int32_t, 4> sums_of(const Sums<S>& sums, int pair, int side, int column) {
  return generate<4>([&](int i) { return sums[2 * pair + i / 2][column][i % 2 * 2 + side]; });
}

}  // namespace tandem::cuda
