// Fills a block's stages in shared memory by asynchronous copies of sixteen bytes, or of fewer where the number of
// channels allows no more. A thread copies the same piece of every stage, in one or more rows. So it keeps running
// positions: from stage to stage its pointer into the weights advances by the depth of a stage, its position in the
// receptive field by as many taps and channels.
#pragma once

#include <climits>

#include "product_tile.cuh"

namespace tandem::cuda {

// One input of an output pixel: row and column of the kernel, and channel.
struct Tap {
  int r, s, c;
};

// The geometry in 32-bit numbers, which are cheap on the device. blockIdx.z is the group.
struct DeviceGeometry {
  const uint8_t* planes;
  const int8_t* digits;         // [outputs, digit, row] (digits.h)
  int64_t digit_row;            // bytes of a digit
  int64_t digit_rows;           // bytes of an output
  const float* units;           // [outputs], the value of a sum of 1
  const int32_t* digit_counts;  // [outputs], how many an output has
  int64_t plane;                // bytes per plane
  int64_t pixels;               // batch * out_size
  int P;
  int height, width, channels;
  int out_width, out_size;
  int group_channels, group_outputs;
  int taps, kernel_height, kernel_width;
  bool is_linear;
  int stride[2], padding[2], dilation[2];
  int depth;             // taps * group_channels
  Tap stage;             // kTileDepth, in taps and channels
  int spike_bytes;       // bytes of spikes that one copy can move: 16, 8, 4 or 1
  int stages;            // of the ring
  bool outputs_aligned;  // four neighbouring outputs can be loaded and stored together
  bool gate_bytes;       // the mask has a byte for each neuron instead of a bit
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

__device__ __forceinline__ Tap tap_at(const DeviceGeometry& g, int k) {
  const int tap = k / g.group_channels;
  const int r = tap / g.kernel_width;
  return {r, tap - r * g.kernel_width, k - tap * g.group_channels};
}

// The receptive field of an output pixel in one plane: a row of spikes in a stage.
struct Window {
  const uint8_t* corner;  // of its top left pixel, which may lie outside of the image
  int y, x;               // of that pixel; outside for every tap if there is no such output pixel. For copy_channels()
                          // x is the number of channels, 0 outside

  // Whether the only tap of a kernel of one pixel lies inside.
  __device__ __forceinline__ bool is_pixel(int height, int width) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(height) &&
           static_cast<unsigned>(x) < static_cast<unsigned>(width);
  }
};

__device__ __forceinline__ Window find_window(const DeviceGeometry& g, const uint8_t* plane, int64_t pixel) {
  constexpr int kOutside = INT_MIN;
  if (pixel >= g.pixels) return {plane, kOutside, 0};
  if (g.is_linear) return {plane + pixel * g.channels, 0, 0};
  const int64_t b = quotient(pixel, g.out_size);
  const int in_image = static_cast<int>(pixel - b * g.out_size);
  const int oy = in_image / g.out_width;
  const int y = oy * g.stride[0] - g.padding[0];
  const int x = (in_image - oy * g.out_width) * g.stride[1] - g.padding[1];
  return {plane + ((b * g.height + y) * g.width + x) * g.channels, y, x};
}

// Where a tap lies, from the corner of a receptive field.
struct Reach {
  int y, x;
  int64_t bytes;
  bool exists;  // no tap is behind the last one

  __device__ __forceinline__ Reach(const DeviceGeometry& g, const Tap& tap)
      : y(tap.r * g.dilation[0]),
        x(tap.s * g.dilation[1]),
        bytes((static_cast<int64_t>(y) * g.width + x) * g.channels + tap.c),
        exists(tap.r < g.kernel_height) {}
  __device__ __forceinline__ bool is_inside(const DeviceGeometry& g, const Window& window) const {
    return exists && static_cast<unsigned>(window.y + y) < static_cast<unsigned>(g.height) &&
           static_cast<unsigned>(window.x + x) < static_cast<unsigned>(g.width);
  }
};

template <class S>
class Filler {
  static constexpr int kPieces = kTileDepth / 16;      // copies in a row of a stage
  static constexpr int kRows = S::kThreads / kPieces;  // rows that the block copies at once
  static constexpr int kWeightTurns = S::kOutputs / kRows;
  static constexpr int kSpikeRows = S::kPlanes * S::kPixels;
  static constexpr int kSpikeTurns = (kSpikeRows + kRows - 1) / kRows;
  // A thread that copies rows of two planes copies the same pixel of both.
  static constexpr int kWindows = S::kPlanes > 1 ? 1 : kSpikeTurns;
  static_assert(kWindows == kSpikeTurns || kRows == S::kPixels, "a plane a turn");
  static_assert(S::kOutputs % kRows == 0, "a thread copies one and the same piece of every row");

 public:
  // The first digit to copy is number digits - 1.
  __device__ __forceinline__ Filler(const DeviceGeometry& g, int first_plane, int digits) : digit_(digits - 1) {
    const int row = static_cast<int>(threadIdx.x) / kPieces;
    const int k = static_cast<int>(threadIdx.x) % kPieces * 16;
    weights_to_ = S::row_of(threadIdx.x / kPieces) * S::kRow + k;
    weights_left_ = g.depth - k;
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + row;
    const int64_t channel = blockIdx.z * static_cast<int64_t>(g.group_outputs) + output;
    weights_ = g.digits + channel * g.digit_rows + digit_ * g.digit_row + k;
#pragma unroll
    for (int turn = 0; turn < kWeightTurns; ++turn) {
      const bool exists = output + turn * kRows < g.group_outputs;
      digit_counts_[turn] = exists ? g.digit_counts[channel + turn * kRows] : 0;
    }
    spikes_to_ = S::kWeightBytes + row * S::kRow + k;
    tap_ = tap_at(g, k);
    planes_ = g.P - first_plane - row / S::kPixels % S::kPlanes;
    const uint8_t* plane = g.planes + (g.P - planes_) * g.plane + static_cast<int64_t>(blockIdx.z) * g.group_channels;
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      const int of = row + i * kRows;
      const bool exists = planes_ > 0 && of < kSpikeRows;
      const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + of % S::kPixels;
      windows_[i] = find_window(g, plane, exists ? pixel : g.pixels);
      if (is_short(g)) windows_[i].x = windows_[i].is_pixel(g.height, g.width) ? g.depth : 0;
    }
  }

  // Moves on from digit to digit, and by `depth` inputs.
  __device__ __forceinline__ void move(const DeviceGeometry& g, int digits, int depth) {
    weights_ += depth - digits * g.digit_row;
    weights_left_ -= depth;
    digit_ -= digits;
  }
  // Returns the spikes to the first depth.
  __device__ __forceinline__ void rewind_spikes(const DeviceGeometry& g) {
    tap_ = tap_at(g, static_cast<int>(threadIdx.x) % kPieces * 16);
  }

  // Starts the copies of a stage's weights.
  __device__ __forceinline__ void fill_weights(Shared stage, const DeviceGeometry& g) const {
    const int digit = weights_left_ > 0 ? digit_ : kMostDigits;
    const int8_t* from = weights_;
#pragma unroll
    for (int turn = 0; turn < kWeightTurns; ++turn) {
      cp_async<16>(stage + (weights_to_ + S::row_of(turn * kRows) * S::kRow), from, digit < digit_counts_[turn]);
      from += kRows * g.digit_rows;
    }
  }
  // Starts the copies of the next depth's spikes.
  __device__ __forceinline__ void fill_spikes(Shared stage, const DeviceGeometry& g) {
    if (is_short(g)) {
      copy_channels(stage + spikes_to_, g);
      return;
    }
    if (g.spike_bytes == 16) {
      copy_spikes<16>(stage + spikes_to_, g);
    } else if (g.spike_bytes == 8) {
      copy_spikes<8>(stage + spikes_to_, g);
    } else if (g.spike_bytes == 4) {
      copy_spikes<4>(stage + spikes_to_, g);
    } else {
      copy_spikes<1>(stage + spikes_to_, g);
    }
    advance(tap_, g, g.stage);
  }

 private:
  // The short way for kernels of one pixel, most of all for linear layers.
  static __device__ __forceinline__ bool is_short(const DeviceGeometry& g) {
    return g.spike_bytes == 16 && g.taps == 1;
  }
  __device__ __forceinline__ void copy_channels(Shared to, const DeviceGeometry& g) {
#pragma unroll
    for (int turn = 0; turn < kSpikeTurns; ++turn) {
      if (turn * kRows + static_cast<int>(threadIdx.x) / kPieces >= kSpikeRows) continue;
      const int plane = turn / kWindows;
      const Window& window = windows_[turn % kWindows];
      const bool inside = plane < planes_ && tap_.c < window.x;
      cp_async<16>(to + turn * kRows * S::kRow, window.corner + plane * g.plane + tap_.c, inside);
    }
    tap_.c += kTileDepth;
  }

  template <int bytes>
  __device__ __forceinline__ void copy_spikes(Shared to, const DeviceGeometry& g) const {
    Tap tap = tap_;
#pragma unroll 1
    for (int i = 0; i < 16; i += bytes) {
      const Reach reach(g, tap);
#pragma unroll
      for (int turn = 0; turn < kSpikeTurns; ++turn) {
        if (turn * kRows + static_cast<int>(threadIdx.x) / kPieces >= kSpikeRows) continue;
        const int plane = turn / kWindows;
        const Window& window = windows_[turn % kWindows];
        const bool inside = plane < planes_ && reach.is_inside(g, window);
        const uint8_t* from = window.corner + reach.bytes + plane * g.plane;
        const Shared at = to + (turn * kRows * S::kRow + i);
        if constexpr (bytes >= 4) {
          cp_async<bytes>(at, from, inside);
        } else {
          *at.pointer = inside ? *from : 0;
        }
      }
      if constexpr (bytes < 16) advance(tap, g, {0, 0, bytes});
    }
  }

  const int8_t* weights_;
  int weights_to_, spikes_to_;
  int weights_left_;  // depth that is left, from the thread's piece on
  int digit_;
  int digit_counts_[kWeightTurns];  // of the thread's rows
  Tap tap_;
  int planes_;  // planes that are left, from the thread's plane on
  Window windows_[kWindows];
};

// The largest number of digits among the block's outputs.
template <class S>
__device__ __forceinline__ int count_digits(const DeviceGeometry& g) {
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

// Waits until at most `groups` of the last copies are in flight, one of the numbers that Shape::stages() leads to.
__device__ __forceinline__ void wait_for_copies(int groups) {
  if (groups == 0) return cp_async_wait<0>();
  if (groups == 1) return cp_async_wait<1>();
  if (groups == 2) return cp_async_wait<2>();
  cp_async_wait<6>();
}

// Adds the products of the whole depth with the spikes of a round of `steps` steps that begins at plane `first_plane`.
// With steps the sums of all digits are one, so a stage follows the next depth of the same digit, the highest first.
// Counts have sums for each digit: all digits of a depth follow each other and share its counts.
template <class S>
__device__ __forceinline__ void multiply(const DeviceGeometry& g, int first_plane, int steps, int digits,
                                         unsigned char* memory, const typename S::Place& at,
                                         Sums<S> (&sums)[S::kDigits]) {
  const Shared ring(memory);
  const int depths = static_cast<int>((static_cast<unsigned>(g.depth) + kTileDepth - 1) / kTileDepth);
  const int stages = digits * depths;
  const int turns = S::kCounted ? digits : depths;  // stages until a digit or a depth is done
  const int ahead = min(stages, g.stages - 1);      // stages in flight while one is multiplied
  const int in_flight = ahead == g.stages - 1 ? ahead - 1 : 0;
  const int last = (g.stages - 1) * S::kStageBytes;
  Filler<S> filler(g, first_plane, digits);
  int filled = 0, full = 0;                // the slots of weights
  int spikes_filled = 0, spikes_full = 0;  // and of spikes
  int left_to_fill = turns, left = turns;
  const auto next = [&](int stage) { return stage == last ? 0 : stage + S::kStageBytes; };
#pragma unroll 1
  for (int stage = -ahead; stage < stages; ++stage) {
    if (stage >= 0) {
      wait_for_copies(in_flight);
      __syncthreads();  // this stage has arrived, and the slot that is filled next is no longer read
    }
    if (stage + ahead < stages) {
      filler.fill_weights(ring + filled, g);
      if (!S::kCounted || left_to_fill == turns) {
        filler.fill_spikes(ring + (S::kCounted ? spikes_filled : filled), g);
        spikes_filled = next(spikes_filled);
      }
      if (--left_to_fill > 0) {
        S::kCounted ? filler.move(g, 1, 0) : filler.move(g, 0, kTileDepth);
      } else {
        S::kCounted ? filler.move(g, 1 - turns, kTileDepth) : filler.move(g, 1, (1 - turns) * kTileDepth);
        if (!S::kCounted) filler.rewind_spikes(g);
        left_to_fill = turns;
      }
    }
    cp_async_commit();
    filled = next(filled);
    if (stage < 0) continue;
    if constexpr (S::kCounted) {
      unroll_while<S::kDigits>([&](auto digit) {
        if (digit.value != left - 1) return true;
        multiply_stage<S>(ring + full, ring + spikes_full, at, steps, sums[digit.value]);
        return false;
      });
      if (--left == 0) {
        spikes_full = next(spikes_full);
        left = turns;
      }
    } else {
      if (left-- == 0) {
        begin_digit<S>(sums[0]);
        left = turns - 1;
      }
      multiply_stage<S>(ring + full, ring + full, at, steps, sums[0]);
    }
    full = next(full);
  }
}

}  // namespace tandem::cuda
