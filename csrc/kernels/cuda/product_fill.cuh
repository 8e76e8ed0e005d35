// Fills a block's stages in shared memory by asynchronous copies of sixteen bytes, or of fewer where the alignment
// allows no more. A thread copies the same piece of every stage, in one or more rows. So it keeps running positions:
// from stage to stage its pointer into the weights advances by the depth of a stage, its position in the receptive
// field by as many taps and channels.
#pragma once

#include "digits.h"
#include "product_tile.cuh"

namespace tandem::cuda {

// One input of an output pixel: row and column of the kernel, and channel.
struct Tap {
  int r, s, c;
};

// The geometry in 32-bit numbers, which are cheap on the device. blockIdx.z is the group.
struct DeviceGeometry {
  const uint8_t* planes;
  const void* weight;           // [outputs, taps, group_channels], or their digits (digits.h)
  int64_t weight_row;           // from one output to the next, in elements
  const float* units;           // [outputs], for digits: the value of a sum of 1
  const int32_t* digit_counts;  // [outputs], for digits: how many an output has
  int64_t plane;                // bytes per plane
  int64_t pixels;               // batch * out_size
  int P;
  int height, width, channels;
  int out_width, out_size;
  int group_channels, group_outputs;
  int taps, kernel_height, kernel_width;
  bool is_linear;
  int stride[2], padding[2], dilation[2];
  int depth;                      // taps * group_channels
  Tap stage;                      // kTileDepth, in taps and channels
  int weight_bytes, spike_bytes;  // bytes that one copy can move: 16, 8, 4 or fewer
  bool outputs_aligned;           // four neighbouring outputs can be loaded and stored together
};

// Moves `tap` on by `by`, where by.s < kernel_width and by.c < group_channels.
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

// The receptive field of an output pixel in one plane: a row of spikes in a stage.
struct Window {
  const uint8_t* image;  // the sample's image; with one tap, the input pixel; null if there is no such pixel
  int y, x;              // of the top left corner
};

__device__ __forceinline__ Window find_window(const DeviceGeometry& g, int p, int64_t pixel) {
  if (pixel >= g.pixels) return {nullptr, 0, 0};
  const uint8_t* plane = g.planes + p * g.plane + static_cast<int>(blockIdx.z) * g.group_channels;
  if (g.is_linear) return {plane + pixel * g.channels, 0, 0};
  const int64_t b = quotient(pixel, g.out_size);
  const int in_image = static_cast<int>(pixel - b * g.out_size);
  const int y = in_image / g.out_width;
  const int x = in_image - y * g.out_width;
  const uint8_t* image = plane + b * g.height * g.width * g.channels;
  const Window window{image, y * g.stride[0] - g.padding[0], x * g.stride[1] - g.padding[1]};
  if (g.taps > 1) return window;
  const bool inside = static_cast<unsigned>(window.y) < static_cast<unsigned>(g.height) &&
                      static_cast<unsigned>(window.x) < static_cast<unsigned>(g.width);
  return {inside ? image + (static_cast<int64_t>(window.y) * g.width + window.x) * g.channels : nullptr, 0, 0};
}

template <class S>
class Filler {
  using Weight = typename S::Weight;
  static constexpr int kElements = 16 / S::kWeightSize;
  static constexpr int kPieces = kTileDepth / kElements;  // per row of weights
  static constexpr int kRows = S::kThreads / kPieces;     // rows of weights that the block copies at once
  static constexpr int kTurns = S::kOutputs / kRows;
  // A thread that copies rows of two planes copies the same pixel of both.
  static constexpr int kWindows = S::kPlanes > 1 ? 1 : S::kSpikeTurns;
  static_assert(kWindows == S::kSpikeTurns || S::kThreads / S::kSpikePieces == S::kPixels, "a plane a turn");
  static_assert(S::kThreads % kPieces == 0 && S::kOutputs % kRows == 0 && S::kThreads % S::kSpikePieces == 0,
                "a thread copies one and the same piece of every row");

 public:
  // The first digit to copy is number digits - 1.
  __device__ __forceinline__ Filler(const DeviceGeometry& g, int first_plane, int digits) : digit_(digits - 1) {
    const int thread = static_cast<int>(threadIdx.x);
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + thread / kPieces;
    const int k = thread % kPieces * kElements;
    weights_to_ = S::row_of(threadIdx.x / kPieces) * S::kWeightRow + thread % kPieces * 16;
    weights_left_ = g.depth - k;
    row_step_ = kRows * g.weight_row;
    rows_ = g.group_outputs - output;
    const int64_t channel = blockIdx.z * static_cast<int64_t>(g.group_outputs) + output;
    weights_ = static_cast<const Weight*>(g.weight) + channel * g.weight_row + k;
    if constexpr (S::Operands::kDigits) {
      weights_ += digit_ * (g.weight_row / kMostDigits);
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        digit_counts_[turn] = turn * kRows < rows_ ? g.digit_counts[channel + turn * kRows] : 0;
      }
    }
    spikes_to_ = S::kWeightBytes + thread / S::kSpikePieces * S::kSpikeRow + thread % S::kSpikePieces * 16;
    tap_ = first_tap(g);
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      const int row = (i * S::kThreads + thread) / S::kSpikePieces;
      planes_ = g.P - first_plane - row / S::kPixels;  // the same for all i
      const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + row % S::kPixels;
      windows_[i] = planes_ > 0 ? find_window(g, g.P - planes_, pixel) : Window{nullptr, 0, 0};
    }
  }

  // Returns to the first depth, for the next lower digit.
  __device__ __forceinline__ void begin_digit(const DeviceGeometry& g, int stages) {
    weights_ -= stages * kTileDepth + g.weight_row / kMostDigits;
    weights_left_ += stages * kTileDepth;
    tap_ = first_tap(g);
    --digit_;
  }

  // Starts the copies of the next stage.
  __device__ __forceinline__ void fill(Shared stage, const DeviceGeometry& g) {
    copy_weights(stage + weights_to_, g);
    weights_ += kTileDepth;
    weights_left_ -= kTileDepth;
#pragma unroll
    for (int turn = 0; turn < S::kSpikeTurns; ++turn) {
      constexpr int kRowsOfTurn = S::kThreads / S::kSpikePieces;
      const int left = S::kPlanes * S::kPixels - turn * kRowsOfTurn;
      if (left < kRowsOfTurn && static_cast<int>(threadIdx.x) / S::kSpikePieces >= left) continue;
      copy_spikes(stage + (spikes_to_ + turn * kRowsOfTurn * S::kSpikeRow), g, windows_[turn % kWindows],
                  turn / kWindows);
    }
    if (g.taps > 1) {
      advance(tap_, g, g.stage);
    } else {
      tap_.c += kTileDepth;
    }
  }

 private:
  static __device__ __forceinline__ Tap first_tap(const DeviceGeometry& g) {
    const int k = static_cast<int>(threadIdx.x) % S::kSpikePieces * 16;
    if (g.taps == 1) return {0, 0, k};
    const int tap = k / g.group_channels;
    return {tap / g.kernel_width, tap % g.kernel_width, k - tap * g.group_channels};
  }

  __device__ __forceinline__ void copy_weights(Shared to, const DeviceGeometry& g) const {
    if (S::Operands::kDigits || g.weight_bytes == 16) {
      const int rows = weights_left_ > 0 ? rows_ : 0;
      const int digit = weights_left_ > 0 ? digit_ : kMostDigits;
      const Weight* from = weights_;
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const bool exists = S::Operands::kDigits ? digit < digit_counts_[turn] : turn * kRows < rows;
        cp_async<16>(to + S::row_of(turn * kRows) * S::kWeightRow, from, exists);
        from += row_step_;
      }
    } else if (g.weight_bytes == 8) {
      copy_weights_by<8>(to);
    } else if (g.weight_bytes == 4) {
      copy_weights_by<4>(to);
    } else {
      copy_weights_by<S::kWeightSize>(to);
    }
  }

  template <int bytes>
  __device__ __forceinline__ void copy_weights_by(Shared to) const {
    constexpr int kStep = bytes / S::kWeightSize;
#pragma unroll 1
    for (int at = 0; at < kTurns * kElements; at += kStep) {
      const int turn = at / kElements;
      const int i = at % kElements;
      const Shared piece = to + (S::row_of(turn * kRows) * S::kWeightRow + i * S::kWeightSize);
      const Weight* from = weights_ + turn * row_step_ + i;
      const bool exists = turn * kRows < rows_ && i < weights_left_;
      if constexpr (bytes >= 4) {
        cp_async<bytes>(piece, from, exists);
      } else {
        *reinterpret_cast<Weight*>(piece.pointer) = exists ? *from : Weight{};
      }
    }
  }

  // The spikes of a tap's channels; null outside of the image or of the kernel.
  __device__ __forceinline__ const uint8_t* find(const DeviceGeometry& g, const Window& window, int plane,
                                                 const Tap& tap) const {
    if (window.image == nullptr || plane >= planes_) return nullptr;
    const uint8_t* image = window.image + plane * g.plane + tap.c;
    if (g.taps == 1) return tap.c < g.depth ? image : nullptr;
    const int y = window.y + tap.r * g.dilation[0];
    const int x = window.x + tap.s * g.dilation[1];
    const bool inside = tap.r < g.kernel_height && static_cast<unsigned>(y) < static_cast<unsigned>(g.height) &&
                        static_cast<unsigned>(x) < static_cast<unsigned>(g.width);
    return inside ? image + (static_cast<int64_t>(y) * g.width + x) * g.channels : nullptr;
  }

  __device__ __forceinline__ void copy_spikes(Shared to, const DeviceGeometry& g, const Window& window,
                                              int plane) const {
    if (g.spike_bytes == 16) {
      const uint8_t* from = find(g, window, plane, tap_);
      cp_async<16>(to, from, from != nullptr);
    } else if (g.spike_bytes == 8) {
      copy_spikes_by<8>(to, g, window, plane);
    } else if (g.spike_bytes == 4) {
      copy_spikes_by<4>(to, g, window, plane);
    } else {
      copy_spikes_by<1>(to, g, window, plane);
    }
  }

  template <int bytes>
  __device__ __forceinline__ void copy_spikes_by(Shared to, const DeviceGeometry& g, const Window& window,
                                                 int plane) const {
    Tap tap = tap_;
#pragma unroll 1
    for (int i = 0; i < 16; i += bytes) {
      const uint8_t* from = find(g, window, plane, tap);
      if constexpr (bytes >= 4) {
        cp_async<bytes>(to + i, from, from != nullptr);
      } else {
        to.pointer[i] = from != nullptr ? *from : 0;
      }
      if (g.taps > 1) {
        advance(tap, g, {0, 0, bytes});
      } else {
        tap.c += bytes;
      }
    }
  }

  const Weight* weights_;
  int64_t row_step_;  // elements from a turn's row to the next turn's
  int weights_to_, spikes_to_;
  int weights_left_;  // depth that is left, from the thread's piece on
  int rows_;          // rows of weights that are left, from the thread's row on
  int digit_;
  int digit_counts_[S::Operands::kDigits ? kTurns : 1];  // of the thread's rows
  Tap tap_;
  int planes_;  // planes that are left, from the thread's plane on
  Window windows_[kWindows];
};

// The largest number of digits among the block's outputs; 1 if the weights are not digits.
template <class S>
__device__ __forceinline__ int count_digits(const DeviceGeometry& g) {
  if (!S::Operands::kDigits) return 1;
  int most = 0;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < S::kOutputs; i += 32) {
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + i;
    if (output >= g.group_outputs) break;
    most = max(most, g.digit_counts[blockIdx.z * static_cast<int64_t>(g.group_outputs) + output]);
  }
  int count = kMostDigits;
  while (count > 0 && !__any_sync(0xffffffffu, most >= count)) --count;
  return count;
}

// Adds the products of the whole depth with the spikes of a round that begins at plane `first_plane`. Weights in digits
// are multiplied digit by digit, from digits - 1 down to `lowest`.
template <class S>
__device__ __forceinline__ void multiply(const DeviceGeometry& g, int first_plane, int digits, int lowest,
                                         unsigned char* memory, const typename S::Place& at, Sums<S>& sums) {
  const Shared ring(memory);
  const int depths = static_cast<int>((static_cast<unsigned>(g.depth) + kTileDepth - 1) / kTileDepth);
  const int stages = S::Operands::kDigits ? (digits - lowest) * depths : depths;
  const int ahead = min(stages, S::kStages - 1);  // stages in flight while one is multiplied
  Filler<S> filler(g, first_plane, digits);
  int filled = 0, full = 0;
  int left_to_fill = depths, left = depths;  // stages of the current digit
  const auto next = [](int stage) { return stage == (S::kStages - 1) * S::kStageBytes ? 0 : stage + S::kStageBytes; };
#pragma unroll 1
  for (int stage = -ahead; stage < stages; ++stage) {
    if (stage >= 0) {
      if (ahead == S::kStages - 1) {
        cp_async_wait<S::kStages - 2>();
      } else {
        cp_async_wait<0>();  // all stages have been requested
      }
      __syncthreads();  // this stage has arrived, and the slot that is filled next is no longer read
    }
    if (stage + ahead < stages) {
      filler.fill(ring + filled, g);
      if (S::Operands::kDigits && --left_to_fill == 0) {
        filler.begin_digit(g, depths);
        left_to_fill = depths;
      }
    }
    cp_async_commit();
    filled = next(filled);
    if (stage < 0) continue;
    if (S::Operands::kDigits && left-- == 0) {
      begin_digit<S>(sums);
      left = depths - 1;
    }
    multiply_stage<S>(ring + full, at, sums);
    full = next(full);
  }
}

}  // namespace tandem::cuda
