// Fills a block's stages in shared memory by asynchronous copies of sixteen bytes, or of fewer where the number of
// channels allows no more. A thread copies the same piece of every stage, in one or more rows, and keeps its position:
// in the depth, and in the receptive field by tap and channel.
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
  int taps, kernel_width;
  bool is_linear;
  int stride[2], padding[2], dilation[2];
  int depth;             // taps * group_channels
  Tap stage;             // kTileDepth, in taps and channels
  int spike_bytes;       // bytes of spikes that one copy can move: 16, 8, 4 or 1
  bool is_short;         // 16, and the kernel has one tap: most of all in linear layers
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
  int y, x;               // of that pixel; outside for every tap if there is no such output pixel

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

// Where a tap lies, from the corner of a receptive field. Taps behind the last one are for the caller to leave out.
struct Reach {
  int y, x;
  int64_t bytes;

  __device__ __forceinline__ Reach(const DeviceGeometry& g, const Tap& tap)
      : y(kept(tap.r * g.dilation[0])),
        x(kept(tap.s * g.dilation[1])),
        bytes((static_cast<int64_t>(y) * g.width + x) * g.channels + tap.c) {}
  __device__ __forceinline__ bool is_inside(const DeviceGeometry& g, const Window& window) const {
    const bool above = static_cast<unsigned>(window.y + y) < static_cast<unsigned>(g.height);
    return above & (static_cast<unsigned>(window.x + x) < static_cast<unsigned>(g.width));
  }
};

template <class S>
class Filler {
  static constexpr int kPieces = kTileDepth / 16;      // copies in a row of a stage
  static constexpr int kRows = S::kThreads / kPieces;  // rows that the block copies at once
  static constexpr int kWeightTurns = S::kOutputs / kRows;
  static constexpr int kSpikeRows = S::kPlanes * S::kPixels;
  static constexpr int kSpikeTurns = (kSpikeRows + kRows - 1) / kRows;
  static_assert(S::kOutputs % kRows == 0, "a thread copies one and the same piece of every row");

 public:
  // The first digit to copy is number digits - 1.
  __device__ __forceinline__ Filler(const DeviceGeometry& g, uint32_t ring, int thread, int first_plane, int digits)
      : digit_(digits - 1), top_(digits - 1) {
    const int row = thread / kPieces;
    k_ = first();
    weights_to_ = kept(ring + S::row_of(thread / kPieces) * S::kRow + k_);
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + row;
    const int64_t channel = blockIdx.z * static_cast<int64_t>(g.group_outputs) + output;
    depth_ = kept_if<S::kCounted>(g.depth);
    row_step_ = kept_if<S::kCounted>(kRows * g.digit_rows);
    to_top_ = kept_if<S::kCounted>((digits - 1) * g.digit_row);
    weights_ = g.digits + channel * g.digit_rows + digit_ * g.digit_row;
    unroll<kWeightTurns>([&](int turn) {
      const bool exists = output + turn * kRows < g.group_outputs;
      digit_counts_[turn] = exists ? g.digit_counts[channel + turn * kRows] : 0;
    });
    spikes_to_ = kept(ring + S::kWeightBytes + row * S::kRow + k_);
    if (!g.is_short) tap_ = tap_at(g, k_);
    unroll<kSpikeTurns>([&](int turn) {
      const int of = row + turn * kRows;
      const int plane = first_plane + of / S::kPixels;
      const bool exists = of < kSpikeRows && plane < g.P;
      const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + of % S::kPixels;
      Window& window = windows_[turn];
      window = find_window(g, g.planes + plane * g.plane + static_cast<int64_t>(blockIdx.z) * g.group_channels,
                           exists ? pixel : g.pixels);
      if (g.is_short && !Reach(g, {}).is_inside(g, window)) window.x = INT_MIN;
    });
  }

  // Starts the copies of the next stage's weights, and of spikes where they are others than those of the stage before.
  // Returns whether they are.
  __device__ __forceinline__ bool fill(int slot, int spike_slot, const DeviceGeometry& g) {
    const int digit = k_ < depth_ ? digit_ : kMostDigits;
    const int8_t* from = weights_ + k_;
    unroll<kWeightTurns>([&](int turn) {
      const uint32_t to = weights_to_ + slot + S::row_of(turn * kRows) * S::kRow;
      cp_async<16>(to, from + turn * row_step_, digit < digit_counts_[turn]);
    });
    const bool others = !S::kCounted || digit_ == top_;
    if (others) fill_spikes(spikes_to_ + spike_slot, g);
    move(g);
    return others;
  }

 private:
  static __device__ __forceinline__ int first() { return static_cast<int>(threadIdx.x) % kPieces * 16; }

  // With steps the sums of all digits are one, so a stage follows the next depth of the same digit, the highest first.
  // Counts have sums for each digit: all digits of a depth follow each other and share its counts.
  __device__ __forceinline__ void move(const DeviceGeometry& g) {
    if constexpr (S::kCounted) {
      const bool last = digit_ == 0;
      weights_ += last ? to_top_ : -g.digit_row;
      digit_ = last ? top_ : digit_ - 1;
      k_ += last ? kTileDepth : 0;
    } else {
      k_ += kTileDepth;
      if (k_ - first() < depth_) return;
      weights_ -= g.digit_row;
      --digit_;
      k_ = first();
      if (!g.is_short) tap_ = tap_at(g, k_);
    }
  }

  __device__ __forceinline__ void fill_spikes(uint32_t to, const DeviceGeometry& g) {
    if (g.is_short) {
      each_row([&](int turn, const Window& window) {
        cp_async<16>(to + turn * kRows * S::kRow, window.corner + k_, (k_ < depth_) & (window.x != INT_MIN));
      });
      return;
    }
    if (g.spike_bytes == 16) {
      copy_spikes<16>(to, g);
    } else if (g.spike_bytes == 8) {
      copy_spikes<8>(to, g);
    } else if (g.spike_bytes == 4) {
      copy_spikes<4>(to, g);
    } else {
      copy_spikes<1>(to, g);
    }
    advance(tap_, g, g.stage);
  }

  template <int bytes>
  __device__ __forceinline__ void copy_spikes(uint32_t to, const DeviceGeometry& g) const {
    Tap tap = tap_;
#pragma unroll 1
    for (int i = 0; i < 16; i += bytes) {
      const Reach reach(g, tap);
      each_row([&](int turn, const Window& window) {
        const bool inside = (k_ + i < depth_) & reach.is_inside(g, window);
        cp_async<bytes>(to + (turn * kRows * S::kRow + i), window.corner + reach.bytes, inside);
      });
      if constexpr (bytes < 16) advance(tap, g, {0, 0, bytes});
    }
  }

  // Calls copy(turn, window) for the rows of spikes that the thread copies.
  template <class Copy>
  __device__ __forceinline__ void each_row(const Copy& copy) const {
    unroll<kSpikeTurns>([&](int turn) {
      const bool all = kSpikeRows % kRows == 0;
      if (all || turn * kRows + static_cast<int>(threadIdx.x) / kPieces < kSpikeRows) copy(turn, windows_[turn]);
    });
  }

  const int8_t* weights_;  // the current digit of the thread's first row
  uint32_t weights_to_, spikes_to_;
  int64_t row_step_, to_top_;  // from a row of the thread's to its next; from the lowest digit to the highest
  int k_, depth_;              // depth of the thread's piece, and the number of inputs
  int digit_, top_;
  int digit_counts_[kWeightTurns];  // of the thread's rows
  Tap tap_;
  Window windows_[kSpikeTurns];
};

// The largest number of digits among the block's outputs.
template <class S>
__device__ __forceinline__ int count_digits(const DeviceGeometry& g) {
  const int output = static_cast<int>(blockIdx.y) * S::kOutputs + static_cast<int>(threadIdx.x) % 32;
  const int32_t* counts = g.digit_counts + blockIdx.z * static_cast<int64_t>(g.group_outputs) + output;
  int most = 0;
  unroll<S::kOutputs / 32>([&](int i) {
    if (output + 32 * i < g.group_outputs) most = max(most, counts[32 * i]);
  });
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
template <class S>
__device__ __forceinline__ void multiply(const DeviceGeometry& g, int first_plane, int steps, int digits,
                                         unsigned char* memory, const typename S::Place& at,
                                         Sums<S> (&sums)[S::kDigits]) {
  const uint32_t ring = shared_address(memory);
  const int depths = static_cast<int>((static_cast<unsigned>(g.depth) + kTileDepth - 1) / kTileDepth);
  const int stages = kept(digits * depths);
  const int turns = S::kCounted ? digits : depths;
  const int last = kept_if<S::kCounted>((g.stages - 1) * S::kStageBytes);
  Filler<S> filler(g, ring, at.thread, first_plane, digits);
  const int rows = at.step / kPlaneSteps * S::kPixels + at.column + at.lane % 8 +
                   (S::kCounted ? at.lane / 16 * kMmaPixels : 0);  // counts: the upper lanes point to the second group
  const int depth = at.depth * kMmaDepth;
  const uint32_t weights = kept(ring + (at.row + at.lane % 16) * S::kRow + depth + at.lane / 16 * 16);
  const uint32_t spikes = kept(ring + S::kWeightBytes + rows * S::kRow + depth + at.lane / 8 % 2 * 16);
  int filled = 0, full = 0;                // the slots of weights
  int spikes_filled = 0, spikes_full = 0;  // and of spikes
  int left = turns;
  const auto next = [&](int slot) { return slot == last ? 0 : slot + S::kStageBytes; };
  const int in_flight = g.stages - 2;
#pragma unroll 1
  for (int stage = -1 - in_flight; stage < stages; ++stage) {
    if (stage >= 0) {
      wait_for_copies(in_flight);
      __syncthreads();  // this stage has arrived, and the slot that is filled next is no longer read
    }
    if (stage + in_flight + 1 < stages) {
      const bool others = filler.fill(filled, S::kCounted ? spikes_filled : filled, g);
      filled = next(filled);
      if (S::kCounted && others) spikes_filled = next(spikes_filled);
    }
    cp_async_commit();
    if (stage < 0) continue;
    --left;
    if constexpr (S::kCounted) {
      unroll_while<S::kDigits>([&](auto digit) {
        if (digit.value != left) return true;
        multiply_stage<S>(weights + full, spikes + spikes_full, 0, 0, sums[digit.value]);
        return false;
      });
    } else if (!S::kRounds || at.step < steps) {
      multiply_stage<S>(weights + full, spikes + full, at.step % kPlaneSteps, steps - at.step, sums[0]);
    }
    full = next(full);
    if (left > 0) continue;
    left = turns;
    if constexpr (S::kCounted) {
      spikes_full = next(spikes_full);
    } else if (stage + 1 < stages) {  // They may wrap around modulo 2^32, but the final sums fit.
      each_sum<S>(sums[0], [](int32_t& sum, int) { sum = static_cast<int32_t>(static_cast<uint32_t>(sum) << 8); });
    }
  }
}

}  // namespace tandem::cuda
