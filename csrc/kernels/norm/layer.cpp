// A layer that normalises its product by the statistics of the batch.
//
// Neurons need the statistics of all rows before they fire. Writing the sums of all steps to main memory until then
// would take more time than anything else. There are two ways around it:
// - The sums of all steps of a few tiles stay in the cache.
// - The product of the counts is taken first, then the steps are multiplied as in evaluation. On a matrix unit the
//   counts cost an eighth of the steps. Long windows use this way on every processor.
#include "../layer.h"

#include <algorithm>
#include <vector>

#include "../neuron/scan.h"
#include "../product/clock.h"
#include "../product/multiply.h"
#include "../product/window.h"

namespace tandem::cpu {

namespace {

// Sums that are kept at a time: half of a common L2 cache.
constexpr int64_t kKeptBytes = int64_t{1} << 20;
// The sums of longer windows are not kept unless they fit there: they would need too much memory.
constexpr int kKeptSteps = 128;

// The scale and shift of a layer's neurons, from the statistics of its product.
struct Affine {
  float* product;
  std::vector<float> scale, shift;
  BatchNormStatistics<float> statistics;

  Affine(const Layer& layer, const LayerNorm& norm)
      : product(norm.product),
        scale(layer.geometry.outputs),
        shift(layer.geometry.outputs),
        statistics{layer.geometry.rows(),
                   layer.geometry.outputs,
                   norm.product,
                   1.f,
                   norm.norm,
                   norm.mean,
                   norm.var,
                   scale.data(),
                   shift.data()} {}

  Layer apply(Layer layer) const {
    layer.neuron.scale = scale.data();
    layer.neuron.shift = shift.data();
    return layer;
  }
};

// Runs tiles [begin, end) of a group. `inputs` has the inputs of every block; `load` loads them first.
void run_tiles(const Multiplier& m, const Blocks& blocks, int64_t group, int64_t begin, int64_t end,
               const Affine& affine, std::vector<BlockInputs>& inputs, bool load, int32_t* sums, uint8_t* open,
               ParallelFor parallel) {
  const Geometry& geometry = m.layer.geometry;
  const int width = m.prepared.tiling().width();
  const int64_t row_size = m.layer.plane_count() * int64_t{8} * width;
  const auto sums_of = [&](int64_t i, const Block& block) {
    return sums + ((i - begin) * geometry.rows() + block.first_row) * row_size;
  };
  parallel_ranges(parallel, blocks.size(), 1, [&](int64_t first, int64_t last) {
    thread_local Scratch<double> windows_memory;
    thread_local BlockInputs expanded;  // loaded each time: expanded inputs are larger than lists
    for (int64_t b = first; b < last; ++b) {
      const Block block = blocks[b];
      const bool unit = m.way == Way::kMatrixUnit;
      BlockInputs& in = unit ? expanded : inputs[b];
      if (load || unit) m.load(group, block, in, serial_for);
      double* windows = windows_memory.reserve(block.rows * width);
      for (int64_t i = begin; i < end; ++i) {
        m.sum(group, i, block, in, sums_of(i, block));
        add_steps(sums_of(i, block), m.layer.neuron.T, block.rows, width, windows);
        write_products(m.tile(group, i, block), windows, affine.product, geometry.outputs);
      }
    }
  });
  const int64_t first_channel = group * geometry.group_outputs();
  batch_norm_statistics(affine.statistics, first_channel + begin * width,
                        first_channel + std::min(end * width, geometry.group_outputs()), parallel);
  const Layer scaled = affine.apply(m.layer);
  parallel_ranges(parallel, blocks.size(), 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const Block block = blocks[b];
      for (int64_t i = begin; i < end; ++i) {
        fire_sums(m.tile(group, i, block), sums_of(i, block), scaled.neuron, open);
      }
    }
  });
}

// Bytes of the sums of all steps of a tile.
int64_t bytes_of_tile(const Layer& layer, const Tiling& tiling) {
  return layer.geometry.rows() * layer.plane_count() * 8 * tiling.width() * static_cast<int64_t>(sizeof(int32_t));
}

// Keeps the sums of all steps of a few tiles at a time in the cache.
void run_kept(const Multiplier& m, const Affine& affine, ParallelFor parallel) {
  thread_local Scratch<int32_t> sums_memory;
  thread_local std::vector<BlockInputs> inputs;
  const Geometry& geometry = m.layer.geometry;
  const Tiling& tiling = m.prepared.tiling();
  const Blocks blocks(geometry, std::min<int64_t>(64, listed_rows(geometry, tiling, m.layer.plane_count())));
  if (static_cast<int64_t>(inputs.size()) < blocks.size()) inputs.resize(blocks.size());
  const int64_t tile_bytes = bytes_of_tile(m.layer, tiling);
  const int64_t at_once = std::clamp<int64_t>(kKeptBytes / tile_bytes, 1, tiling.tiles_per_group);
  int32_t* sums = sums_memory.reserve(at_once * tile_bytes / static_cast<int64_t>(sizeof(int32_t)));
  uint8_t* open = reserve_open(m.layer);
  for (int64_t group = 0; group < geometry.groups; ++group) {
    for (int64_t begin = 0; begin < tiling.tiles_per_group; begin += at_once) {
      run_tiles(m, blocks, group, begin, std::min(begin + at_once, tiling.tiles_per_group), affine, inputs, begin == 0,
                sums, open, parallel);
    }
  }
  write_mask(m.layer, open, parallel);
}

// Neurons of window timing need only the product of the window.
void run_counted(const Layer& layer, const Affine& affine, ParallelFor parallel) {
  window_product(layer, affine.product, parallel);
  batch_norm_statistics(affine.statistics, parallel);
  if_scan(affine.product, DType::kFloat32, Source::kImpulse, affine.apply(layer).neuron, parallel);
}

}  // namespace

void run_normalised(const Layer& given, const LayerNorm& norm, ParallelFor parallel) {
  if (given.neuron.neurons == 0) return;
  const Affine affine(given, norm);
  if (given.counted()) return run_counted(given, affine, parallel);
  const Layer layer = by_fixed_way(given, false);
  const TimedWay timed(layer, ways_of(layer), Task::kNormalised);
  const Way way = timed.way();
  const Way digits = possible_way(layer, layer.way == Way::kDense ? Way::kDense : Way::kMatrixUnit, true);
  const bool by_digits = takes_digits(digits) && layer.way != Way::kLists;
  const bool large = bytes_of_tile(layer, Tiling(layer.geometry)) > kKeptBytes;
  const bool twice = large && (by_digits || layer.neuron.T > kKeptSteps);
  const Prepared prepared(layer, !takes_digits(way), takes_digits(way) || (twice && by_digits), parallel);
  if (twice) {
    multiply_windows({layer, prepared, by_digits ? digits : way}, norm.product, parallel);
    batch_norm_statistics(affine.statistics, parallel);
    const Layer scaled = affine.apply(layer);
    run_prepared({scaled, prepared, way}, parallel);
  } else {
    run_kept({layer, prepared, way}, affine, parallel);
  }
  timed.end();
}

}  // namespace tandem::cpu
