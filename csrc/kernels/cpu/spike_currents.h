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

  // Adds a row of weights.
  TANDEM_INLINE void add(const char* row) {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) part[s] += reinterpret_cast<const Int<float, L>*>(row)[s];
  }
};

// Sum of the weights of one run of `words` words; moves `entries` past it.
template <int G, int L, int S>
TANDEM_INLINE Sums<L, S> sum_run(const char* weights, const uint16_t*& entries, int words) {
  constexpr int Q = entries_per_word(G), row_scale = static_cast<int>(S * L * sizeof(int32_t) / kEntryScale);
  Sums<L, S> even{}, odd{};
  for (; words > 0; --words, entries += Q) {
    uint64_t word = 0;
    std::memcpy(&word, entries, Q * sizeof(*entries));
#pragma GCC unroll 4
    for (int e = 0; e < Q; ++e) {
      (e % 2 == 0 ? even : odd).add(weights + (word >> (16 * e) & 0xffff) * row_scale);
    }
  }
  return even + odd;
}

// Sums of G steps from the sums x[pattern] of their group.
template <int G, int L, int S>
TANDEM_INLINE void fold(Sums<L, S> (&x)[1 << G], Sums<L, S>* step) {
  if constexpr (G == 1) {
    step[0] = x[1];
  } else if constexpr (G == 2) {
    step[0] = x[1] + x[3];
    step[1] = x[2] + x[3];
  } else {
    step[3] = ((x[8] + x[9]) + (x[10] + x[11])) + ((x[12] + x[13]) + (x[14] + x[15]));
#pragma GCC unroll 8
    for (int c = 1; c < 8; ++c) x[c] += x[c + 8];
    step[2] = (x[4] + x[5]) + (x[6] + x[7]);
#pragma GCC unroll 4
    for (int c = 1; c < 4; ++c) x[c] += x[c + 4];
    step[1] = x[2] + x[3];
    step[0] = x[1] + x[3];
  }
}

// Sums of the eight steps of one row and plane; those of groups beyond `steps` are zero.
template <int G, int L, int S>
TANDEM_INLINE void sum_steps(const int32_t* weights, const uint16_t* entries, const uint16_t* words, int steps,
                             Sums<L, S> (&step)[8]) {
  constexpr int patterns = (1 << G) - 1;
#pragma GCC unroll 8
  for (int g = 0; g < 8 / G; ++g) {
    if (g * G >= steps) {
#pragma GCC unroll 4
      for (int t = 0; t < G; ++t) step[g * G + t] = Sums<L, S>{};
      continue;
    }
    Sums<L, S> x[1 << G];
#pragma GCC unroll 16
    for (int c = 1; c <= patterns; ++c) {
      x[c] = sum_run<G, L, S>(reinterpret_cast<const char*>(weights), entries, words[g * patterns + c - 1]);
    }
    fold<G>(x, step + g * G);
  }
}

}  // namespace tandem::cpu
