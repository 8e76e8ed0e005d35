// Fills a block's stages in shared memory. A thread copies the same piece of sixteen bytes of every stage, in one or
// more rows, and keeps its position: in the depth, and in the receptive field by tap and channel. Copies are
// asynchronous, of fewer bytes each where the number of channels allows no more. Those of single bytes, and all on
// Turing, pass through registers: all are loaded, then each piece is stored.
#pragma once

#include <climits>

#include "product_tile.cuh"

namespace tandem::cuda {

// One input of an output pixel: its place in the receptive field from the top left pixel on, and its channel.
struct Tap {
  int y, x, c;
};

// The geometry in 32-bit numbers, which are cheap on the device. blockIdx.z is the group.
struct DeviceGeometry {
  const uint8_t* stored;
  Digits weights;
  int64_t outputs;
  int64_t plane;   // bytes per plane
  int64_t pixels;  // batch * out_size
  int P;
  int height, width, channels;
  int out_width, out_size;
  int group_channels, group_outputs;
  int kernel_width;
  bool is_linear;
  int stride[2], padding[2], dilation[2];
  int field_width;  // of the receptive field
  Tap stage;        // the move by a stage
  int depth;        // inputs of an output
  int spike_bytes;  // that one copy can move: 16, 8, 4 or 1
  bool is_matrix;   // the kernel has one tap, as in linear layers, and spike_bytes is 16
  int stages;       // of the ring
  int stage_bytes;
  bool outputs_aligned;  // four neighbouring outputs can be loaded and stored together
  bool gate_bytes;       // the mask has a byte for each neuron instead of a bit
};

// Moves `tap` on by a distance of less than the field's width and a row of channels.
__device__ __forceinline__ void advance(Tap& tap, const DeviceGeometry& g, const Tap& distance) {
  tap = {tap.y + distance.y, tap.x + distance.x, tap.c + distance.c};
  if (tap.c >= g.group_channels) {
    tap.c -= g.group_channels;
    tap.x += g.dilation[1];
  }
  if (tap.x >= g.field_width) {
    tap.x -= g.field_width;
    tap.y += g.dilation[0];
  }
}

// The tap of input k.
TANDEM_HOST_DEVICE Tap tap_at(const DeviceGeometry& g, int k) {
  const int tap = k / g.group_channels, c = k - tap * g.group_channels;
  const int r = tap / g.kernel_width;
  return {r * g.dilation[0], (tap - r * g.kernel_width) * g.dilation[1], c};
}

// The receptive field of an output pixel in one plane: a row of spikes in a stage.
struct Patch {
  const uint8_t* corner;  // of its top left pixel, which may lie outside of the image
  int y, x;               // of that pixel; outside for every tap if there is no such output pixel

  __device__ __forceinline__ const uint8_t* address(const DeviceGeometry& g, const Tap& tap) const {
    return corner + static_cast<int64_t>(tap.y * g.width + tap.x) * g.channels + tap.c;
  }
  // Whether a tap lies in the image. Taps behind the last one are for the caller to leave out.
  __device__ __forceinline__ bool has(const DeviceGeometry& g, const Tap& tap) const {
    const bool above = static_cast<unsigned>(y + tap.y) < static_cast<unsigned>(g.height);
    return above & (static_cast<unsigned>(x + tap.x) < static_cast<unsigned>(g.width));
  }
};

__device__ __forceinline__ Patch find_patch(const DeviceGeometry& g, const uint8_t* plane, int64_t pixel) {
  if (pixel >= g.pixels) return {plane, INT_MIN, 0};
  if (g.is_linear) return {plane + pixel * g.channels, 0, 0};
  const int64_t b = pixel / g.out_size;
  const int in_image = static_cast<int>(pixel - b * g.out_size);
  const int oy = in_image / g.out_width;
  const int y = oy * g.stride[0] - g.padding[0];
  const int x = (in_image - oy * g.out_width) * g.stride[1] - g.padding[1];
  return {plane + ((b * g.height + y) * g.width + x) * g.channels, y, x};
}

template <class S>
class Filler {
  static constexpr int kPieces = S::kDepth / 16;       // in a row of a stage
  static constexpr int kRows = S::kThreads / kPieces;  // rows that the block copies at once
  static constexpr int kRowBytes = kRows * S::kDepth;
  static constexpr int kWeightRows = S::kOutputs / kRows;  // that a thread copies
  static constexpr int kSpikeRows = S::kPlanes * S::kPixels;
  static constexpr int kSpikeCopies = (kSpikeRows + kRows - 1) / kRows;
  static_assert(S::kOutputs % kRows == 0 && kRows % 16 == 0, "a thread's rows are permuted alike");
  using Piece = Vec<uint32_t, 4>;

 public:
  __device__ __forceinline__ Filler(const DeviceGeometry& g, uint32_t ring, unsigned thread, int first_plane,
                                    int digits)
      : k_(first()), digits_(digits), digit_(S::kTiming == Timing::kWindow ? 0 : digits - 1) {
    const int row = static_cast<int>(thread / kPieces);
    weights_to_ = ring + S::kSpikeBytes + S::swizzled(row, k_);
    spikes_to_ = ring + S::swizzled(row, k_);
    const int output = static_cast<int>(blockIdx.y) * S::kOutputs + S::output_of(row);
    const int64_t channel = blockIdx.z * static_cast<int64_t>(g.group_outputs) + output;
    weights_ = g.weights.digits + channel * g.weights.output + digit_ * g.weights.row + k_;
    unroll<kWeightRows>([&](int copy) {
      const int further = S::output_of(copy * kRows);
      digit_counts_[copy] = output + further < g.group_outputs ? g.weights.counts[channel + further] : 0;
    });
    tap_ = tap_at(g, k_);
    unroll<kSpikeCopies>([&](int copy) {
      const int spike_row = row + copy * kRows;
      const int plane = first_plane + spike_row / S::kPixels;
      const bool exists = spike_row < kSpikeRows && plane < g.P;
      const int64_t pixel = static_cast<int64_t>(blockIdx.x) * S::kPixels + spike_row % S::kPixels;
      const uint8_t* spikes = g.stored + plane * g.plane + static_cast<int64_t>(blockIdx.z) * g.group_channels;
      patches_[copy] = find_patch(g, spikes, exists ? pixel : g.pixels);
    });
  }

  // Starts the copies of the next stage to its slot; store() ends those that pass through registers.
  __device__ __forceinline__ void load(int slot, const DeviceGeometry& g) {
    const uint32_t to = weights_to_ + slot;
    each_weight([&](auto copy, auto digit, auto offset) {
      const int8_t* from = weights_ + S::output_of(copy.value * kRows) * g.weights.output + digit.value * g.weights.row;
      const int count = k_ < g.depth ? digit_counts_[copy.value] : 0;
      const bool exists = (S::kTiming == Timing::kWindow ? digit.value : digit_) < count;
      copy_piece<offset.value>(to, from, exists, weight_pieces_[copy.value][digit.value]);
    });
    load_spikes(spikes_to_ + slot, g);
    k_ += S::kDepth;
    weights_ += S::kDepth;
    if (S::kTiming == Timing::kWindow || k_ - first() < g.depth) return;
    weights_ -= k_ - first() + g.weights.row;
    --digit_;
    k_ = first();
    tap_ = tap_at(g, k_);
  }

  __device__ __forceinline__ void store(int slot) const {
    if constexpr (kAmpere) return;
    each_weight([&](auto copy, auto digit, auto offset) {
      store_shared<offset.value>(weights_to_ + slot, weight_pieces_[copy.value][digit.value].at);
    });
    store_spikes(spikes_to_ + slot);
  }

 private:
  static __device__ __forceinline__ int first() { return static_cast<int>(threadIdx.x % kPieces * 16); }

  template <int offset>
  static __device__ __forceinline__ void copy_piece(uint32_t to, const void* from, bool exists, Piece& piece) {
    if constexpr (kAmpere) {
      cp_async<16, offset>(to, from, exists);
    } else {
      piece = exists ? *static_cast<const Piece*>(from) : Piece{};
    }
  }

  // Copies what the image has behind the last tap, too: there the weights are zeros.
  __device__ __forceinline__ void load_spikes(uint32_t to, const DeviceGeometry& g) {
    if (g.spike_bytes == 16) {
      each_row([&](auto copy, const Patch& patch) {
        const bool exists = patch.has(g, tap_);
        copy_piece<copy.value * kRowBytes>(to, patch.address(g, tap_), exists, spike_pieces_[copy.value]);
      });
    } else if (g.spike_bytes == 1) {
      load_words<1>(g);
      if constexpr (kAmpere) store_spikes(to);
    } else if constexpr (!kAmpere) {
      load_words<4>(g);
    } else {
      g.spike_bytes == 8 ? copy_parts<8>(to, g) : copy_parts<4>(to, g);
    }
    advance(tap_, g, g.stage);
  }

  template <int bytes>
  __device__ __forceinline__ void copy_parts(uint32_t to, const DeviceGeometry& g) const {
    Tap tap = tap_;
#pragma unroll 1
    for (int i = 0; i < 16; i += bytes) {
      each_row([&](auto copy, const Patch& patch) {
        cp_async<bytes, copy.value * kRowBytes>(to + i, patch.address(g, tap), patch.has(g, tap));
      });
      advance(tap, g, {0, 0, bytes});
    }
  }

  // Loads the bytes of a word one by one, or all four.
  template <int bytes>
  __device__ __forceinline__ void load_words(const DeviceGeometry& g) {
    using Part = std::conditional_t<bytes == 1, uint8_t, uint32_t>;
    Tap tap = tap_;
    unroll<4>([&](int word) {
      uint32_t parts[4 / bytes][kSpikeCopies];
      unroll<4 / bytes>([&](int i) {
        each_row([&](auto copy, const Patch& patch) {
          const auto* from = reinterpret_cast<const Part*>(patch.address(g, tap));
          parts[i][copy.value] = patch.has(g, tap) ? *from : 0;
        });
        advance(tap, g, {0, 0, bytes});
      });
      each_row([&](auto copy, const Patch&) {
        uint32_t& all = spike_pieces_[copy.value].at[word] = 0;
        unroll<4 / bytes>([&](int i) { all |= parts[i][copy.value] << 8 * i; });
      });
    });
  }

  __device__ __forceinline__ void store_spikes(uint32_t to) const {
    each_row([&](auto copy, const Patch&) { store_shared<copy.value * kRowBytes>(to, spike_pieces_[copy.value].at); });
  }

  // Calls use(copy, digit, offset) for the weights that the thread copies: of a row, a digit, to an offset in the
  // stage.
  template <class Use>
  __device__ __forceinline__ void each_weight(const Use& use) const {
    unroll_while<kWeightRows>([&](auto copy) {
      unroll_while<S::kDigits>([&](auto digit) {
        if (digit.value > 0 && digit.value >= digits_) return false;
        use(copy, digit, Constant<digit.value * S::kDigitBytes + copy.value * kRowBytes>{});
        return true;
      });
      return true;
    });
  }

  // Calls use(copy, patch) for the rows of spikes that the thread copies.
  template <class Use>
  __device__ __forceinline__ void each_row(const Use& use) const {
    unroll_while<kSpikeCopies>([&](auto copy) {
      const bool all = kSpikeRows % kRows == 0;
      if (all || copy.value * kRows + threadIdx.x / kPieces < kSpikeRows) use(copy, patches_[copy.value]);
      return true;
    });
  }

  const int8_t* weights_;  // the thread's piece of its first row, of the stage's lowest digit
  uint32_t weights_to_, spikes_to_;
  int k_;                          // depth of the thread's piece
  int digits_, digit_;             // of the block; the stage's lowest
  int digit_counts_[kWeightRows];  // of the thread's rows
  Tap tap_;
  Patch patches_[kSpikeCopies];
  Piece weight_pieces_[kWeightRows][S::kDigits], spike_pieces_[kSpikeCopies];  // on their way through registers
};

// The largest number of digits among the block's outputs, at least one.
template <class S>
__device__ __forceinline__ int count_digits(const DeviceGeometry& g) {
  const int output = static_cast<int>(blockIdx.y) * S::kOutputs + static_cast<int>(threadIdx.x % 32);
  const int32_t* counts = g.weights.counts + blockIdx.z * static_cast<int64_t>(g.group_outputs) + output;
  int most = 0;
  unroll<S::kOutputs / 32>([&](int i) {
    if (output + 32 * i < g.group_outputs) most = max(most, counts[32 * i]);
  });
  int count = S::kTiming == Timing::kWindow ? S::kDigits : kMostDigits;
  while (count > 1 && !__any_sync(0xffffffffu, most >= count)) --count;
  return count;
}

// Waits until so many stages of the ring, less two, are in flight at most.
__device__ __forceinline__ void wait_for_copies(int stages) {
  if constexpr (!kAmpere) return;
  if (stages == 2) return cp_async_wait<0>();
  if (stages == 4) return cp_async_wait<2>();
  if (stages == 3) return cp_async_wait<1>();
  cp_async_wait<6>();
}

// Adds the products of the whole depth with the spikes of a round of `steps` steps that begins at plane `first_plane`.
template <class S>
__device__ __forceinline__ void multiply_depth(const DeviceGeometry& g, int first_plane, int steps, int digits,
                                               unsigned char* memory, const typename S::Position& position,
                                               Sums<S> (&sums)[S::kSums]) {
  const uint32_t ring = shared_address(memory);
  const int depths = static_cast<int>((static_cast<unsigned>(g.depth) + S::kDepth - 1) / S::kDepth);
  Filler<S> filler(g, ring, position.thread, first_plane, digits);
  // The upper lanes point to the second group of pixels or, if a warp has one, to the next slice if a stage has one.
  constexpr bool kNextGroup = S::kGroups > 1, kNextSlice = !kNextGroup && S::kSlices > 1;
  const int half = position.lane / 16, depth = position.depth * kMmaDepth;
  const int row = position.step / kPlaneSteps * S::kPixels + position.column + position.lane % 8;
  const uint32_t spikes =
      ring + S::swizzled(row + (kNextGroup ? half * kMmaPixels : 0),
                         depth + position.lane / 8 % 2 * 16 + (kNextSlice ? half * S::kSliceBytes : 0));
  const uint32_t weights = ring + S::kSpikeBytes + S::swizzled(position.row + position.lane % 16, depth + half * 16);
  const int step = position.step % kPlaneSteps;  // its first
  const int own = steps - position.step;         // steps from it on
  const int last = (g.stages - 1) * g.stage_bytes;
  const auto next = [&](int slot) { return slot == last ? 0 : slot + g.stage_bytes; };
  const int stages = S::kTiming == Timing::kWindow ? depths : digits * depths, ahead = g.stages - 1;
  int filled = 0;  // the slot of the ring that is filled next
#pragma unroll 1
  for (int stage = 0; stage < ahead; ++stage) {
    if (stage < stages) {
      filler.load(filled, g);
      filler.store(filled);
    }
    if constexpr (kAmpere) cp_async_commit();
    filled = next(filled);
  }
  int stage = 0, slot = 0;
#pragma unroll 1
  for (int pass_end = depths;; pass_end += depths) {  // with steps a pass for each digit
#pragma unroll 1
    for (; stage < pass_end; ++stage) {
      wait_for_copies(g.stages);
      __syncthreads();  // this stage has arrived, and the slot that is filled next is no longer read
      const bool more = stage + ahead < stages;
      if (more) filler.load(filled, g);
      if constexpr (kAmpere) cp_async_commit();
      if (!S::kRounds || own > 0) multiply_stage<S>(weights + slot, spikes + slot, digits, step, own, sums);
      if (more) filler.store(filled);  // what was loaded while this stage was multiplied
      filled = next(filled);
      slot = next(slot);
    }
    if (S::kTiming == Timing::kWindow || pass_end == stages) break;
    unroll<S::kTiles * S::kColumns * 4>([&](int i) {  // modulo 2^32; the final sums fit
      int32_t& sum = sums[0][i / 4 / S::kColumns][i / 4 % S::kColumns][i % 4];
      sum = static_cast<int32_t>(static_cast<uint32_t>(sum) << 8);
    });
  }
}

}  // namespace tandem::cuda
