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
#if TANDEM_MULTIVERSION
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
  Sums<L, S> a{}, b{}, c{}, d{};
  uint64_t word;
  do {
    std::memcpy(&word, entries, sizeof(word));
    entries += kWordEntries;
    a = (a + row(word & 0xffff & ~uint64_t{kLastOfRun})).in_place();
    b = (b + row(word >> 16 & 0xffff)).in_place();
    if constexpr (S == 1) {
      c = (c + row(word >> 32 & 0xffff)).in_place();
      d = (d + row(word >> 48)).in_place();
    } else {
      a = (a + row(word >> 32 & 0xffff)).in_place();
      b = (b + row(word >> 48)).in_place();
    }
  } while ((word & kLastOfRun) == 0);
  return S == 1 ? (a + b) + (c + d) : a + b;
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

// Sums of the eight steps of one row and plane. Runs have their code each, and so their own branches to predict.
template <int G, int L, int S>
TANDEM_INLINE void sum_steps(const int32_t* weights, const uint16_t* entries, Sums<L, S> (&step)[8]) {
  constexpr int patterns = (1 << G) - 1;
#pragma GCC unroll 8
  for (int g = 0; g < 8 / G; ++g) {
    Sums<L, S> x[1 << G];
#pragma GCC unroll 16
    for (int c = 1; c <= patterns; ++c) x[c] = sum_run<L, S>(reinterpret_cast<const char*>(weights), entries);
    fold<G>(x, step + g * G);
  }
}

}  // namespace tandem::cpu
