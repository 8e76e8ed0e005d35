// run() and window_product(): a way is chosen, weights are prepared unless the caller has, then the layer is
// multiplied block by block of rows and tile by tile of outputs.
#include <algorithm>

#include "../planes/bits.h"
#include "choose.h"
#include "filter.h"
#include "pack.h"
#include "product.h"
#include "window.h"

namespace tandem::cpu {

namespace {

// Calls use(product, place, inputs) for every tile of every block. With many blocks a thread takes whole blocks; a few
// blocks are divided among the threads one after the other. `preparing`: the work of preparing a tile, in input bytes.
template <class Use>
void for_tiles(const Product& product, int64_t preparing, ParallelFor parallel, const Use& use) {
  constexpr int64_t kGrain = 1 << 16;  // input bytes, for every tile that reads them, worth a thread
  constexpr int64_t kManyBlocks = 8;
  const Layer& layer = product.layer();
  const Tiling& tiling = product.tiling();
  const Blocks blocks(layer.geometry, product.most_rows());
  const auto run_block = [&](const Block& block, ParallelFor inner) {
    thread_local BlockInputs own;
    BlockInputs& inputs = own;
    const int64_t work = block.rows * layer.plane_count() * tiling.inputs() + preparing;
    for (int64_t group = 0; group < tiling.groups; ++group) {
      product.load(group, block, inputs, inner);
      parallel_ranges(inner, tiling.tiles_per_group, 1 + kGrain / (work + 1), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (i + 1 < end) product.fetch(group, i + 1, block.rows);
          use(product, Place{group, i, block}, inputs);
        }
      });
    }
  };
  if (blocks.size() < kManyBlocks) {
    for (int64_t i = 0; i < blocks.size(); ++i) run_block(blocks[i], parallel);
    return;
  }
  const int64_t bytes = layer.geometry.rows() * layer.plane_count() * tiling.inputs();
  const int64_t grain = 1 + kGrain / (bytes * tiling.tiles() / blocks.size() + 1);
  parallel_ranges(parallel, blocks.size(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_block(blocks[i], serial_for);
  });
}

// Lists whose tiles are packed one by one.
template <class Use>
void multiply_tile_by_tile(const Layer& layer, int steps, ParallelFor parallel, const Use& use) {
  const Tiling tiling(layer.geometry);
  const TilePacker pack_one(layer.weights, tiling);
  const Prepared none(tiling);
  const Lists lists(layer, none, steps);
  for_tiles(lists, 2 * tiling.tile_size, parallel, [&](const Product&, const Place& at, const BlockInputs& inputs) {
    thread_local Scratch<int32_t> words;
    int32_t* tile = words.reserve(tiling.tile_size);
    float unit[32];
    const int64_t number = at.group * tiling.tiles_per_group + at.tile;
    pack_one(number, tile, unit);
    use(Lists(lists, Prepared(tiling, number, tile, unit)), at, inputs);
  });
}

// Multiplies a layer, or a piece of it: calls use(product, place, inputs) for every tile.
template <class Use>
void multiply(const Layer& layer, const Way& way, const Prepared& prepared, ParallelFor parallel, const Use& use) {
  switch (way.algorithm) {
    case Algorithm::kTileByTile:
      return multiply_tile_by_tile(layer, way.steps, parallel, use);
    case Algorithm::kDigits:
      return for_tiles(Digits(layer, prepared), 0, parallel, use);
    case Algorithm::kPlain:
      return for_tiles(Plain(layer, prepared), 0, parallel, use);
    default:
      return for_tiles(Lists(layer, prepared, way.steps), 0, parallel, use);
  }
}

// Calls use(layer) for each piece of the layer, or for the whole layer: the sums of a piece stay in the cache.
template <class Use>
void for_pieces(const Layer& layer, const Use& use) {
  constexpr int kSteps = 32;
  thread_local Scratch<float> state;
  thread_local Scratch<double> sums;
  thread_local Scratch<uint16_t> counts;
  const int T = layer.neuron.T;
  if (layer.counted() || T <= kSteps) return use(layer);
  const int64_t n = layer.neuron.neurons;
  float* v = state.reserve(2 * n);
  const Carried<float> carried{v, v + n, sums.reserve(n), counts.reserve(n)};
  for (int first = 0; first < T; first += kSteps) {
    Layer part = layer;
    part.planes += layer.geometry.pixel(first / 8, 0, 0, 0);
    part.neuron = piece(layer.neuron, first, std::min(kSteps, T - first), carried);
    use(part);
  }
}

}  // namespace

void run(const Layer& layer, ParallelFor parallel) {
  if (layer.neuron.neurons == 0) return;
  const Way way = choose(layer, Density::of(layer));
  uint8_t* open = reserve_open(layer, Tiling(layer.geometry));
  if (way.algorithm == Algorithm::kFilter) {
    run_filter(layer, open, parallel);
    return write_mask(layer, open, parallel);
  }
  const Prepared prepared(layer, way.algorithm, parallel);
  for_pieces(layer, [&](const Layer& part) {
    multiply(part, way, prepared, parallel, [&](const Product& product, const Place& at, const BlockInputs& inputs) {
      product.fire(at, inputs, open);
    });
  });
  write_mask(layer, open, parallel);
}

// Spikes are counted first, for one product instead of one of each step; in a long window by whole planes whose counts
// fit a byte.
void window_product(const Layer& layer, float* u, ParallelFor parallel) {
  thread_local Scratch<uint8_t> memory;
  thread_local Scratch<double> totals;
  constexpr int kPlanes = 31;
  const int64_t size = layer.geometry.plane_size(), outputs = layer.geometry.outputs;
  const int64_t neurons = layer.geometry.neurons();
  if (neurons == 0) return;
  const int planes = layer.plane_count(), pieces = layer.neuron.T <= UINT8_MAX ? 1 : (planes + kPlanes - 1) / kPlanes;
  Layer counted = layer;
  counted.neuron.planes = nullptr;  // exact sums are wanted, not spikes
  if (!layer.counted()) {
    uint8_t* counts = memory.reserve(pieces * size);
    for (int i = 0; i < pieces; ++i) {
      const int first = i * kPlanes, count = pieces == 1 ? planes : std::min(kPlanes, planes - first);
      count_bytes(layer.planes + first * size, count, size, counts + i * size, parallel);
    }
    counted.planes = counts;
    counted.neuron.timing = Timing::kWindow;
  }
  const Way way = choose(counted, Density::of(counted));
  const Prepared prepared(counted, way.algorithm, parallel);
  if (pieces == 1) {
    return multiply(counted, way, prepared, parallel, [&](const Product& product, const Place& at, const auto& inputs) {
      write_products(product.tile(at), product.windows(at, inputs), u, outputs);
    });
  }
  double* sums = totals.reserve(neurons);
  std::fill_n(sums, neurons, 0.0);
  for (int i = 0; i < pieces; ++i, counted.planes += size) {
    multiply(counted, way, prepared, parallel, [&](const Product& product, const Place& at, const auto& inputs) {
      add_products(product.tile(at), product.windows(at, inputs), sums, outputs);
    });
  }
  std::copy_n(sums, neurons, u);
}

}  // namespace tandem::cpu
