// What an instruction set multiplies in one pass: all rows by some chunks of inputs and some digits of a column.
#pragma once

#include <cstring>
#include <type_traits>

#include "../../cpu/vectors.h"
#include "digits.h"

namespace tandem::cpu {

// Digits that are needed soon, to be prefetched into L2, some cache lines with every chunk: the L3 cache is slower than
// a matrix unit.
struct Fetch {
  const int8_t *next, *end;
  int64_t lines;

  TANDEM_INLINE void advance() {
    if (next >= end) return;
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(next + i * 64, 0, 2);
    next += lines * 64;
  }
};

struct Pass {
  int64_t begin, chunks;  // the first chunk, and how many
  const int8_t* digits;   // of the first chunk
  int64_t chunk_bytes;    // of a chunk with all digits
  int count;              // digits, 1 to 3
  int shift;              // the lowest is worth 1 << shift
  bool first;             // overwrite the sums instead of adding
  int64_t stride;         // from row to row of 16 sums, or from step to step
  Fetch& fetch;           // of digits of the next column
};

// steps() writes [rows, sheets, 8] rows of sums, counts() [rows], and rounded_counts() too, from a single pass. fire()
// is the last pass over steps: it adds to the sums of earlier ones and fires the neurons of sixteen outputs of a tile,
// from its output `first` on. It may be null.
struct Loops {
  int64_t pass_chunks;  // whose digits stay in L1 while the inputs of many rows stream by
  void (*begin)();      // before the first pass and after the last one
  void (*end)();
  void (*steps)(const ExpandedInputs& inputs, const Pass& pass, int32_t* sums);
  void (*counts)(const ExpandedInputs& inputs, const Pass& pass, double* sums);
  void (*rounded_counts)(const ExpandedInputs& inputs, const Pass& pass, float* sums);
  void (*fire)(const ExpandedInputs& inputs, const Pass& pass, const int32_t* sums, const Tile& tile, int first,
               const Neuron& neuron) = nullptr;

  void run(const ExpandedInputs& inputs, const Pass& pass, double* sums) const { counts(inputs, pass, sums); }
  void run(const ExpandedInputs& inputs, const Pass& pass, float* sums) const { rounded_counts(inputs, pass, sums); }
};

// Lines of inputs that vectors multiply at a time.
struct Lines {
  const uint8_t* bytes;
  int64_t pitch;           // from line to line
  const int64_t* offsets;  // of the chunks within a line
  const int32_t* words;    // of the chunks
  int most;                // the largest byte
};

constexpr int64_t kVectorChunks = 8;  // 24 KB of three digits, and the most that rounded_counts() takes

TANDEM_INLINE int32_t word_at(const uint8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// Combines sums of N digits, rounding once: what a digit's sum has beyond a byte is carried to the next, so that both
// parts are exact as floats. The highest is at most 255 * 128 * 512 and what is carried, less than 2^24.
template <int N, int L>
TANDEM_INLINE Vec<float, L> rounded_sums(const int32_t* sums, int64_t digit) {
  auto high = load<Int<L>>(sums);
  Int<L> low{};
#pragma GCC unroll 4
  for (int d = 1; d < N; ++d) {
    low |= (high & 255) << 8 * (d - 1);
    high = load<Int<L>>(sums + d * digit) + (high >> 8);
  }
  constexpr auto kHigh = static_cast<float>(1 << 8 * (N - 1));
  return __builtin_convertvector(high, Vec<float, L>) * kHigh + __builtin_convertvector(low, Vec<float, L>);
}

// Combines L sums of N digits that fit int32.
template <int N, int L>
TANDEM_INLINE Int<L> combined(const int32_t* sums, int64_t digit, const Pass& pass) {
  typename Simd<uint32_t, L>::type sum{};  // wraps
#pragma GCC unroll 4
  for (int d = N - 1; d >= 0; --d) {
    sum = (sum << 8) + load<typename Simd<uint32_t, L>::type>(reinterpret_cast<const uint32_t*>(sums) + d * digit);
  }
  return reinterpret_cast<Int<L>>(sum << pass.shift);
}

// Combines the sums of N digits, `row` and `digit` apart, to sums of weights. H: doubles in a vector. Sums of counts
// are up to 255 * 2^30.
template <int N, int H, class Sum>
TANDEM_INLINE void combine(const int32_t* sums, int64_t row, int64_t digit, int64_t rows, const Pass& pass, Sum* out,
                           int64_t stride) {
  constexpr int L = 8 * H / sizeof(Sum);
  const auto unit = static_cast<Sum>(int64_t{1} << pass.shift);
  for (int64_t r = 0; r < rows; ++r, sums += row, out += stride) {
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += L) {
      Vec<Sum, L> sum{};
      if constexpr (std::is_same_v<Sum, float>) {
        sum = rounded_sums<N, L>(sums + i, digit) * unit;
      } else if constexpr (std::is_same_v<Sum, int32_t>) {
        sum = combined<N, L>(sums + i, digit, pass);
      } else {
#pragma GCC unroll 4
        for (int d = N - 1; d >= 0; --d) {
          sum = 256 * sum + __builtin_convertvector(load<Int<L>>(sums + d * digit + i), Vec<Sum, L>);
        }
        sum *= unit;
      }
      store(out + i, pass.first ? sum : sum + load<Vec<Sum, L>>(out + i));
    }
  }
}

#if TANDEM_MULTIVERSION
extern const Loops kAmxLoops, kVnniLoops, kAvxVnniLoops, kAvx2Loops;
#endif

}  // namespace tandem::cpu
