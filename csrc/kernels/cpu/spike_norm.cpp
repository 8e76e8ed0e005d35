// Products, statistics, neurons: the sums of all steps of a group of tiles stay in cache between the products and the
// scan that needs their statistics.
#include <algorithm>
#include <vector>

#include "capability.h"
#include "scratch.h"
#include "spike_blocks.h"

namespace tandem::cpu {

namespace {

// Sums of the groups of tiles whose steps are kept at a time: half of a common L3 cache.
constexpr int64_t kKeptBytes = int64_t{16} << 20;

// u = y[0] + y[1] + ... of the rows of a tile, from the sums [rows, planes, 8, width]; adds u and u^2 to the
// statistics.
TANDEM_INLINE void window_sums_body(const int32_t* sums, int T, int64_t rows, int width, const float* unit,
                                    int64_t channels, float* u, int64_t stride, double* sum, double* squares) {
  const int64_t row_size = (T + 7) / 8 * int64_t{8} * width;
  for (int first = 0; first < width; first += 16) {
    double total[16] = {}, total_squares[16] = {};
    const int lanes = static_cast<int>(std::min<int64_t>(16, channels - first));
    for (int64_t r = 0; r < rows; ++r) {
      float z[16] = {};
      for (int t = 0; t < T; ++t) {
        const int32_t* y = sums + r * row_size + t * width + first;
        for (int i = 0; i < 16; ++i) z[i] += static_cast<float>(y[i]) * unit[first + i];
      }
      for (int i = 0; i < 16; ++i) {
        const double x = z[i];
        total[i] += x;
        total_squares[i] += x * x;
      }
      if (lanes == 16) {
        std::copy_n(z, 16, u + r * stride + first);
      } else {
        for (int i = 0; i < lanes; ++i) u[r * stride + first + i] = z[i];
      }
    }
    std::copy_n(total, 16, sum + first);
    std::copy_n(total_squares, 16, squares + first);
  }
}
TANDEM_CPU_KERNEL(window_sums,
                  (const int32_t* sums, int T, int64_t rows, int width, const float* unit, int64_t channels, float* u,
                   int64_t stride, double* sum, double* squares),
                  (sums, T, rows, width, unit, channels, u, stride, sum, squares))

struct Layer {
  const SpikeProduct& product;
  const BatchNormForward& norm;
  const NeuronArgs<float>& neuron;
  const Prepared& prepared;
  const Blocks& blocks;
  float *scale, *shift;  // [outputs]

  int planes() const { return (neuron.T + 7) / 8; }
  int64_t row_ints() const { return planes() * int64_t{8} * prepared.tiling.width(); }

  int64_t first_row(int64_t block) const {
    const Strip& s = blocks.strips[blocks.first[block]];
    return (s.b * product.out_height() + s.y) * product.out_width() + s.x0;
  }
  int64_t rows_of(int64_t block) const {
    return (block + 1 < blocks.size() ? first_row(block + 1) : product.rows()) - first_row(block);
  }
};

// Tiles [begin, end) of a group. `lists` holds those of every block and K-block, built if `build`.
void run_tiles(const Layer& layer, int64_t group, int64_t begin, int64_t end, std::vector<SpikeLists>& lists,
               bool build, int32_t* sums, std::vector<double>& statistics, ParallelFor parallel) {
  const SpikeProduct& product = layer.product;
  const Tiling& tiling = layer.prepared.tiling;
  const int64_t tiles = end - begin, rows = product.rows(), width = tiling.width();
  const auto sums_of = [&](int64_t i, int64_t block) {
    return sums + ((i - begin) * rows + layer.first_row(block)) * layer.row_ints();
  };
  const auto tile_of = [&](int64_t i, int64_t q, int64_t block) {
    return layer.prepared.tile(product, layer.planes(), group, i, q, lists[block * tiling.blocks + q],
                               layer.rows_of(block), layer.first_row(block));
  };
  statistics.resize(layer.blocks.size() * tiles * 2 * width);

  parallel_ranges(parallel, layer.blocks.size(), 1, [&](int64_t first, int64_t last) {
    thread_local DenseInputs inputs;
    const bool dense = layer.prepared.dense != nullptr;
    for (int64_t block = first; block < last; ++block) {
      const int64_t channel = group * product.group_channels(), strip = layer.blocks.first[block];
      if (dense) {
        inputs.expand(product, layer.planes(), channel, layer.blocks.strips.data() + strip,
                      layer.blocks.first[block + 1] - strip);
      }
      for (int64_t q = 0; build && !dense && q < tiling.blocks; ++q) {
        build_lists(product, layer.planes(), layer.prepared.width, channel + tiling.first_channel(q),
                    channel + tiling.last_channel(product, q), layer.blocks.strips.data() + strip,
                    layer.blocks.first[block + 1] - strip, lists[block * tiling.blocks + q], serial_for);
      }
      for (int64_t i = begin; i < end; ++i) {
        int32_t* out = sums_of(i, block);
        if (dense) layer.prepared.dense_sums(layer.neuron.T, group, i, inputs, out);
        for (int64_t q = 0; !dense && q < tiling.blocks; ++q) product_tile(tile_of(i, q, block), out, q == 0);
        const Tile tile = tile_of(i, 0, block);
        double* at = statistics.data() + (block * tiles + i - begin) * 2 * width;
        window_sums(out, layer.neuron.T, tile.rows, static_cast<int>(width), tile.unit, tile.channels,
                    layer.norm.product + tile.row * product.outputs + tile.channel, product.outputs, at, at + width);
      }
    }
  });

  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_of(i, 0, 0);
    for (int64_t c = 0; c < tile.channels; ++c) {
      double sum = 0, squares = 0;
      for (int64_t block = 0; block < layer.blocks.size(); ++block) {
        const double* at = statistics.data() + (block * tiles + i - begin) * 2 * width;
        sum += at[c];
        squares += at[width + c];
      }
      const int64_t channel = tile.channel + c;
      float &mean = layer.norm.mean[channel], &var = layer.norm.var[channel];
      moments(sum, squares, rows, mean, var);
      const Normalised<float> n = normalise(layer.norm.norm, channel, mean, var);
      layer.scale[channel] = n.scale;
      layer.shift[channel] = n.shift;
    }
  }

  parallel_ranges(parallel, layer.blocks.size(), 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      for (int64_t i = begin; i < end; ++i) {
        scan_tile(tile_of(i, 0, block), sums_of(i, block), layer.neuron, layer.prepared.gates);
      }
    }
  });
}

}  // namespace

bool product_norm_if(const SpikeProduct& product, const BatchNormForward& norm, const NeuronArgs<float>& neuron,
                     ParallelFor parallel) {
  if (neuron.neurons == 0) return true;
  const Prepared prepared(product, neuron, parallel);
  if (prepared.packed == nullptr) return false;
  thread_local Scratch<int32_t> sums_memory;
  thread_local std::vector<SpikeLists> lists;
  std::vector<float> scale(product.outputs), shift(product.outputs);
  NeuronArgs<float> scaled = neuron;
  scaled.scale = scale.data();
  scaled.shift = shift.data();

  const Tiling& tiling = prepared.tiling;
  const Blocks blocks(product, std::min<int64_t>(64, block_rows(product, tiling, (neuron.T + 7) / 8)));
  const Layer layer{product, norm, scaled, prepared, blocks, scale.data(), shift.data()};
  const int64_t lists_needed = blocks.size() * tiling.blocks;
  if (static_cast<int64_t>(lists.size()) < lists_needed) lists.resize(lists_needed);
  const int64_t tile_bytes = product.rows() * layer.row_ints() * static_cast<int64_t>(sizeof(int32_t));
  const int64_t at_once = std::clamp<int64_t>(kKeptBytes / tile_bytes, 1, tiling.tiles_per_group);
  int32_t* sums = sums_memory.reserve(at_once * product.rows() * layer.row_ints());
  std::vector<double> statistics;
  for (int64_t group = 0; group < product.groups; ++group) {
    for (int64_t begin = 0; begin < tiling.tiles_per_group; begin += at_once) {
      run_tiles(layer, group, begin, std::min(begin + at_once, tiling.tiles_per_group), lists, begin == 0, sums,
                statistics, parallel);
    }
  }
  prepared.finish(neuron, parallel);
  return true;
}

}  // namespace tandem::cpu
