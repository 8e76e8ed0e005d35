#include "multiply.h"

#include "../cpu/vectors.h"
#include "clock.h"
#include "dense.h"
#include "pack.h"
#include "plain.h"
#include "window.h"

namespace tandem::cpu {

namespace {

TANDEM_INLINE void or_bytes_body(const uint8_t* bytes, int64_t size, uint64_t* all) {
  uint64_t any[8] = {};
  int64_t i = 0;
  for (; i + 64 <= size; i += 64) {
    for (int j = 0; j < 8; ++j) any[j] |= load<uint64_t>(bytes + i + 8 * j);
  }
  for (; i < size; ++i) any[0] |= bytes[i];
  for (const uint64_t word : any) *all |= word;
}
TANDEM_CPU_KERNEL(or_bytes, (const uint8_t* bytes, int64_t size, uint64_t* all), (bytes, size, all))

// Whether no count exceeds 15.
bool are_nibbles(const Layer& layer) {
  const Geometry& in = layer.geometry;
  uint64_t all = 0;
  or_bytes(layer.planes, in.batch * in.height * in.width * in.channels, &all);
  return (all & 0xf0f0f0f0f0f0f0f0ull) == 0;
}

}  // namespace

Multiplier::Multiplier(const Layer& of, const Prepared& weights, Way wanted)
    : layer(of), prepared(weights), way(wanted) {
  if (way == Way::kPlain && weights.bytes()) way = Way::kLists4;
  list_steps = way > Way::kLists4 ? 0 : prepared.bytes() ? kByteSteps : static_cast<int>(way);
  list_bits = list_steps == 4 && of.counted() && of.geometry.neurons() > 0 && are_nibbles(of) ? 4 : 8;
}

Blocks Multiplier::blocks() const {
  const Geometry& geometry = layer.geometry;
  const int planes = layer.plane_count();
  if (takes_digits(way)) return {geometry, expanded_rows(geometry, layer.counted() ? 1 : 8 * planes)};
  return {geometry, listed_rows(geometry, prepared.tiling(), planes)};
}

void Multiplier::load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const {
  const Tiling& tiling = prepared.tiling();
  const int64_t channel = group * layer.geometry.group_channels();
  if (takes_digits(way) && layer.counted()) return load_counts(group, block, inputs);
  if (takes_digits(way)) inputs.expanded.expand(layer, channel, block);
  if (static_cast<int64_t>(inputs.lists.size()) < tiling.blocks) inputs.lists.resize(tiling.blocks);
  for (int64_t q = 0; list_steps > 0 && q < tiling.blocks; ++q) {
    build_lists(layer, list_steps, list_bits, channel + tiling.first_channel(q),
                channel + tiling.last_channel(layer.geometry, q), block, inputs.lists[q], parallel);
  }
}

void Multiplier::load_counts(int64_t group, const Block& block, BlockInputs& inputs) const {
  inputs.expanded.count_spikes(layer, group * layer.geometry.group_channels(), block);
}

void Multiplier::sum_counts(int64_t group, int64_t i, const BlockInputs& inputs, double* windows) const {
  const DigitColumn* columns = prepared.columns(group, i);
  const int registers = prepared.tiling().registers;
  if (way == Way::kMatrixUnit) return multiply_counts(inputs.expanded, columns, registers, windows);
  multiply_counts_dense(inputs.expanded, columns, registers, windows, byte_products());
}

Tile Multiplier::tile(int64_t group, int64_t i, const Block& block) const {
  static const SpikeLists none;
  return prepared.tile(layer, group, i, 0, none, block.rows, block.first_row);
}

void Multiplier::sum(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs, int32_t* sums) const {
  const Tiling& tiling = prepared.tiling();
  if (way == Way::kMatrixUnit) {
    return multiply_tile(inputs.expanded, layer.neuron.T, prepared.columns(group, i), tiling.registers, sums);
  }
  if (way == Way::kDense) {
    return multiply_steps_dense(inputs.expanded, layer.neuron.T, prepared.columns(group, i), tiling.registers, sums,
                                byte_products());
  }
  if (way == Way::kPlain) return sum_plain(layer, tiling, tile(group, i, block), group, sums);
  const auto tile_of = [&](int64_t q) {
    return prepared.tile(layer, group, i, q, inputs.lists[q], block.rows, block.first_row);
  };
  const auto sum_block = prepared.bytes() ? sum_byte_lists : sum_lists;
  for (int64_t q = 0; q < tiling.blocks; ++q) sum_block(tile_of(q), sums, q == 0);
}

void Multiplier::sum_window(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs,
                            double* windows) const {
  thread_local Scratch<int32_t> sums_memory;
  const Tiling& tiling = prepared.tiling();
  if (takes_digits(way) && layer.counted()) return sum_counts(group, i, inputs, windows);
  int32_t* sums = sums_memory.reserve(block.rows * layer.plane_count() * 8 * tiling.width());
  sum(group, i, block, inputs, sums);
  if (layer.counted()) return add_bits(sums, block.rows, tiling.width(), windows);
  add_steps(sums, layer.neuron.T, block.rows, tiling.width(), windows);
}

void Multiplier::fire(int64_t group, int64_t i, const Block& block, const BlockInputs& inputs, uint8_t* open) const {
  thread_local Scratch<int32_t> sums_memory;
  const Tiling& tiling = prepared.tiling();
  if (layer.counted()) {
    thread_local Scratch<double> windows_memory;
    double* windows = windows_memory.reserve(block.rows * tiling.width());
    sum_window(group, i, block, inputs, windows);
    return fire_sums(tile(group, i, block), windows, layer.neuron, open);
  }
  if (list_steps > 0 && tiling.blocks == 1) {
    const Tile whole = prepared.tile(layer, group, i, 0, inputs.lists[0], block.rows, block.first_row);
    if (whole.is_whole()) return (prepared.bytes() ? fire_byte_lists : fire_lists)(whole, layer.neuron, open);
  }
  int32_t* sums = sums_memory.reserve(block.rows * layer.plane_count() * 8 * tiling.width());
  sum(group, i, block, inputs, sums);
  fire_sums(tile(group, i, block), sums, layer.neuron, open);
}

namespace {

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

BlockInputs& own_inputs() {
  thread_local BlockInputs inputs;
  return inputs;
}

// The input bytes that a tile reads for a block of rows.
int64_t bytes_of(const Multiplier& m, const Block& block) {
  return block.rows * m.layer.plane_count() * m.layer.geometry.inputs();
}

// Calls use(group, i, inputs) for every tile of a block. A tile is as much work as `work` input bytes.
template <class Use>
void for_tiles(const Multiplier& m, const Block& block, int64_t work, ParallelFor parallel, const Use& use) {
  constexpr int64_t kGrain = 1 << 16;  // input bytes of rows worth a thread
  // Lists read weights in an order that the processor does not foresee. Fewer rows leave much of a tile unread, and
  // with more rows it pays for itself anyway.
  constexpr int64_t kFewestFetching = 8, kMostFetching = 128;
  const int64_t rows = block.rows * m.layer.plane_count();
  const bool fetches = m.list_steps > 0 && rows >= kFewestFetching && rows <= kMostFetching;
  BlockInputs& inputs = own_inputs();
  for (int64_t group = 0; group < m.layer.geometry.groups; ++group) {
    m.load(group, block, inputs, parallel);
    parallel_ranges(parallel, m.prepared.tiling().tiles_per_group, 1 + kGrain / (work + 1),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) {
                        if (fetches && i + 1 < end) m.prepared.fetch(group, i + 1);
                        use(group, i, inputs);
                      }
                    });
  }
}

// Whether the layer is run in pieces of at most `most` steps, so that the sums of all steps stay in the cache.
bool has_pieces(const Layer& layer, int most) { return !layer.counted() && layer.neuron.T > most; }

// Calls use(layer) for each piece of the layer, or for the whole layer.
template <class Use>
void for_pieces(const Layer& layer, int most, const Carried<float>& carried, const Use& use) {
  if (!has_pieces(layer, most)) return use(layer);
  const Geometry& in = layer.geometry;
  const int T = layer.neuron.T;
  for (int first = 0; first < T; first += most) {
    Layer part = layer;
    part.planes += first / 8 * in.batch * in.height * in.width * in.channels;
    part.neuron = piece(layer.neuron, first, std::min(most, T - first), carried);
    use(part);
  }
}

}  // namespace

void run_prepared(const Multiplier& m, ParallelFor parallel) {
  thread_local Scratch<float> state;
  thread_local Scratch<double> sums;
  thread_local Scratch<uint16_t> counts;
  uint8_t* open = reserve_open(m.layer);
  const int64_t n = has_pieces(m.layer, kPieceSteps) ? m.layer.neuron.neurons : 0;
  float* v = state.reserve(2 * n);
  for_pieces(m.layer, kPieceSteps, {v, v + n, sums.reserve(n), counts.reserve(n)}, [&](const Layer& layer) {
    const Multiplier piece(layer, m.prepared, m.way);
    for_blocks(piece.blocks(), parallel, [&](const Block& block, ParallelFor inner) {
      for_tiles(piece, block, bytes_of(piece, block), inner, [&](int64_t group, int64_t i, const BlockInputs& inputs) {
        piece.fire(group, i, block, inputs, open);
      });
    });
  });
  write_mask(m.layer, open, parallel);
}

namespace {

// Multiplies spike counts instead of the spikes of each step: one product per window.
template <class Use>
void multiply_counts_of(const Multiplier& m, ParallelFor parallel, const Use& use) {
  const Geometry& geometry = m.layer.geometry;
  const Tiling& tiling = m.prepared.tiling();
  const Blocks blocks(geometry, expanded_rows(geometry, 1));
  parallel_ranges(parallel, blocks.size(), 1, [&](int64_t first, int64_t last) {
    thread_local Scratch<double> windows_memory;
    BlockInputs& counts = own_inputs();
    for (int64_t b = first; b < last; ++b) {
      const Block block = blocks[b];
      double* windows = windows_memory.reserve(block.rows * tiling.width());
      for (int64_t group = 0; group < geometry.groups; ++group) {
        m.load_counts(group, block, counts);
        for (int64_t i = 0; i < tiling.tiles_per_group; ++i) {
          m.sum_counts(group, i, counts, windows);
          use(group, i, block, windows);
        }
      }
    }
  });
}

// Calls use(group, i, block, windows) with the sums of every tile of every block over all steps.
template <class Use>
void multiply_steps(const Multiplier& m, ParallelFor parallel, const Use& use) {
  if (takes_digits(m.way)) return multiply_counts_of(m, parallel, use);
  for_blocks(m.blocks(), parallel, [&](const Block& block, ParallelFor inner) {
    for_tiles(m, block, bytes_of(m, block), inner, [&](int64_t group, int64_t i, const BlockInputs& inputs) {
      thread_local Scratch<double> windows_memory;
      double* windows = windows_memory.reserve(block.rows * m.prepared.tiling().width());
      m.sum_window(group, i, block, inputs, windows);
      use(group, i, block, windows);
    });
  });
}

TANDEM_INLINE void add_body(const double* more, int64_t n, double* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += more[i];
}
TANDEM_CPU_KERNEL(add, (const double* more, int64_t n, double* sum), (more, n, sum))

}  // namespace

void multiply_windows(const Multiplier& m, float* u, ParallelFor parallel) {
  const Geometry& geometry = m.layer.geometry;
  const Tiling& tiling = m.prepared.tiling();
  const auto write = [&](int64_t group, int64_t i, const Block& block, const double* windows) {
    write_products(m.tile(group, i, block), windows, u, geometry.outputs);
  };
  const int most = takes_digits(m.way) ? kCountedSteps : kPieceSteps;
  if (!has_pieces(m.layer, most)) return multiply_steps(m, parallel, write);
  thread_local Scratch<double> totals_memory;  // exact sums, rounded once they are complete
  double* totals = totals_memory.reserve(geometry.groups * tiling.tiles_per_group * geometry.rows() * tiling.width());
  for_pieces(m.layer, most, {}, [&](const Layer& layer) {
    const bool first = layer.neuron.before == 0, last = layer.neuron.after == 0;
    multiply_steps({layer, m.prepared, m.way}, parallel,
                   [&](int64_t group, int64_t i, const Block& block, const double* windows) {
                     const int64_t tile = group * tiling.tiles_per_group + i, size = block.rows * tiling.width();
                     double* total = totals + (tile * geometry.rows() + block.first_row) * tiling.width();
                     if (first) std::fill_n(total, size, 0.0);
                     add(windows, size, total);
                     if (last) write(group, i, block, total);
                   });
  });
}

namespace {

Ways only(Way way) { return {{way, 0}, {way, 0}}; }

// Whether spikes are multiplied as bytes without a matrix unit. Weights of one digit may take less time that way than
// by lists: for K inputs and 16 outputs VNNI has 2 K products, lists have up to 4 K additions in many short runs.
bool multiplies_steps(const Layer& layer) { return layer.weights.dtype == DType::kInt8; }

}  // namespace

Way possible_way(const Layer& layer, Way way, bool whole_window) {
  const Geometry& in = layer.geometry;
  if (in.taps() > kMaxInputs) return Way::kPlain;
  if (!takes_digits(way)) return way;
  const bool counts = whole_window || layer.counted();
  if (DigitWeights::size(in, Tiling(in), layer.weights.dtype) == 0) return Way::kLists4;
  if (way == Way::kMatrixUnit && has_matrix_unit()) return way;
  return counts || multiplies_steps(layer) ? Way::kDense : Way::kLists4;
}

Layer by_fixed_way(const Layer& layer, bool whole_window) {
  Layer out = layer;
  if (layer.way == Way::kFastest) out.way = fixed_way();
  if (takes_digits(out.way) && possible_way(layer, out.way, whole_window) != out.way) out.way = Way::kLists;
  return out;
}

Ways window_ways(const Layer& layer) {
  const Way digits = possible_way(layer, takes_digits(layer.way) ? layer.way : Way::kMatrixUnit, true);
  const bool may = layer.way == Way::kFastest && !layer.counted() && takes_digits(digits);
  return may || takes_digits(layer.way) ? only(digits) : ways_of(layer);
}

Ways ways_of(const Layer& layer) {
  const bool all = layer.way == Way::kFastest, lists = layer.way == Way::kLists || layer.way == Way::kTileByTile;
  if (!all && !lists) return only(possible_way(layer, layer.way, false));
  const Geometry& in = layer.geometry;
  if (in.taps() > kMaxInputs) return only(Way::kPlain);
  const int64_t bytes = in.batch * in.height * in.width * in.channels * layer.plane_count();
  const Way digits = all ? possible_way(layer, Way::kMatrixUnit, layer.counted()) : Way::kLists;
  return compare(in, layer.prepared != nullptr, Density::measure(layer.planes, bytes), digits, layer.counted());
}

namespace {

// run_tile_by_tile() for a layer with all inputs or, if `active` is given, only the active ones as channels.
void run_tiles_of(const Layer& layer, const ActiveInputs* active, ParallelFor parallel) {
  const Tiling tiling(layer.geometry);
  const TilePacker pack_one(layer.geometry, layer.weights, tiling, active);
  const Prepared none(tiling);
  Layer by_lists = layer;
  by_lists.way = Way::kLists;
  const Multiplier m(layer, none, ways_of(by_lists).lists.way);
  uint8_t* open = reserve_open(layer);
  const int64_t work = 2 * tiling.tile_size;  // mostly for preparing the tile
  const Blocks blocks = m.blocks();
  for (int64_t b = 0; b < blocks.size(); ++b) {
    for_tiles(m, blocks[b], work, parallel, [&](int64_t group, int64_t i, const BlockInputs& inputs) {
      thread_local Scratch<int32_t> words;
      int32_t* tile = words.reserve(tiling.tile_size);
      float unit[32];
      const int64_t number = group * tiling.tiles_per_group + i;
      pack_one(number, tile, unit);
      const Prepared one(tiling, number, tile, unit);
      Multiplier(layer, one, m.way).fire(group, i, blocks[b], inputs, open);
    });
  }
  write_mask(layer, open, parallel);
}

}  // namespace

void run_tile_by_tile(const Layer& layer, ParallelFor parallel) {
  if (!ActiveInputs::possible(layer.geometry)) return run_tiles_of(layer, nullptr, parallel);
  const ActiveInputs active(layer);
  if (!active.pays()) return run_tiles_of(layer, nullptr, parallel);
  Layer few = layer;
  few.geometry.channels = active.count;
  few.planes = active.planes.data();
  run_tiles_of(few, &active, parallel);
}

}  // namespace tandem::cpu
