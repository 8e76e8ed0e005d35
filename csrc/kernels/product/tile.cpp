#include "tile.h"

#include "fire.h"

namespace tandem::cpu {

namespace {

// Calls f(R, steps of a pattern). `wide`: tiles may be 32 outputs wide.
template <bool wide, class F>
TANDEM_INLINE void specialise(const Tile& tile, int steps, const F& f) {
  const auto with_registers = [&](auto registers) TANDEM_INLINE_LAMBDA {
    switch (steps) {
      case 1:
        return f(registers, std::integral_constant<int, 1>());
      case 2:
        return f(registers, std::integral_constant<int, 2>());
      default:
        return f(registers, std::integral_constant<int, 4>());
    }
  };
  if constexpr (wide) {
    if (tile.registers == 2) return with_registers(std::integral_constant<int, 2>());
  }
  with_registers(std::integral_constant<int, 1>());
}

template <int G, class S>
TANDEM_INLINE void list_sums(const Tile& tile, const SpikeLists& lists, int64_t row, int p, S (&sums)[8]) {
  const int64_t list = row * tile.planes + p;
  sum_steps<G>(tile.weights, lists.entries.data() + lists.start.data()[list], lists.of.bits, sums);
}

// SumsOf<L, R>: the sums of a step.
template <template <int, int> class SumsOf, bool wide, int L>
TANDEM_INLINE void fire_by_lists(const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron,
                                 uint8_t* open) {
  specialise<wide>(tile, lists.of.steps, [&](auto registers, auto steps) TANDEM_INLINE_LAMBDA {
    constexpr int R = decltype(registers)::value, G = decltype(steps)::value;
    using S = SumsOf<L, R>;
    run_neurons<L, R, true, S>(tile, neuron, open, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
      list_sums<G>(tile, lists, row, p, sums);
    });
  });
}

template <template <int, int> class SumsOf, bool wide, int L>
TANDEM_INLINE void sum_by_lists(const Tile& tile, const SpikeLists& lists, int32_t* out, bool first) {
  specialise<wide>(tile, lists.of.steps, [&](auto registers, auto steps) TANDEM_INLINE_LAMBDA {
    constexpr int width = 16 * decltype(registers)::value, G = decltype(steps)::value;
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int p = 0; p < tile.planes; ++p, out += 8 * width) {
        SumsOf<L, width / 16> sums[8];
        list_sums<G>(tile, lists, row, p, sums);
#pragma GCC unroll 8
        for (int t = 0; t < 8; ++t) {
#pragma GCC unroll 8
          for (int i = 0; i < width; i += L) {
            int32_t* to = out + t * width + i;
            const auto sum = sums[t].template lanes<L>(i);
            store(to, first ? sum : sum + load<Int<float, L>>(to));
          }
        }
      }
    }
  });
}

// Tiles of words are 32 outputs wide only with AVX-512 (tiling.h).
template <int L>
TANDEM_INLINE void fire_lists_body(const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron,
                                   uint8_t* open) {
  if constexpr (L == kLanes) {
    if (tile.bytes) return fire_by_lists<ByteSums, true, L>(tile, lists, neuron, open);
  }
  fire_by_lists<WideSums, L == kLanes, L>(tile, lists, neuron, open);
}

template <int L>
TANDEM_INLINE void sum_lists_body(const Tile& tile, const SpikeLists& lists, int32_t* sums, bool first) {
  if constexpr (L == kLanes) {
    if (tile.bytes) return sum_by_lists<ByteSums, true, L>(tile, lists, sums, first);
  }
  sum_by_lists<WideSums, L == kLanes, L>(tile, lists, sums, first);
}

template <int L, int R>
TANDEM_INLINE void fire_sums_of(const Tile& tile, const int32_t* in, const Neuron<float>& neuron, uint8_t* open) {
  using S = WideSums<L, R>;
  run_neurons<L, R, false, S>(tile, neuron, open, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
    std::memcpy(sums, in + (row * tile.planes + p) * (8 * 16 * R), sizeof(sums));
  });
}
template <int L>
TANDEM_INLINE void fire_sums_body(const Tile& tile, const int32_t* sums, const Neuron<float>& neuron, uint8_t* open) {
  tile.registers == 1 ? fire_sums_of<L, 1>(tile, sums, neuron, open) : fire_sums_of<L, 2>(tile, sums, neuron, open);
}

}  // namespace

TANDEM_CPU_LANES_KERNEL(fire_lists,
                        (const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron, uint8_t* open),
                        (tile, lists, neuron, open))
TANDEM_CPU_LANES_KERNEL(sum_lists, (const Tile& tile, const SpikeLists& lists, int32_t* sums, bool first),
                        (tile, lists, sums, first))
TANDEM_CPU_LANES_KERNEL(fire_sums, (const Tile& tile, const int32_t* sums, const Neuron<float>& neuron, uint8_t* open),
                        (tile, sums, neuron, open))

}  // namespace tandem::cpu
