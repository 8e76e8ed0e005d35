// How a block's stages are filled: sixteen bytes at a time, by running pointers. A thread copies the same piece of a
// stage every time, of one or more rows; its place in the weights moves on by the depth of a stage, its place in a
// window by so many taps and channels.
#pragma once

#include "../layer.h"
#include "product_tile.cuh"

namespace tandem::cuda {

// A depth as a tap of the window and a channel in it.
struct Tap {
  int r, s, c;
};

// Geometry in numbers that are cheap on the device. Groups are the blocks' z.
struct DeviceGeometry {
  const uint8_t* planes;
  const void* weight;  // [outputs, taps, group_channels]
  int64_t plane;       // bytes of one
  int64_t pixels;      // batch * out_size
  int P;
  int height, width, channels;
  int out_width, out_size;
  int group_channels, group_outputs;
  int taps, kernel_width;
  int stride[2], padding[2], dilation[2];
  int depth;            // taps * group_channels
  Tap stage;            // kTileDepth, in taps and channels
  bool weight_aligned;  // sixteen bytes from a multiple of sixteen on are neighbours in a row and can be moved at once
  bool spikes_aligned;
};

// The tap so much further on, where `by` is less than a row of taps and a pixel's channels each.
__device__ __forceinline__ void advance(Tap& tap, const DeviceGeometry& g, const Tap& by) {
  tap.c += by.c;
  tap.s += by.s;
  tap.r += by.r;
  if (tap.c >= g.group_channels) {
    tap.c -= g.group_channels;
    ++tap.s;
  }
  if (tap.s >= g.kernel_width) {
    tap.s -= g.kernel_width;
    ++tap.r;
  }
}

// A row of spikes: a pixel's window in one plane.
struct Window {
  const uint8_t* image;  // null: no such pixel
  int y, x;              // of its corner
};

__device__ __forceinline__ Window find_window(const DeviceGeometry& g, int p, int64_t pixel) {
  if (pixel >= g.pixels) return {nullptr, 0, 0};
  const int64_t b = g.out_size == 1 ? pixel : pixel / g.out_size;
  const int in_image = static_cast<int>(pixel - b * g.out_size);
  const int y = in_image / g.out_width;
  const int x = in_image - y * g.out_width;
  const int64_t image = p * g.plane + b * g.height * g.width * g.channels;
  return {g.planes + image + static_cast<int>(blockIdx.z) * g.group_channels, y * g.stride[0] - g.padding[0],
          x * g.stride[1] - g.padding[1]};
}

template <class S>
class Filler {
  using Weight = typename S::Weight;
  static constexpr int kElements = 16 / S::kWeightSize;
  static constexpr int kPieces = kTileDepth / kElements;  // of a row of weights
  static constexpr int kRows = S::kThreads / kPieces;     // of weights that the block copies at once
  static constexpr int kTurns = S::kOutputs / kRows;
  // A thread that copies rows of two planes copies those of the same pixel.
  static constexpr int kWindows = S::kPlanes > 1 ? 1 : S::kSpikeTurns;
  static_assert(kWindows == S::kSpikeTurns || S::kThreads / S::kSpikePieces == S::kPixels, "a plane a turn");
  static_assert(S::kThreads % kPieces == 0 && S::kOutputs % kRows == 0 && S::kThreads % S::kSpikePieces == 0,
                "a thread copies one and the same piece of every row");

 public:
  __device__ __forceinline__ Filler(const DeviceGeometry& g, int first_plane) {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t output = static_cast<int64_t>(blockIdx.y) * S::kOutputs + thread / kPieces;
    const int k = thread % kPieces * kElements;
    rows_ = static_cast<int>(g.group_outputs - output < S::kOutputs ? g.group_outputs - output : S::kOutputs);
    weights_ = static_cast<const Weight*>(g.weight) +
               (blockIdx.z * static_cast<int64_t>(g.group_outputs) + output) * g.depth + k;
    const int spike_k = thread % S::kSpikePieces * 16;
    tap_ = {0, 0, spike_k};
    if (g.taps > 1) {
      const int tap = spike_k / g.group_channels;
      tap_ = {tap / g.kernel_width, tap % g.kernel_width, spike_k - tap * g.group_channels};
    }
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      const int row = (i * S::kThreads + thread) / S::kSpikePieces;
      planes_ = g.P - first_plane - row / S::kPixels;  // the same for all i
      const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + row % S::kPixels;
      windows_[i] = planes_ > 0 ? find_window(g, g.P - planes_, pixel) : Window{nullptr, 0, 0};
    }
  }

  // Requests the next stage, whose depths begin at `first`.
  __device__ __forceinline__ void fill(unsigned char* stage, const DeviceGeometry& g, int first) {
    const int thread = static_cast<int>(threadIdx.x);
    const int k = first + thread % kPieces * kElements;
    const int spike_k = first + thread % S::kSpikePieces * 16;
    unsigned char* to = stage + thread / kPieces * S::kWeightRow + thread % kPieces * 16;
    const int rows = k < g.depth ? rows_ : 0;
    const Weight* from = weights_;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      copy_weights(to + turn * kRows * S::kWeightRow, from, g, k, turn * kRows < rows);
      from += kRows * static_cast<int64_t>(g.depth);
    }
#pragma unroll
    for (int turn = 0; turn < S::kSpikeTurns; ++turn) {
      const int row = (turn * S::kThreads + thread) / S::kSpikePieces;
      if (row < S::kPlanes * S::kPixels) {
        copy_spikes(stage + S::kWeightBytes + row * S::kSpikeRow + thread % S::kSpikePieces * 16, g, spike_k,
                    windows_[turn % kWindows], turn / kWindows);
      }
    }
    weights_ += kTileDepth;
    advance(tap_, g, g.stage);
  }

 private:
  __device__ __forceinline__ void copy_weights(unsigned char* to, const Weight* from, const DeviceGeometry& g, int k,
                                               bool exists) const {
    if (g.weight_aligned) {
      cp_async_16(to, from, exists);
      return;
    }
    for (int i = 0; i < kElements; ++i) {
      reinterpret_cast<Weight*>(to)[i] = exists && k + i < g.depth ? from[i] : Weight{};
    }
  }

  __device__ __forceinline__ void copy_spikes(unsigned char* to, const DeviceGeometry& g, int k, const Window& window,
                                              int plane) const {
    Tap tap = tap_;
    const auto at = [&] {
      const int y = window.y + tap.r * g.dilation[0];
      const int x = window.x + tap.s * g.dilation[1];
      const bool inside = window.image != nullptr && plane < planes_ && k < g.depth &&
                          static_cast<unsigned>(y) < static_cast<unsigned>(g.height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(g.width);
      return inside ? window.image + plane * g.plane + (static_cast<int64_t>(y) * g.width + x) * g.channels + tap.c
                    : nullptr;
    };
    if (g.spikes_aligned) {
      const uint8_t* from = at();
      cp_async_16(to, from, from != nullptr);
      return;
    }
    for (int i = 0; i < 16; ++i, ++k) {
      const uint8_t* from = at();
      to[i] = from != nullptr ? *from : 0;
      advance(tap, g, {0, 0, 1});
    }
  }

  int rows_;  // of weights from its own on, no more than the block's
  const Weight* weights_;
  Tap tap_;
  int planes_;  // from its own on
  Window windows_[kWindows];
};

}  // namespace tandem::cuda
