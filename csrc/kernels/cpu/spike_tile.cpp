#include "spike_tile.h"

#include <cstring>

#include "spike_neurons.h"

namespace tandem::cpu {

namespace {

template <int G, int L, int S>
TANDEM_INLINE void list_sums(const Tile& tile, int64_t row, int p, Sums<L, S> (&sums)[8]) {
  const int64_t list = row * tile.planes + p;
  sum_steps<G>(tile.weights, tile.lists.entries.data() + tile.lists.start.data()[list], sums);
}

template <int L, int S>
TANDEM_INLINE int64_t sums_offset(const Tile& tile, int64_t row, int p) {
  return (row * tile.planes + p) * (8 * S * L);
}

template <int G, int L, int R>
TANDEM_INLINE void fused(const Tile& tile, const int32_t* others, const NeuronArgs<float>& neuron, uint8_t* gates) {
  constexpr int S = R * kLanes / L;
  run_neurons<L, R>(tile, neuron, gates, [&](int64_t row, int p, Sums<L, S>(&sums)[8]) TANDEM_INLINE_LAMBDA {
    list_sums<G>(tile, row, p, sums);
    if (others == nullptr) return;
    const auto* before = reinterpret_cast<const Sums<L, S>*>(others + sums_offset<L, S>(tile, row, p));
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) sums[t] += before[t];
  });
}

template <int L, int R>
TANDEM_INLINE void scan(const Tile& tile, const int32_t* in, const NeuronArgs<float>& neuron, uint8_t* gates) {
  constexpr int S = R * kLanes / L;
  run_neurons<L, R>(tile, neuron, gates, [&](int64_t row, int p, Sums<L, S>(&sums)[8]) TANDEM_INLINE_LAMBDA {
    std::memcpy(sums, in + sums_offset<L, S>(tile, row, p), sizeof(sums));
  });
}

template <int G, int L, int R>
TANDEM_INLINE void product(const Tile& tile, int32_t* out, bool first) {
  constexpr int S = R * kLanes / L;
  for (int64_t row = 0; row < tile.rows; ++row) {
    for (int p = 0; p < tile.planes; ++p) {
      Sums<L, S> sums[8];
      list_sums<G>(tile, row, p, sums);
      auto* target = reinterpret_cast<Sums<L, S>*>(out + sums_offset<L, S>(tile, row, p));
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) target[t] = first ? sums[t] : target[t] + sums[t];
    }
  }
}

template <int L, int R>
TANDEM_INLINE void fused_any(const Tile& tile, const int32_t* others, const NeuronArgs<float>& neuron, uint8_t* gates) {
  if (tile.width == 1) return fused<1, L, R>(tile, others, neuron, gates);
  if (tile.width == 2) return fused<2, L, R>(tile, others, neuron, gates);
  fused<4, L, R>(tile, others, neuron, gates);
}
template <int L>
TANDEM_INLINE void fused_tile_body(const Tile& tile, const int32_t* others, const NeuronArgs<float>& neuron,
                                   uint8_t* gates) {
  tile.registers == 1 ? fused_any<L, 1>(tile, others, neuron, gates) : fused_any<L, 2>(tile, others, neuron, gates);
}

template <int L, int R>
TANDEM_INLINE void product_any(const Tile& tile, int32_t* sums, bool first) {
  if (tile.width == 1) return product<1, L, R>(tile, sums, first);
  if (tile.width == 2) return product<2, L, R>(tile, sums, first);
  product<4, L, R>(tile, sums, first);
}
template <int L>
TANDEM_INLINE void product_tile_body(const Tile& tile, int32_t* sums, bool first) {
  tile.registers == 1 ? product_any<L, 1>(tile, sums, first) : product_any<L, 2>(tile, sums, first);
}

template <int L>
TANDEM_INLINE void scan_tile_body(const Tile& tile, const int32_t* sums, const NeuronArgs<float>& neuron,
                                  uint8_t* gates) {
  tile.registers == 1 ? scan<L, 1>(tile, sums, neuron, gates) : scan<L, 2>(tile, sums, neuron, gates);
}

}  // namespace

TANDEM_CPU_LANES_KERNEL(fused_tile,
                        (const Tile& tile, const int32_t* others, const NeuronArgs<float>& neuron, uint8_t* gates),
                        (tile, others, neuron, gates))
TANDEM_CPU_LANES_KERNEL(product_tile, (const Tile& tile, int32_t* sums, bool first), (tile, sums, first))
TANDEM_CPU_LANES_KERNEL(scan_tile,
                        (const Tile& tile, const int32_t* sums, const NeuronArgs<float>& neuron, uint8_t* gates),
                        (tile, sums, neuron, gates))

}  // namespace tandem::cpu
