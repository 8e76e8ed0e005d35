#include "tile.h"

#include "fire.h"

namespace tandem::cpu {

namespace {

// Calls f(sums of a step, steps of a pattern).
template <int L, int R, class F>
TANDEM_INLINE void specialise(const Tile& tile, const F& f) {
  const int steps = tile.lists.steps;
  if (tile.bytes) return f(ByteSums<L, R>(), std::integral_constant<int, kByteSteps>());
  if (steps == 1) return f(WideSums<L, R>(), std::integral_constant<int, 1>());
  if (steps == 2) return f(WideSums<L, R>(), std::integral_constant<int, 2>());
  f(WideSums<L, R>(), std::integral_constant<int, 4>());
}

template <int L, int R>
TANDEM_INLINE void sum_lists_of(const Tile& tile, int64_t list, int32_t* out, bool first) {
  specialise<L, R>(tile, [&](auto kind, auto steps) TANDEM_INLINE_LAMBDA {
    using S = decltype(kind);
    const int64_t* start = tile.lists.start.data() + list;
    const char* ahead = tile.ahead + list * tile.lines * 64;
    int32_t* to = out;
    for (const int64_t* end = start + tile.rows * tile.planes; start != end; ++start) {
      for (int64_t line = 0; line < tile.lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      S sums[8];
      sum_steps<decltype(steps)::value>(tile.weights, tile.lists.entries.data() + *start, tile.lists.bits, sums);
      for (int t = 0; t < 8; ++t) {
        for (int i = 0; i < S::kOutputs; i += L, to += L) {
          const auto sum = sums[t].template lanes<L>(i);
          store(to, first ? sum : sum + load<Int<float, L>>(to));
        }
      }
    }
  });
}
template <int L>
TANDEM_INLINE void sum_lists_body(const Tile& tile, int64_t list, int32_t* sums, bool first) {
  tile.registers == 1 ? sum_lists_of<L, 1>(tile, list, sums, first) : sum_lists_of<L, 2>(tile, list, sums, first);
}

template <int L, int R>
TANDEM_INLINE void fire_sums_of(const Tile& tile, const int32_t* in, const Neuron<float>& neuron, uint8_t* open) {
  using S = WideSums<L, R>;
  run_neurons<L, R, S>(tile, neuron, open, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
    std::memcpy(sums, in + (row * tile.planes + p) * (8 * S::kOutputs), sizeof(sums));
  });
}
template <int L>
TANDEM_INLINE void fire_sums_body(const Tile& tile, const int32_t* sums, const Neuron<float>& neuron, uint8_t* open) {
  tile.registers == 1 ? fire_sums_of<L, 1>(tile, sums, neuron, open) : fire_sums_of<L, 2>(tile, sums, neuron, open);
}

}  // namespace

TANDEM_CPU_LANES_KERNEL(sum_lists, (const Tile& tile, int64_t list, int32_t* sums, bool first),
                        (tile, list, sums, first))
TANDEM_CPU_LANES_KERNEL(fire_sums, (const Tile& tile, const int32_t* sums, const Neuron<float>& neuron, uint8_t* open),
                        (tile, sums, neuron, open))

}  // namespace tandem::cpu
