#include "spike_depthwise.h"

#include "spike_blocks.h"
#include "spike_neurons.h"

namespace tandem::cpu {

namespace {

// The bytes of L inputs, as lanes. Output n reads channel n / outputs_per_channel.
template <int L>
TANDEM_INLINE Int<float, L> input_lanes(const uint8_t* pixel, int64_t output, int64_t outputs_per_channel,
                                        int64_t outputs) {
  if (outputs_per_channel == 1 && output + L <= outputs) {
    return convert<int32_t, uint8_t, L>(load<Bytes<L>>(pixel + output));
  }
  uint8_t bytes[L] = {};
  for (int i = 0; i < L && output + i < outputs; ++i) bytes[i] = pixel[(output + i) / outputs_per_channel];
  return convert<int32_t, uint8_t, L>(load<Bytes<L>>(bytes));
}

// Sums of the eight steps of row (b, y, x), plane p, and the outputs of a tile.
template <int L, int S>
TANDEM_INLINE void window_sums(const SpikeProduct& product, const Tile& tile, int64_t row, int p,
                               Sums<L, S> (&sums)[8]) {
  const int64_t out_width = product.out_width(), lines = row / out_width;
  const int64_t x = row % out_width, y = lines % product.out_height(), b = lines / product.out_height();
  const uint8_t* image = product.planes + (p * product.batch + b) * product.height * product.width * product.channels;
#pragma GCC unroll 8
  for (int t = 0; t < 8; ++t) sums[t] = Sums<L, S>{};
  for (int64_t tap = 0; tap < product.taps(); ++tap) {
    const int64_t iy = y * product.stride[0] - product.padding[0] + tap / product.kernel[1] * product.dilation[0];
    const int64_t ix = x * product.stride[1] - product.padding[1] + tap % product.kernel[1] * product.dilation[1];
    if (iy < 0 || iy >= product.height || ix < 0 || ix >= product.width) continue;
    const uint8_t* pixel = image + (iy * product.width + ix) * product.channels;
    const int32_t* weights = tile.weights + tap * (S * L);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const auto spikes = input_lanes<L>(pixel, tile.channel + s * L, product.group_outputs(), product.outputs);
      const auto weight = load<Int<float, L>>(weights + s * L);
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) sums[t].part[s] += weight & (spikes << (31 - t) >> 31);
    }
  }
}

template <int L, int R>
TANDEM_INLINE void depthwise(const SpikeProduct& product, const Tile& tile, const NeuronArgs<float>& neuron,
                             uint8_t* gates) {
  run_neurons<L, R>(tile, neuron, gates,
                    [&](int64_t row, int p, Sums<L, R * kLanes / L>(&sums)[8])
                        TANDEM_INLINE_LAMBDA { window_sums(product, tile, tile.row + row, p, sums); });
}

template <int L>
TANDEM_INLINE void depthwise_tile_body(const SpikeProduct& product, const Tile& tile, const NeuronArgs<float>& neuron,
                                       uint8_t* gates) {
  tile.registers == 1 ? depthwise<L, 1>(product, tile, neuron, gates) : depthwise<L, 2>(product, tile, neuron, gates);
}
TANDEM_CPU_LANES_KERNEL(depthwise_tile,
                        (const SpikeProduct& product, const Tile& tile, const NeuronArgs<float>& neuron,
                         uint8_t* gates),
                        (product, tile, neuron, gates))

}  // namespace

bool depthwise_if(const SpikeProduct& product, const NeuronArgs<float>& neuron, ParallelFor parallel) {
  const SpikeProduct weights = single_channel(product);
  const Prepared prepared(weights, neuron, parallel);
  if (prepared.packed == nullptr) return false;
  const SpikeLists no_lists;
  const int planes = (neuron.T + 7) / 8;
  constexpr int64_t kRows = 64;  // rows a tile takes at a time: their bytes stay in cache for the next tile
  const int64_t rows = product.rows(), chunks = (rows + kRows - 1) / kRows;
  const int64_t grain = 1 + (int64_t{1} << 20) / (kRows * planes * product.taps() * product.outputs + 1);
  parallel_ranges(parallel, chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kRows, size = std::min(kRows, rows - first);
      for (int64_t i = 0; i < prepared.tiling.tiles_per_group; ++i) {
        depthwise_tile(product, prepared.tile(weights, planes, 0, i, 0, no_lists, size, first), neuron, prepared.gates);
      }
    }
  });
  prepared.finish(neuron, parallel);
  return true;
}

}  // namespace tandem::cpu
