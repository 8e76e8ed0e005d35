// A block's tile of the product y[t] = W s[t]: its stages in shared memory, how they are filled and multiplied. A row
// of the product is an output, a column a pixel at one step; a linear layer's sample is an image of one pixel.
#pragma once

#include "../layer.h"
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

// Geometry in numbers that are cheap on the device. Groups are the blocks' z.
struct DeviceGeometry {
  const uint8_t* planes;
  const void* weight;  // [outputs, taps, group_channels]
  int64_t batch;
  int64_t pixels;  // batch * out_size
  int P;
  int height, width, channels;
  int out_width, out_size;
  int group_channels, group_outputs;
  int taps, kernel_width;
  int stride[2], padding[2], dilation[2];
  int depth;            // taps * group_channels
  bool weight_aligned;  // sixteen bytes from a multiple of sixteen on are neighbours in a row and can be moved at once
  bool spikes_aligned;
};

// A row of spikes: a pixel's window in one plane.
struct Window {
  const uint8_t* image;  // null: no such pixel
  int y, x;              // of its corner
};

__device__ __forceinline__ Window find_window(const DeviceGeometry& g, int p, int64_t pixel) {
  if (p >= g.P || pixel >= g.pixels) return {nullptr, 0, 0};
  const int64_t b = g.out_size == 1 ? pixel : pixel / g.out_size;
  const int in_image = static_cast<int>(pixel - b * g.out_size);
  const int y = in_image / g.out_width;
  const int x = in_image - y * g.out_width;
  const int64_t image = (p * g.batch + b) * g.height * g.width * g.channels;
  return {g.planes + image + static_cast<int>(blockIdx.z) * g.group_channels, y * g.stride[0] - g.padding[0],
          x * g.stride[1] - g.padding[1]};
}

// Sixteen bytes of a window from depth k on: depths are taps, and in each of them channels.
__device__ __forceinline__ void copy_spikes(unsigned char* to, const DeviceGeometry& g, const Window& window, int k) {
  int tap = 0;
  int r = 0;
  if (g.taps > 1) {
    tap = k / g.group_channels;
    r = tap / g.kernel_width;
  }
  int c = k - tap * g.group_channels;
  int s = tap - r * g.kernel_width;
  const auto at = [&] {
    const int y = window.y + r * g.dilation[0];
    const int x = window.x + s * g.dilation[1];
    const bool inside = window.image != nullptr && k < g.depth &&
                        static_cast<unsigned>(y) < static_cast<unsigned>(g.height) &&
                        static_cast<unsigned>(x) < static_cast<unsigned>(g.width);
    return inside ? window.image + (static_cast<int64_t>(y) * g.width + x) * g.channels + c : nullptr;
  };
  if (g.spikes_aligned) {
    const uint8_t* from = at();
    cp_async_16(to, from, from != nullptr);
    return;
  }
  for (int i = 0; i < 16; ++i, ++k) {
    const uint8_t* from = at();
    to[i] = from != nullptr ? *from : 0;
    if (++c == g.group_channels) {
      c = 0;
      if (++s == g.kernel_width) {
        s = 0;
        ++r;
      }
    }
  }
}

// Sixteen bytes of a row of weights.
template <class E>
__device__ __forceinline__ void copy_weights(unsigned char* to, const DeviceGeometry& g, int64_t output, int k) {
  const bool exists = output < g.group_outputs;
  const E* row =
      static_cast<const E*>(g.weight) + (blockIdx.z * static_cast<int64_t>(g.group_outputs) + output) * g.depth;
  if (g.weight_aligned) {
    cp_async_16(to, row + k, exists && k < g.depth);
    return;
  }
  for (int i = 0; i < 16 / static_cast<int>(sizeof(E)); ++i) {
    reinterpret_cast<E*>(to)[i] = exists && k + i < g.depth ? row[k + i] : E{};
  }
}

// The rows of spikes that the running thread copies, for the planes from first_plane on.
template <class S>
__device__ __forceinline__ void find_windows(const DeviceGeometry& g, int first_plane,
                                             Window (&windows)[S::kSpikeTurns]) {
#pragma unroll
  for (int turn = 0; turn < S::kSpikeTurns; ++turn) {
    const int row = (turn * S::kThreads + static_cast<int>(threadIdx.x)) / S::kSpikePieces;
    windows[turn] = find_window(g, first_plane + row / S::kPixels,
                                static_cast<int64_t>(blockIdx.x) * S::kPixels + row % S::kPixels);
  }
}

// Requests the block's weights and spikes at the depths [k, k + kTileDepth).
template <class S>
__device__ __forceinline__ void fill_stage(unsigned char* stage, const DeviceGeometry& g,
                                           const Window (&windows)[S::kSpikeTurns], int k) {
  constexpr int kElements = 16 / S::kWeightSize;
  constexpr int kPieces = kTileDepth / kElements;
  for (int i = static_cast<int>(threadIdx.x); i < S::kOutputs * kPieces; i += S::kThreads) {
    const int row = i / kPieces;
    const int piece = i % kPieces;
    copy_weights<typename S::Weight>(stage + row * S::kWeightRow + 16 * piece, g,
                                     static_cast<int64_t>(blockIdx.y) * S::kOutputs + row, k + piece * kElements);
  }
#pragma unroll
  for (int turn = 0; turn < S::kSpikeTurns; ++turn) {
    const int i = turn * S::kThreads + static_cast<int>(threadIdx.x);
    const int row = i / S::kSpikePieces;
    const int piece = i % S::kSpikePieces;
    if (row < S::kPlanes * S::kPixels) {
      copy_spikes(stage + S::kWeightBytes + row * S::kSpikeRow + 16 * piece, g, windows[turn], k + 16 * piece);
    }
  }
}

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
