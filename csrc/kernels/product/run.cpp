// run() and window_product(): a way is chosen, weights are prepared unless the caller has, then the layer is
// multiplied block by block of rows and tile by tile of outputs.
#include <algorithm>

#include "../cpu/vectors.h"
#include "active.h"
#include "choose.h"
#include "depthwise.h"
#include "pack.h"
#include "product.h"
#include "window.h"

namespace tandem::cpu {

namespace {

// Steps of a window that are multiplied at a time, so that their sums stay in the cache; and steps that are counted at
// a time: whole planes whose counts fit a byte.
constexpr int kPieceSteps = 32;
constexpr int kCountedSteps = 248;

// Calls use(product).
template <class Use>
void by_way(const Layer& layer, const Prepared& prepared, const Way& way, Task task, const Use& use) {
  switch (way.algorithm) {
    case Algorithm::kDigits:
      return use(Digits(layer, prepared, task == Task::kWindow || layer.counted()));
    case Algorithm::kPlain:
      return use(Plain(layer, prepared));
    default:
      return use(Lists(layer, prepared, way.steps));
  }
}

// Runs body(block, parallel) on every block. With many blocks a thread takes whole blocks; a few blocks are divided
// among the threads one after the other.
template <class Body>
void for_blocks(const Blocks& blocks, ParallelFor parallel, const Body& body) {
  constexpr int64_t kManyBlocks = 8;
  if (blocks.size() < kManyBlocks) {
    for (int64_t i = 0; i < blocks.size(); ++i) body(blocks[i], parallel);
    return;
  }
  parallel_ranges(parallel, blocks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(blocks[i], serial_for);
  });
}

// Calls use(place, inputs) for every tile of every block. `preparing`: the work of preparing a tile, in input bytes.
template <class Use>
void for_tiles(const Product& product, int64_t preparing, ParallelFor parallel, const Use& use) {
  constexpr int64_t kGrain = 1 << 16;  // input bytes of rows worth a thread
  const Layer& layer = product.layer();
  const Geometry& geometry = layer.geometry;
  for_blocks(Blocks(geometry, product.most_rows()), parallel, [&](const Block& block, ParallelFor inner) {
    thread_local BlockInputs own;
    BlockInputs& inputs = own;
    const int64_t work = block.rows * layer.plane_count() * geometry.inputs() + preparing;
    for (int64_t group = 0; group < geometry.groups; ++group) {
      product.load(group, block, inputs, inner);
      parallel_ranges(inner, product.prepared().tiling().tiles_per_group, 1 + kGrain / (work + 1),
                      [&](int64_t begin, int64_t end) {
                        for (int64_t i = begin; i < end; ++i) {
                          if (i + 1 < end) product.fetch(group, i + 1, block.rows);
                          use(Place{group, i, block}, inputs);
                        }
                      });
    }
  });
}

// Whether the layer is run in pieces of at most `most` steps.
bool has_pieces(const Layer& layer, int most) { return !layer.counted() && layer.neuron.T > most; }

// Calls use(layer) for each piece of the layer, or for the whole layer.
template <class Use>
void for_pieces(const Layer& layer, int most, const Carried<float>& carried, const Use& use) {
  if (!has_pieces(layer, most)) return use(layer);
  const Geometry& in = layer.geometry;
  const int T = layer.neuron.T;
  for (int first = 0; first < T; first += most) {
    Layer part = layer;
    part.planes += in.pixel(first / 8, 0, 0, 0);
    part.neuron = piece(layer.neuron, first, std::min(most, T - first), carried);
    use(part);
  }
}

// Lists whose tiles are packed one by one, with all inputs or, if `active` is given, only the active ones as channels.
void run_tiles(const Layer& layer, int steps, const ActiveInputs* active, ParallelFor parallel) {
  const Tiling tiling(layer.geometry);
  const TilePacker pack_one(layer.geometry, layer.weights, tiling, active);
  const Prepared none(tiling);
  const Lists lists(layer, none, steps);
  uint8_t* open = reserve_open(layer);
  for_tiles(lists, 2 * tiling.tile_size, parallel, [&](const Place& at, const BlockInputs& inputs) {
    thread_local Scratch<int32_t> words;
    int32_t* tile = words.reserve(tiling.tile_size);
    float unit[32];
    const int64_t number = at.group * tiling.tiles_per_group + at.tile;
    pack_one(number, tile, unit);
    Lists(lists, Prepared(tiling, number, tile, unit)).fire(at, inputs, open);
  });
  write_mask(layer, open, parallel);
}

void run_tile_by_tile(const Layer& layer, int steps, ParallelFor parallel) {
  if (!ActiveInputs::possible(layer.geometry)) return run_tiles(layer, steps, nullptr, parallel);
  const ActiveInputs active(layer);
  if (!active.pays()) return run_tiles(layer, steps, nullptr, parallel);
  Layer few = layer;
  few.geometry.channels = active.count;
  few.planes = active.planes.data();
  run_tiles(few, steps, &active, parallel);
}

}  // namespace

void run(const Layer& layer, ParallelFor parallel) {
  thread_local Scratch<float> state;
  thread_local Scratch<double> sums;
  thread_local Scratch<uint16_t> counts;
  if (layer.neuron.neurons == 0) return;
  const Way way = choose(layer, Task::kSpikes, Density::of(layer));
  if (way.algorithm == Algorithm::kDepthwise) return run_depthwise(layer, parallel);
  if (way.algorithm == Algorithm::kTileByTile) return run_tile_by_tile(layer, way.steps, parallel);
  const Prepared prepared(layer, way.algorithm, parallel);
  uint8_t* open = reserve_open(layer);
  const int64_t n = has_pieces(layer, kPieceSteps) ? layer.neuron.neurons : 0;
  float* v = state.reserve(2 * n);
  for_pieces(layer, kPieceSteps, {v, v + n, sums.reserve(n), counts.reserve(n)}, [&](const Layer& part) {
    by_way(part, prepared, way, Task::kSpikes, [&](const Product& product) {
      for_tiles(product, 0, parallel,
                [&](const Place& at, const BlockInputs& inputs) { product.fire(at, inputs, open); });
    });
  });
  write_mask(layer, open, parallel);
}

namespace {

TANDEM_INLINE void add_body(const double* more, int64_t n, double* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += more[i];
}
TANDEM_CPU_KERNEL(add, (const double* more, int64_t n, double* sum), (more, n, sum))

}  // namespace

void window_product(const Layer& layer, float* u, ParallelFor parallel) {
  thread_local Scratch<double> totals_memory;  // exact sums, rounded once they are complete
  const Geometry& geometry = layer.geometry;
  if (geometry.neurons() == 0) return;
  const Way way = choose(layer, Task::kWindow, Density::of(layer));
  if (way.algorithm == Algorithm::kDepthwise) return multiply_depthwise(layer, u, parallel);
  const Prepared prepared(layer, way.algorithm, parallel);
  const Tiling& tiling = prepared.tiling();
  const int most = way.algorithm == Algorithm::kDigits ? kCountedSteps : kPieceSteps, width = tiling.width();
  const int64_t tiles = geometry.groups * tiling.tiles_per_group;
  double* totals = totals_memory.reserve(has_pieces(layer, most) ? tiles * geometry.rows() * width : 0);
  for_pieces(layer, most, {}, [&](const Layer& part) {
    const bool first = part.neuron.before == 0, last = part.neuron.after == 0;
    by_way(part, prepared, way, Task::kWindow, [&](const Product& product) {
      for_tiles(product, 0, parallel, [&](const Place& at, const BlockInputs& inputs) {
        thread_local Scratch<double> memory;
        const int64_t size = at.block.rows * width;
        double* windows = memory.reserve(size);
        product.sum_window(at, inputs, windows);
        if (!first || !last) {
          const int64_t tile = at.group * tiling.tiles_per_group + at.tile;
          double* total = totals + (tile * geometry.rows() + at.block.first_row) * width;
          if (first) std::fill_n(total, size, 0.0);
          add(windows, size, total);
          windows = total;
        }
        if (last) write_products(product.tile(at), windows, u, geometry.outputs);
      });
    });
  });
}

}  // namespace tandem::cpu
