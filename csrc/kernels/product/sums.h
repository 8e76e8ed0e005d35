// The sums of lists: adds the runs of one row and plane in registers and folds them into the sums of eight steps.
//
// Weights are integers, so sums are exact: the order of additions, the pattern, the number of lanes or threads cannot
// change a bit.
#pragma once

#include <cstring>

#include "../cpu/vectors.h"
#include "entries.h"

namespace tandem::cpu {

// Sums for one step and a tile of W P outputs, in P vectors of W lanes of E. Weights are of type E or, if that is
// int16, int8.
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
  TANDEM_INLINE Int<L> lanes(int first) const {
    if constexpr (sizeof(E) == 4) return cpu::load<Int<L>>(reinterpret_cast<const E*>(part) + first);
    return convert<int32_t, int16_t, L>(
        cpu::load<typename Simd<int16_t, L>::type>(reinterpret_cast<const E*>(part) + first));
  }

  // The same value, pinned to its register: otherwise GCC computes it in another register and copies it back in every
  // iteration.
  TANDEM_INLINE Sums in_place() const {
    Sums out;
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) out.part[i] = in_place(part[i]);
    return out;
  }

 private:
  TANDEM_INLINE static Part in_place(Part x) {
#if TANDEM_MULTIVERSION && !defined(__clang__)
    asm("" : "+v"(x));
#endif
    return x;
  }
};

// The sums of a tile of 16 R outputs, on a processor with vectors of L floats; of int8 weights with AVX-512.
template <int L, int R>
using WideSums = Sums<int32_t, L, R * kLanes / L>;
template <int /*L*/, int R>
using ByteSums = Sums<int16_t, 16 * R, 1>;

// Adds the weights of the next run and moves `entries` past it. An addition takes two cycles and two start per cycle:
// hence four dependency chains, if there are registers for them. x86-64 has the fewest registers, but there an addition
// takes one cycle.
template <class S>
TANDEM_INLINE S sum_run(const char* weights, const uint16_t*& entries) {
  constexpr int row_scale = S::kRowBytes / kEntryScale, parts = sizeof(S) / sizeof(typename S::Part);
  const auto row = [&](uint64_t entry) TANDEM_INLINE_LAMBDA { return S::load(weights + entry * row_scale); };
  constexpr int chains = parts == 1 ? 4 : parts == 2 || (parts == 4 && !TANDEM_MULTIVERSION) ? 2 : 1;
  S sum[chains] = {};
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

// The sums of the eight steps of one row and plane, from patterns of G steps. Each run has its own code, and so its own
// branches to predict; its sum is added directly to the steps of its pattern. Steps from `bits` on are silent.
template <int G, class S>
TANDEM_INLINE void sum_steps(const void* weights, const uint16_t* entries, int bits, S (&step)[8]) {
#pragma GCC unroll 8
  for (int g = 0; g < 8 / G; ++g) {
    S of_group[G] = {};
    if (G == 4 && g == 1 && bits == 4) {
      std::memcpy(step + 4, of_group, sizeof(of_group));
      break;
    }
#pragma GCC unroll 16
    for (int pattern = 1; pattern < 1 << G; ++pattern) {
      const S sum = sum_run<S>(static_cast<const char*>(weights), entries);
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
