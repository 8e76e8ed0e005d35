#include "tile.h"

#include "fire.h"

namespace tandem::cpu {

namespace {

// Calls f(sums of a step, steps of a pattern), two values whose types say which. Tiles are of bytes only with AVX-512
// (weights/prepared.cpp).
template <int L, class F>
TANDEM_INLINE void specialise(const Tile& tile, int steps, const F& f) {
  const auto with = [&](auto sums) TANDEM_INLINE_LAMBDA {
    switch (steps) {
      case 1:
        return f(sums, std::integral_constant<int, 1>());
      case 2:
        return f(sums, std::integral_constant<int, 2>());
      default:
        return f(sums, std::integral_constant<int, 4>());
    }
  };
  with_registers<L>(tile, [&](auto registers) TANDEM_INLINE_LAMBDA {
    if constexpr (L == kLanes) {
      if (tile.bytes) return with(ByteSums<L, decltype(registers)::value>());
    }
    with(WideSums<L, decltype(registers)::value>());
  });
}

template <int G, class S>
TANDEM_INLINE void list_sums(const Tile& tile, const SpikeLists& lists, int64_t row, int p, S (&sums)[8]) {
  const int64_t list = row * tile.sheets + p;
  sum_steps<G>(tile.weights, lists.entries + lists.start[list], lists.listed.bits, sums);
}

template <int L>
TANDEM_INLINE void fire_lists_body(const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron) {
  specialise<L>(tile, lists.listed.steps, [&](auto type, auto steps) TANDEM_INLINE_LAMBDA {
    using S = decltype(type);
    run_neurons<L, S, true>(tile, neuron, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
      list_sums<decltype(steps)::value>(tile, lists, row, p, sums);
    });
  });
}

template <int L>
TANDEM_INLINE void sum_lists_body(const Tile& tile, const SpikeLists& lists, int32_t* out, bool first) {
  specialise<L>(tile, lists.listed.steps, [&](auto type, auto steps) TANDEM_INLINE_LAMBDA {
    using S = decltype(type);
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int p = 0; p < tile.sheets; ++p, out += 8 * S::kOutputs) {
        S sums[8];
        list_sums<decltype(steps)::value>(tile, lists, row, p, sums);
#pragma GCC unroll 8
        for (int t = 0; t < 8; ++t) {
#pragma GCC unroll 8
          for (int i = 0; i < S::kOutputs; i += L) {
            int32_t* to = out + t * S::kOutputs + i;
            const auto sum = sums[t].template lanes<L>(i);
            store(to, first ? sum : sum + load<Int<float, L>>(to));
          }
        }
      }
    }
  });
}

template <int L>
TANDEM_INLINE void fire_sums_body(const Tile& tile, const int32_t* in, const Neuron<float>& neuron) {
  with_registers<L>(tile, [&](auto registers) TANDEM_INLINE_LAMBDA {
    using S = WideSums<L, decltype(registers)::value>;
    run_neurons<L, S, false>(tile, neuron, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
      std::memcpy(sums, in + (row * tile.sheets + p) * (8 * S::kOutputs), sizeof(sums));
    });
  });
}

}  // namespace

TANDEM_CPU_LANES_KERNEL(fire_lists, (const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron),
                        (tile, lists, neuron))
TANDEM_CPU_LANES_KERNEL(sum_lists, (const Tile& tile, const SpikeLists& lists, int32_t* sums, bool first),
                        (tile, lists, sums, first))
TANDEM_CPU_LANES_KERNEL(fire_sums, (const Tile& tile, const int32_t* sums, const Neuron<float>& neuron),
                        (tile, sums, neuron))

}  // namespace tandem::cpu
