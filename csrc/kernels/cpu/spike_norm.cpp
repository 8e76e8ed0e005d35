// Products, statistics, neurons. The scan needs the statistics of all products first, and to keep these in main memory
// for so long would take more time than anything else. There are two ways around it:
// - The sums of all steps of a few tiles stay in the cache.
// - With a matrix unit, which multiplies spike counts as fast as spikes, the product of the counts gives the statistics
//   at an eighth of the price of the steps, which then are multiplied as in evaluation.
#include <algorithm>
#include <vector>

#include "lanes.h"
#include "scratch.h"
#include "spike_blocks.h"

namespace tandem::cpu {

namespace {

// Sums that are kept at a time: half of a common L2 cache.
constexpr int64_t kKeptBytes = int64_t{1} << 20;

// The sums over the steps, [rows, width], of those of a tile, [rows, planes, 8, width]: exact integers.
template <int L>
TANDEM_INLINE void add_steps_body(const int32_t* sums, int T, int64_t rows, int width, double* windows) {
  constexpr int H = L / 2;
  const int64_t row_size = (T + 7) / 8 * int64_t{8} * width;
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < width; i += H) {
      Vec<double, H> total{};
      for (int t = 0; t < T; ++t) {
        total += __builtin_convertvector(load<Int<float, H>>(sums + r * row_size + t * width + i), Vec<double, H>);
      }
      store(windows + r * width + i, total);
    }
  }
}
TANDEM_CPU_LANES_KERNEL(add_steps, (const int32_t* sums, int T, int64_t rows, int width, double* windows),
                        (sums, T, rows, width, windows))

// Products u of a tile from the sums over the steps, and the sums of u and u^2 over its rows.
struct Windows {
  const double* sums;  // [rows, width]
  int64_t rows;
  int width;
  const float* unit;  // [width]
  int64_t channels;   // that exist
  float* u;           // [rows, stride]
  int64_t stride;
};

template <int L>
TANDEM_INLINE void measure_windows_body(const Windows& w, double* sum, double* squares) {
  constexpr int H = L / 2;
  for (int i = 0; i < w.width; i += H) {
    const auto unit = load<Vec<float, H>>(w.unit + i);
    const int64_t lanes = std::clamp<int64_t>(w.channels - i, 0, H);
    Vec<double, H> total{}, total_squares{};
    for (int64_t r = 0; r < w.rows; ++r) {
      const auto u = __builtin_convertvector(load<Vec<double, H>>(w.sums + r * w.width + i), Vec<float, H>) * unit;
      const auto wide = __builtin_convertvector(u, Vec<double, H>);
      total += wide;
      total_squares += wide * wide;
      float* out = w.u + r * w.stride + i;
      if (lanes == H) {
        store(out, u);
      } else {
        for (int lane = 0; lane < lanes; ++lane) out[lane] = u[lane];
      }
    }
    store(sum + i, total);
    store(squares + i, total_squares);
  }
}
TANDEM_CPU_LANES_KERNEL(measure_windows, (const Windows& windows, double* sum, double* squares),
                        (windows, sum, squares))

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
  const Strip* strips_of(int64_t block) const { return blocks.strips.data() + blocks.first[block]; }
  int64_t strip_count(int64_t block) const { return blocks.first[block + 1] - blocks.first[block]; }
};

// The sums of u and u^2 of tiles [begin, end) of a group, one block of rows beside the other, so that they are added up
// in one order whatever the threads.
class Statistics {
 public:
  Statistics(const Layer& layer, int64_t group, int64_t begin, int64_t end)
      : layer_(layer), group_(group), begin_(begin), end_(end), width_(layer.prepared.tiling.width()) {
    memory_.resize(layer.blocks.size() * (end - begin) * 2 * width_);
  }

  // Those of a block and a tile, from the sums over the steps; writes u.
  void measure(int64_t block, int64_t i, const double* windows) {
    const Tile tile = tile_of(i, block);
    double* to = at(block, i);
    const int64_t outputs = layer_.product.outputs;
    measure_windows({windows, tile.rows, static_cast<int>(width_), tile.unit, tile.channels,
                     layer_.norm.product + tile.row * outputs + tile.channel, outputs},
                    to, to + width_);
  }

  // Mean, variance, scale and shift of the tiles' channels.
  void conclude() {
    for (int64_t i = begin_; i < end_; ++i) {
      const Tile tile = tile_of(i, 0);
      for (int64_t c = 0; c < tile.channels; ++c) {
        double sum = 0, squares = 0;
        for (int64_t block = 0; block < layer_.blocks.size(); ++block) {
          sum += at(block, i)[c];
          squares += at(block, i)[width_ + c];
        }
        const int64_t channel = tile.channel + c;
        float &mean = layer_.norm.mean[channel], &var = layer_.norm.var[channel];
        moments(sum, squares, layer_.product.rows(), mean, var);
        const Normalised<float> n = normalise(layer_.norm.norm, channel, mean, var);
        layer_.scale[channel] = n.scale;
        layer_.shift[channel] = n.shift;
      }
    }
  }

 private:
  Tile tile_of(int64_t i, int64_t block) const {
    static const SpikeLists none;
    return layer_.prepared.tile(layer_.product, layer_.planes(), group_, i, 0, none, layer_.rows_of(block),
                                layer_.first_row(block));
  }
  double* at(int64_t block, int64_t i) { return memory_.data() + (block * (end_ - begin_) + i - begin_) * 2 * width_; }

  const Layer& layer_;
  int64_t group_, begin_, end_, width_;
  std::vector<double> memory_;
};

// All statistics by the products of the counts.
void measure_counts(const Layer& layer, ParallelFor parallel) {
  const SpikeProduct& product = layer.product;
  const Tiling& tiling = layer.prepared.tiling;
  for (int64_t group = 0; group < product.groups; ++group) {
    Statistics statistics(layer, group, 0, tiling.tiles_per_group);
    parallel_ranges(parallel, layer.blocks.size(), 1, [&](int64_t first, int64_t last) {
      thread_local DenseInputs inputs;
      thread_local Scratch<double> windows_memory;
      for (int64_t block = first; block < last; ++block) {
        double* windows = windows_memory.reserve(layer.rows_of(block) * tiling.width());
        inputs.count_spikes(product, layer.planes(), group * product.group_channels(), layer.strips_of(block),
                            layer.strip_count(block));
        for (int64_t i = 0; i < tiling.tiles_per_group; ++i) {
          dense_windows(inputs, layer.prepared.columns(group, i), tiling.registers, windows);
          statistics.measure(block, i, windows);
        }
      }
    });
    statistics.conclude();
  }
}

// Tiles [begin, end) of a group. `lists` holds those of every block and K-block, built if `build`.
void run_tiles(const Layer& layer, int64_t group, int64_t begin, int64_t end, std::vector<SpikeLists>& lists,
               bool build, int32_t* sums, ParallelFor parallel) {
  const SpikeProduct& product = layer.product;
  const Prepared& prepared = layer.prepared;
  const Tiling& tiling = prepared.tiling;
  const int64_t rows = product.rows();
  const auto sums_of = [&](int64_t i, int64_t block) {
    return sums + ((i - begin) * rows + layer.first_row(block)) * layer.row_ints();
  };
  const auto tile_of = [&](int64_t i, int64_t q, int64_t block) {
    return prepared.tile(product, layer.planes(), group, i, q, lists[block * tiling.blocks + q], layer.rows_of(block),
                         layer.first_row(block));
  };
  Statistics statistics(layer, group, begin, end);

  parallel_ranges(parallel, layer.blocks.size(), 1, [&](int64_t first, int64_t last) {
    thread_local DenseInputs inputs;
    thread_local Scratch<double> windows_memory;
    for (int64_t block = first; block < last; ++block) {
      const int64_t channel = group * product.group_channels();
      if (prepared.dense) {
        inputs.expand(product, layer.planes(), channel, layer.strips_of(block), layer.strip_count(block));
      }
      for (int64_t q = 0; build && !prepared.dense && q < tiling.blocks; ++q) {
        build_lists(product, layer.planes(), prepared.width, channel + tiling.first_channel(q),
                    channel + tiling.last_channel(product, q), layer.strips_of(block), layer.strip_count(block),
                    lists[block * tiling.blocks + q], serial_for);
      }
      double* windows = windows_memory.reserve(layer.rows_of(block) * tiling.width());
      for (int64_t i = begin; i < end; ++i) {
        int32_t* out = sums_of(i, block);
        if (prepared.dense) dense_tile(inputs, layer.neuron.T, prepared.columns(group, i), tiling.registers, out);
        for (int64_t q = 0; !prepared.dense && q < tiling.blocks; ++q) product_tile(tile_of(i, q, block), out, q == 0);
        add_steps(out, layer.neuron.T, layer.rows_of(block), tiling.width(), windows);
        statistics.measure(block, i, windows);
      }
    }
  });
  statistics.conclude();

  parallel_ranges(parallel, layer.blocks.size(), 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      for (int64_t i = begin; i < end; ++i) {
        scan_tile(tile_of(i, 0, block), sums_of(i, block), layer.neuron, prepared.gates);
      }
    }
  });
}

void run_kept(const Layer& layer, int64_t tile_bytes, ParallelFor parallel) {
  thread_local Scratch<int32_t> sums_memory;
  thread_local std::vector<SpikeLists> lists;
  const Tiling& tiling = layer.prepared.tiling;
  const int64_t lists_needed = layer.blocks.size() * tiling.blocks;
  if (static_cast<int64_t>(lists.size()) < lists_needed) lists.resize(lists_needed);
  const int64_t at_once = std::clamp<int64_t>(kKeptBytes / tile_bytes, 1, tiling.tiles_per_group);
  int32_t* sums = sums_memory.reserve(at_once * layer.product.rows() * layer.row_ints());
  for (int64_t group = 0; group < layer.product.groups; ++group) {
    for (int64_t begin = 0; begin < tiling.tiles_per_group; begin += at_once) {
      run_tiles(layer, group, begin, std::min(begin + at_once, tiling.tiles_per_group), lists, begin == 0, sums,
                parallel);
    }
  }
}

}  // namespace

bool product_norm_if(const SpikeProduct& product, const BatchNormForward& norm, const NeuronArgs<float>& neuron,
                     ParallelFor parallel) {
  if (neuron.neurons == 0) return true;
  const int planes = (neuron.T + 7) / 8;
  const Tiling tiling(product);
  const int64_t tile_bytes = product.rows() * planes * 8 * tiling.width() * static_cast<int64_t>(sizeof(int32_t));
  const bool many_rows = tile_bytes > kKeptBytes;
  const Prepared prepared(product, neuron, parallel, many_rows);
  if (prepared.packed == nullptr) return false;
  std::vector<float> scale(product.outputs), shift(product.outputs);
  NeuronArgs<float> scaled = neuron;
  scaled.scale = scale.data();
  scaled.shift = shift.data();
  const Blocks blocks(product, std::min<int64_t>(64, block_rows(product, tiling, planes)));
  const Layer layer{product, norm, scaled, prepared, blocks, scale.data(), shift.data()};
  if (many_rows && prepared.digits != nullptr) {
    measure_counts(layer, parallel);
    run_layer(product, scaled, prepared, parallel);
  } else {
    run_kept(layer, tile_bytes, parallel);
  }
  prepared.finish(neuron, parallel);
  return true;
}

}  // namespace tandem::cpu
