#include "product.h"

#include "../cpu/vectors.h"
#include "plain.h"
#include "window.h"

namespace tandem::cpu {

void Product::sum_window(const Place& at, const BlockInputs& inputs, double* windows) const {
  thread_local Scratch<int32_t> memory;
  const int width = prepared_.tiling().width();
  int32_t* sums = memory.reserve(at.block.rows * layer_.plane_count() * 8 * width);
  sum(at, inputs, sums);
  if (layer_.counted()) return add_bits(sums, at.block.rows, width, windows);
  add_steps(sums, layer_.neuron.T, at.block.rows, width, windows);
}

void Product::fire(const Place& at, const BlockInputs& inputs, uint8_t* open) const {
  const int64_t size = at.block.rows * prepared_.tiling().width();
  if (layer_.counted()) {
    thread_local Scratch<double> memory;
    double* windows = memory.reserve(size);
    sum_window(at, inputs, windows);
    return fire_sums(tile(at), windows, layer_.neuron, open);
  }
  thread_local Scratch<int32_t> memory;
  int32_t* sums = memory.reserve(size * layer_.plane_count() * 8);
  sum(at, inputs, sums);
  fire_sums(tile(at), sums, layer_.neuron, open);
}

// --- lists -----------------------------------------------------------------------------------------------------------

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

Lists::Lists(const Layer& layer, const Prepared& weights, int steps)
    : Product(layer, weights), steps_(weights.bytes() ? kByteSteps : steps), bits_(8) {
  if (steps_ == 4 && layer.counted() && are_nibbles(layer)) bits_ = 4;
}

int64_t Lists::most_rows() const { return listed_rows(layer_.geometry, prepared_.tiling(), layer_.plane_count()); }

void Lists::load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const {
  const Tiling& tiling = prepared_.tiling();
  const int64_t channel = group * layer_.geometry.group_channels();
  if (static_cast<int64_t>(inputs.lists.size()) < tiling.blocks) inputs.lists.resize(tiling.blocks);
  for (int64_t q = 0; q < tiling.blocks; ++q) {
    build_lists(layer_, steps_, bits_, channel + tiling.first_channel(q),
                channel + tiling.last_channel(layer_.geometry, q), block, inputs.lists[q], parallel);
  }
}

void Lists::sum(const Place& at, const BlockInputs& inputs, int32_t* sums) const {
  const auto sum_block = prepared_.bytes() ? sum_byte_lists : sum_lists;
  for (int64_t q = 0; q < prepared_.tiling().blocks; ++q) sum_block(tile(at, q), inputs.lists[q], sums, q == 0);
}

// Whole tiles with one K-block fire in registers.
void Lists::fire(const Place& at, const BlockInputs& inputs, uint8_t* open) const {
  const Tile whole = tile(at);
  if (layer_.counted() || prepared_.tiling().blocks > 1 || !whole.is_whole()) return Product::fire(at, inputs, open);
  (prepared_.bytes() ? fire_byte_lists : fire_lists)(whole, inputs.lists[0], layer_.neuron, open);
}

// Lists read weights in an order that the processor does not foresee. Fewer rows leave much of a tile unread, and with
// more rows it pays for itself anyway.
void Lists::fetch(int64_t group, int64_t i, int64_t rows) const {
  constexpr int64_t kFewest = 8, kMost = 128;
  rows *= layer_.plane_count();
  if (rows >= kFewest && rows <= kMost) prepared_.fetch(group, i);
}

// --- digits ----------------------------------------------------------------------------------------------------------

int64_t Digits::most_rows() const { return expanded_rows(layer_.geometry, counts_ ? 1 : 8 * layer_.plane_count()); }

void Digits::load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor) const {
  const int64_t channel = group * layer_.geometry.group_channels();
  counts_ ? inputs.expanded.count_spikes(layer_, channel, block) : inputs.expanded.expand(layer_, channel, block);
}

void Digits::sum(const Place& at, const BlockInputs& inputs, int32_t* sums) const {
  multiply_steps(inputs.expanded, layer_.neuron.T, prepared_.columns(at.group, at.tile), prepared_.tiling().registers,
                 sums);
}

void Digits::sum_window(const Place& at, const BlockInputs& inputs, double* windows) const {
  multiply_counts(inputs.expanded, prepared_.columns(at.group, at.tile), prepared_.tiling().registers, windows);
}

// --- plain -----------------------------------------------------------------------------------------------------------

int64_t Plain::most_rows() const { return listed_rows(layer_.geometry, prepared_.tiling(), layer_.plane_count()); }

void Plain::sum(const Place& at, const BlockInputs&, int32_t* sums) const {
  sum_plain(layer_, prepared_.tiling(), tile(at), at.group, sums);
}

}  // namespace tandem::cpu
