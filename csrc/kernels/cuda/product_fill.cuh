// How a block's stages are filled: sixteen bytes at a time, or eight or four where no more are aligned, by running
// pointers. A thread copies the same piece of a stage every time, of one or more rows; its place in the weights moves
// on by the depth of a stage, its place in a window by so many taps and channels.
#pragma once

#include "digits.h"
#include "product_tile.cuh"

namespace tandem::cuda {

// A depth as a tap of the window and a channel in it.
struct Tap {
  int r, s, c;
};

// Geometry in numbers that are cheap on the device. Groups are the blocks' z.
struct DeviceGeometry {
  const uint8_t* planes;
  const void* weight;           // [outputs, taps, group_channels], or digits of these
  int64_t weight_row;           // from one output to the next, in elements
  const float* units;           // of digits: what a sum of 1 is worth, by output
  const int32_t* digit_counts;  // and how many an output has
  int64_t plane;                // bytes of one
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
  int weight_bytes, spike_bytes;  // that are neighbours and aligned in every row: 16, 8, 4, or fewer
  bool outputs_aligned;           // four neighbours can be moved together
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
  const uint8_t* image;  // of one tap: where it is; null: no such pixel
  int y, x;              // of its corner
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
  static constexpr int kPieces = kTileDepth / kElements;  // of a row of weights
  static constexpr int kRows = S::kThreads / kPieces;     // of weights that the block copies at once
  static constexpr int kTurns = S::kOutputs / kRows;
  // A thread that copies rows of two planes copies those of the same pixel.
  static constexpr int kWindows = S::kPlanes > 1 ? 1 : S::kSpikeTurns;
  static_assert(kWindows == S::kSpikeTurns || S::kThreads / S::kSpikePieces == S::kPixels, "a plane a turn");
  static_assert(S::kThreads % kPieces == 0 && S::kOutputs % kRows == 0 && S::kThreads % S::kSpikePieces == 0,
                "a thread copies one and the same piece of every row");

 public:
  // `digits`: the number of the first one of the weights, and one.
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

  // Goes back to the first stage, and on to the next lower digit.
  __device__ __forceinline__ void begin_digit(const DeviceGeometry& g, int stages) {
    weights_ -= stages * kTileDepth + g.weight_row / kMostDigits;
    weights_left_ += stages * kTileDepth;
    tap_ = first_tap(g);
    --digit_;
  }

  // Requests the next stage.
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

  // The channels of a tap, null outside of the image and the kernel.
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
  int64_t row_step_;  // to the row of the next turn
  int weights_to_, spikes_to_;
  int weights_left_;  // of the depth, from its own piece on
  int rows_;          // of weights, from its own on
  int digit_;
  int digit_counts_[S::Operands::kDigits ? kTurns : 1];  // of its rows
  Tap tap_;
  int planes_;  // from its own on
  Window windows_[kWindows];
};

// Of the block's outputs, the most that one has; 1 where weights are no digits.
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

// Adds the products of all depths with the spikes of a round, whose first plane this is: of the weights, or of their
// digits below `digits`, down to the `lowest`.
template <class S>
__device__ __forceinline__ void multiply(const DeviceGeometry& g, int first_plane, int digits, int lowest,
                                         unsigned char* memory, const typename S::Place& at, Sums<S>& sums) {
  const Shared ring(memory);
  const int depths = static_cast<int>((static_cast<unsigned>(g.depth) + kTileDepth - 1) / kTileDepth);
  const int stages = S::Operands::kDigits ? (digits - lowest) * depths : depths;
  const int ahead = min(stages, S::kStages - 1);  // that are on their way while one is multiplied
  Filler<S> filler(g, first_plane, digits);
  int filled = 0, full = 0;
  int left_to_fill = depths, left = depths;  // of a digit
  const auto next = [](int stage) { return stage == (S::kStages - 1) * S::kStageBytes ? 0 : stage + S::kStageBytes; };
#pragma unroll 1
  for (int stage = -ahead; stage < stages; ++stage) {
    if (stage >= 0) {
      if (ahead == S::kStages - 1) {
        cp_async_wait<S::kStages - 2>();
      } else {
        cp_async_wait<0>();  // nothing more will come
      }
      __syncthreads();  // this stage has come, and the one that is requested next has been read
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
