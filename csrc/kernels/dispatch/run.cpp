// run() and window_product(): a way is chosen, weights are prepared unless the caller has, then the layer is
// multiplied block by block of rows and tile by tile of outputs.
#include <algorithm>

#include "../planes/bits.h"
#include "../product/filter.h"
#include "../product/product.h"
#include "../product/tile.h"
#include "choose.h"

namespace tandem::cpu {

namespace {

// Calls use(product, tile, inputs, workspace) for every tile of every block. With many blocks a thread takes whole
// blocks; a few blocks are divided among the threads one after the other.
template <class Use>
void for_tiles(const Product& product, Workspace& workspace, ParallelFor parallel, const Use& use) {
  constexpr int64_t kGrain = 1 << 16;  // input bytes, for every tile that reads them, worth a thread
  constexpr int64_t kManyBlocks = 8;
  const Layer& layer = product.layer();
  const Tiling& tiling = product.tiling();
  const std::vector<Block> blocks = blocks_of(layer.geometry, product.most_rows());
  const auto count = static_cast<int64_t>(blocks.size());
  const auto run_block = [&](const Block& block, ParallelFor inner, Workspace& outer) {
    const int64_t work = block.rows * layer.sheets() * tiling.inputs() + product.prepared().work();
    for (int64_t group = 0; group < tiling.groups; ++group) {
      const int64_t first = group * tiling.tiles_per_group, last = first + tiling.tiles_per_group;
      Workspace of_group(outer);
      const BlockInputs inputs = product.load(group, block, of_group, inner);
      const int64_t grain = 1 + kGrain / (work + 1);
      for_workers(inner, tiling.tiles_per_group, grain, [&](int64_t begin, int64_t end, Workspace& own) {
        for (int64_t i = first + begin; i < first + end; ++i) {
          Workspace of_tile(own);
          if (i + 1 < last) product.fetch(i + 1, block.rows);
          use(product, product.tile(i, block, of_tile), inputs, of_tile);
        }
      });
    }
  };
  if (count < kManyBlocks) {
    for (const Block& block : blocks) run_block(block, parallel, workspace);
    return;
  }
  const int64_t bytes = layer.geometry.rows() * layer.sheets() * tiling.inputs();
  const int64_t grain = 1 + kGrain / (bytes * tiling.tiles() / count + 1);
  for_workers(parallel, count, grain, [&](int64_t begin, int64_t end, Workspace& own) {
    for (int64_t i = begin; i < end; ++i) run_block(blocks[i], serial_for, own);
  });
}

// Multiplies a layer, or a piece of it: calls use(product, tile, inputs, workspace) for every tile.
template <class Use>
void multiply_layer(const Layer& layer, const Way& way, const Prepared& prepared, Workspace& workspace,
                    ParallelFor parallel, const Use& use) {
  switch (way.algorithm) {
    case Algorithm::kDigits:
      return for_tiles(Digits(layer, prepared), workspace, parallel, use);
    case Algorithm::kPlain:
      return for_tiles(Plain(layer, prepared), workspace, parallel, use);
    default:
      return for_tiles(Lists(layer, prepared, way.steps), workspace, parallel, use);
  }
}

// Prepares the weights, unless they are. Those that are read `once`, by one block, are packed tile by tile just before
// they are multiplied, so that they stay in the L2 cache.
Prepared prepare(Layer& layer, const Way& way, bool once, Workspace& workspace, ParallelFor parallel) {
  const bool digits = way.algorithm == Algorithm::kDigits;
  if (layer.prepared == nullptr) {
    const int64_t most = digits ? Digits::most_rows(layer) : Lists::most_rows(layer);
    const bool by_tile = once && layer.geometry.rows() <= most && way.algorithm != Algorithm::kPlain;
    if (!by_tile) layer.prepared = prepare(layer.geometry, layer.weights, way.algorithm, workspace, parallel);
  }
  return Prepared(layer, digits);
}

// Calls use(layer) for each piece of the layer, or for the whole layer: the sums of a piece stay in the cache.
constexpr int kSteps = 32;
bool is_one_piece(const Layer& layer) { return layer.timing() == Timing::kWindow || layer.neuron.T <= kSteps; }
template <class Use>
void for_pieces(const Layer& layer, Workspace& workspace, const Use& use) {
  if (is_one_piece(layer)) return use(layer);
  const int T = layer.neuron.T;
  const int64_t n = layer.neuron.neurons;
  const Carried carried{workspace.take<float>(n), workspace.take<float>(n), workspace.take<double>(n),
                        workspace.take<uint16_t>(n)};
  for (int first = 0; first < T; first += kSteps) {
    Layer part = layer;
    part.stored += layer.geometry.pixel(first / 8, 0, 0, 0);
    part.neuron = piece(layer.neuron, first, std::min(kSteps, T - first), carried);
    use(part);
  }
}

// Spikes are counted first, for one product instead of one of each step; in a long window by pieces of whole planes
// whose counts fit a byte.
constexpr int kPlanesOfPiece = 31;
int64_t pieces_of(const Layer& layer) {
  return layer.neuron.T <= UINT8_MAX ? 1 : (layer.sheets() + kPlanesOfPiece - 1) / kPlanesOfPiece;
}

// Calls use(product, tile, inputs, workspace) for every tile of every piece.
template <class Use>
void multiply_counts(const Layer& layer, ParallelFor parallel, const Use& use) {
  if (layer.geometry.neurons() == 0) return;
  const int64_t size = layer.geometry.sheet_size(), pieces = pieces_of(layer), sheets = layer.sheets();
  Workspace workspace;
  Layer counted = layer;
  counted.neuron.stored = nullptr;  // wants_sums()
  if (layer.timing() == Timing::kStep) {
    auto* counts = workspace.take<uint8_t>(pieces * size);
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t first = i * kPlanesOfPiece;
      const int64_t count = pieces == 1 ? sheets : std::min<int64_t>(kPlanesOfPiece, sheets - first);
      count_bytes(layer.stored + first * size, static_cast<int32_t>(count), size, counts + i * size, parallel);
    }
    counted.stored = counts;
    counted.neuron.timing = Timing::kWindow;
  }
  const Way way = choose(counted, Density::measure(counted));
  const Prepared prepared = prepare(counted, way, pieces == 1, workspace, parallel);
  for (int64_t i = 0; i < pieces; ++i, counted.stored += size) {
    multiply_layer(counted, way, prepared, workspace, parallel, use);
  }
}

// Packs neuron.open into the mask, unless null.
void write_mask(const Neuron& neuron, ParallelFor parallel) {
  if (neuron.open == nullptr) return;
  parallel_ranges(parallel, (neuron.neurons + 7) / 8, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int byte = 0;
      for (int64_t n = 8 * i; n < std::min(8 * i + 8, neuron.neurons); ++n) byte |= neuron.open[n] << (n % 8);
      neuron.mask[i] = static_cast<uint8_t>(byte);
    }
  });
}

}  // namespace

void prepare_twice(Layer& layer, Workspace& workspace, ParallelFor parallel) {
  // Where digits are faster for steps, they are for counts too, and tiles of words are not read.
  const bool digits = choose(layer, Density::measure(layer)).algorithm == Algorithm::kDigits;
  if (digits) layer.way.algorithm = Algorithm::kDigits;
  const Algorithm read = digits ? Algorithm::kDigits : Algorithm::kFastest;
  layer.prepared = prepare(layer.geometry, layer.weights, read, workspace, parallel);
}

void run(const Layer& whole, ParallelFor parallel) {
  if (whole.neuron.neurons == 0) return;
  Workspace workspace;
  Layer layer = whole;
  // Gates of a group that do not fill whole bytes of the mask are bytes first.
  const bool open = layer.neuron.mask != nullptr && Tiling(layer.geometry).outputs % 8 != 0;
  layer.neuron.open = open ? workspace.take<uint8_t>(layer.neuron.neurons) : nullptr;
  const Way way = choose(layer, Density::measure(layer));
  if (way.algorithm == Algorithm::kFilter) {
    run_filter(layer, workspace, parallel);
  } else {
    const Prepared prepared = prepare(layer, way, is_one_piece(layer), workspace, parallel);
    for_pieces(layer, workspace, [&](const Layer& part) {
      multiply_layer(part, way, prepared, workspace, parallel,
                     [](const Product& product, const Tile& tile, const BlockInputs& inputs, Workspace& own) {
                       product.fire(tile, inputs, own);
                     });
    });
  }
  write_mask(layer.neuron, parallel);
}

void window_product(const Layer& layer, float* u, ParallelFor parallel) {
  const int64_t outputs = layer.geometry.outputs, neurons = layer.geometry.neurons();
  if (pieces_of(layer) == 1) {
    return multiply_counts(
        layer, parallel, [=](const Product& product, const Tile& tile, const BlockInputs& inputs, Workspace& own) {
          product.rounded_windows(tile, inputs, own,
                                  [&](const auto* windows) { write_products(tile, windows, u, outputs); });
        });
  }
  Workspace workspace;
  auto* sums = workspace.take<double>(neurons);
  std::fill_n(sums, neurons, 0.0);
  add_window_product(layer, sums, parallel);
  std::copy_n(sums, neurons, u);
}

void add_window_product(const Layer& layer, double* sums, ParallelFor parallel) {
  const int64_t outputs = layer.geometry.outputs;
  multiply_counts(layer, parallel,
                  [=](const Product& product, const Tile& tile, const BlockInputs& inputs, Workspace& own) {
                    add_products(tile, product.windows(tile, inputs, own), sums, outputs);
                  });
}

}  // namespace tandem::cpu
