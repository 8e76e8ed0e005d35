// The sums of lists: adds the runs of one row and plane in registers and folds them into the sums of eight steps.
//
// Weights are integers, so sums are exact: the order of additions, the pattern, the number of lanes or threads cannot
// change a bit.
#pragma once

#include <cstring>

#include "../cpu/vectors.h"
#include "lists.h"

namespace tandem::cpu {

// Sums for one step and a tile of W P outputs, in P vectors of W lanes of E. Weights are of type E or, if that has 16
// bits, int8.
template <class E, int W, int P>
struct Sums {
  typedef typename Simd<E, W>::type Part;
  Part part[P];

  static constexpr int kOutputs = W * P;
  static constexpr int kRowBytes = kOutputs * (sizeof(E) == 2 ? 1 : 4);  // bytes of the weights of one input

  TANDEM_INLINE Sums& operator+=(const Sums& other) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) part[i] += other.part[i];
    return *this;
  }
  TANDEM_INLINE friend Sums operator+(Sums a, const Sums& b) { return a += b; }
  TANDEM_INLINE friend Sums operator-(Sums a, const Sums& b) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) a.part[i] -= b.part[i];
    return a;
  }

  TANDEM_INLINE static Sums load(const char* row) {
    Sums out;
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      if constexpr (sizeof(E) == 2) {
        out.part[i] = __builtin_convertvector(reinterpret_cast<const typename Simd<int8_t, W>::type*>(row)[i], Part);
      } else {
        out.part[i] = reinterpret_cast<const Part*>(row)[i];
      }
    }
    return out;
  }

  // L sums as int32, beginning with number `first`.
  template <int L>
  TANDEM_INLINE Int<float, L> lanes(int first) const {
    if constexpr (sizeof(E) == 4) return cpu::load<Int<float, L>>(reinterpret_cast<const E*>(part) + first);
    return convert<int32_t, int16_t, L>(
        cpu::load<typename Simd<int16_t, L>::type>(reinterpret_cast<const E*>(part) + first));
  }
};

// The sums of a tile of 16 R outputs, on a processor with vectors of L floats.
template <int L, int R>
using WideSums = Sums<uint32_t, L, R * kLanes / L>;
template <int L, int R>
using ByteSums = Sums<uint16_t, (2 * L < 16 * R ? 2 * L : 16 * R), 16 * R / (2 * L < 16 * R ? 2 * L : 16 * R)>;

// Running sums over a list's runs: upto[i] is the sum of runs 0 to i. Integers wrap around, so differences are exact.
// The end of a run is not a branch, which would mostly be mispredicted: the sum is stored with every word, and the last
// store of a run counts.
template <class S>
TANDEM_INLINE void sum_runs(const char* weights, const uint16_t* entries, int runs, S* upto) {
  constexpr int row_scale = S::kRowBytes / kEntryScale;
  S sum{};
  for (const S* const end = upto + runs; upto != end;) {
    uint64_t word;
    std::memcpy(&word, entries, sizeof(word));
    entries += kWordEntries;
    const uint64_t last = word & kLastOfRun;
    word -= last;
    const auto row = [&](int i)
                         TANDEM_INLINE_LAMBDA { return S::load(weights + (word >> 16 * i & 0xffff) * row_scale); };
    sum += ((row(0) + row(1)) + row(2)) + row(3);
    *upto = sum;
    upto += last;
  }
}

// The sums of the eight steps of one row and plane, from patterns of G steps. Steps from `bits` on are silent.
template <int G, class S>
TANDEM_INLINE void sum_steps(const void* weights, const uint16_t* entries, int bits, S (&step)[8]) {
  constexpr int kPatterns = (1 << G) - 1;
  S upto[8 / G * kPatterns + 1];
  upto[0] = {};
  sum_runs(static_cast<const char*>(weights), entries, bits / G * kPatterns, upto + 1);
#pragma GCC unroll 8
  for (int t = 0; t < 8; ++t) {
    step[t] = {};
    if (t >= bits) continue;
    const int first = 1 << t % G;  // the first pattern with a spike at this step; as many in a row have one
#pragma GCC unroll 8
    for (int c = first; c <= kPatterns; c += 2 * first) {
      const S* of = upto + t / G * kPatterns + c;
      step[t] += of[first - 1] - of[-1];
    }
  }
}

}  // namespace tandem::cpu
