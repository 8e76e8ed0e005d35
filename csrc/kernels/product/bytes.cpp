// Lists for int8 weights: sums are int16, which prepared.cpp keeps from overflowing, and take half or a quarter of the
// loads.
#include "fire.h"

namespace tandem::cpu {

namespace {

template <class S>
TANDEM_INLINE void byte_sums(const Tile& tile, const SpikeLists& lists, int64_t row, int p, S (&sums)[8]) {
  const int64_t list = row * tile.planes + p;
  sum_steps<kByteSteps>(tile.weights, lists.entries.data() + lists.start.data()[list], lists.bits, sums);
}

template <int L, int R>
TANDEM_INLINE void fire_bytes(const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron, uint8_t* open) {
  using S = ByteSums<L, R>;
  run_neurons<L, R, true, S>(tile, neuron, open, [&](int64_t row, int p, S(&sums)[8]) TANDEM_INLINE_LAMBDA {
    byte_sums(tile, lists, row, p, sums);
  });
}
template <int L>
TANDEM_INLINE void fire_byte_lists_body(const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron,
                                        uint8_t* open) {
  tile.registers == 1 ? fire_bytes<L, 1>(tile, lists, neuron, open) : fire_bytes<L, 2>(tile, lists, neuron, open);
}

template <int L, int R>
TANDEM_INLINE void sum_bytes(const Tile& tile, const SpikeLists& lists, int32_t* out, bool first) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    for (int p = 0; p < tile.planes; ++p, out += 8 * 16 * R) {
      ByteSums<L, R> sums[8];
      byte_sums(tile, lists, row, p, sums);
      for (int t = 0; t < 8; ++t) {
        for (int i = 0; i < 16 * R; i += L) {
          int32_t* to = out + t * 16 * R + i;
          const auto sum = sums[t].template lanes<L>(i);
          store(to, first ? sum : sum + load<Int<float, L>>(to));
        }
      }
    }
  }
}
template <int L>
TANDEM_INLINE void sum_byte_lists_body(const Tile& tile, const SpikeLists& lists, int32_t* sums, bool first) {
  tile.registers == 1 ? sum_bytes<L, 1>(tile, lists, sums, first) : sum_bytes<L, 2>(tile, lists, sums, first);
}

}  // namespace

TANDEM_CPU_LANES_KERNEL(fire_byte_lists,
                        (const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron, uint8_t* open),
                        (tile, lists, neuron, open))
TANDEM_CPU_LANES_KERNEL(sum_byte_lists, (const Tile& tile, const SpikeLists& lists, int32_t* sums, bool first),
                        (tile, lists, sums, first))

}  // namespace tandem::cpu
