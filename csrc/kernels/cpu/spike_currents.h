// The sums: the runs of one row and plane, added up in registers and folded into the sums of eight steps.
//
// Weights are int32 in fixed point (spike_pack.h), so sums are exact: no order of additions, bucket width, number of
// lanes or threads can change a bit.
#pragma once

#include <cstring>

#include "lanes.h"
#include "spike_lists.h"

namespace tandem::cpu {

// S vectors of L lanes: sums for one step and a tile of S L outputs.
template <int L, int S>
struct Sums {
  Int<float, L> part[S];

  TANDEM_INLINE Sums& operator+=(const Sums& other) {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) part[s] += other.part[s];
    return *this;
  }
  TANDEM_INLINE friend Sums operator+(Sums a, const Sums& b) { return a += b; }

  TANDEM_INLINE static Sums load(const char* row) {
    Sums out;
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) out.part[s] = reinterpret_cast<const Int<float, L>*>(row)[s];
    return out;
  }

  // The same value, which GCC may not compute in another register: it would copy it back at every turn of a loop.
  TANDEM_INLINE Sums in_place() const {
    Sums out;
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) out.part[s] = in_place(part[s]);
    return out;
  }

 private:
  TANDEM_INLINE static Int<float, L> in_place(Int<float, L> x) {
#if TANDEM_MULTIVERSION && !defined(__clang__)
    asm("" : "+v"(x));
#endif
    return x;
  }
};

// Sum of the weights of the next run; moves `entries` past it. An addition takes two cycles and two start in each:
// hence four chains, where there are registers for them.
template <int L, int S>
TANDEM_INLINE Sums<L, S> sum_run(const char* weights, const uint16_t*& entries) {
  constexpr int row_scale = static_cast<int>(S * L * sizeof(int32_t) / kEntryScale);
  const auto row = [&](uint64_t entry) TANDEM_INLINE_LAMBDA { return Sums<L, S>::load(weights + entry * row_scale); };
  constexpr int chains = S == 1 ? 4 : S == 2 ? 2 : 1;
  Sums<L, S> sum[chains] = {};
  uint64_t word;
  do {
    std::memcpy(&word, entries, sizeof(word));
    entries += kWordEntries;
#pragma GCC unroll 4
    for (int i = 0; i < kWordEntries; ++i) {
      uint64_t entry = word >> 16 * i & 0xffff;
      if (i == 0) entry &= ~uint64_t{kLastOfRun};
      sum[i % chains] = (sum[i % chains] + row(entry)).in_place();
    }
  } while ((word & kLastOfRun) == 0);
  if constexpr (chains == 4) return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  if constexpr (chains == 2) return sum[0] + sum[1];
  return sum[0];
}

// Sums of the eight steps of one row and plane. Runs have their code each, and so their own branches to predict; what
// a run sums up to goes straight to the steps of its pattern.
template <int G, int L, int S>
TANDEM_INLINE void sum_steps(const int32_t* weights, const uint16_t* entries, Sums<L, S> (&step)[8]) {
#pragma GCC unroll 8
  for (int g = 0; g < 8 / G; ++g) {
    Sums<L, S> of_group[G] = {};
#pragma GCC unroll 16
    for (int pattern = 1; pattern < 1 << G; ++pattern) {
      const Sums<L, S> sum = sum_run<L, S>(reinterpret_cast<const char*>(weights), entries);
#pragma GCC unroll 4
      for (int t = 0; t < G; ++t) {
        if (pattern >> t & 1) of_group[t] += sum;
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < G; ++t) step[g * G + t] = of_group[t];
  }
}

}  // namespace tandem::cpu
