#include "product.h"

#include "../planes/bits.h"
#include "tile.h"
#include "window.h"

namespace tandem::cpu {

void Product::fire(const Place& at, const BlockInputs& inputs) const {
  if (layer_.counted()) return fire_sums(tile(at), windows(at, inputs), layer_.neuron);
  fire_steps(at, inputs);
}

const double* Product::windows(const Place& at, const BlockInputs& inputs) const {
  thread_local Scratch<double> memory;
  double* windows = memory.reserve(at.block.rows * tiling().width());
  sum_counts(at, inputs, windows);
  return windows;
}

int32_t* Product::step_sums(const Place& at) const {
  thread_local Scratch<int32_t> memory;
  return memory.reserve(at.block.rows * layer_.plane_count() * 8 * tiling().width());
}

// --- lists -----------------------------------------------------------------------------------------------------------

Lists::Lists(const Layer& layer, const Prepared& weights, int steps)
    : Product(layer, weights), steps_(steps), bits_(8) {
  if (steps_ == 4 && layer.counted() && largest_byte(layer.planes, layer.geometry.plane_size()) < 16) bits_ = 4;
}

int64_t Lists::most_rows() const { return listed_rows(layer_.geometry, tiling(), layer_.plane_count()); }

void Lists::load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const {
  const int64_t channel = group * tiling().channels;
  if (static_cast<int64_t>(inputs.lists.size()) < tiling().blocks) inputs.lists.resize(tiling().blocks);
  for (int64_t q = 0; q < tiling().blocks; ++q) {
    const Listed of{steps_, bits_, channel + tiling().first_channel(q), channel + tiling().last_channel(q)};
    build_lists(layer_, of, block, inputs.lists[q], parallel);
  }
}

const int32_t* Lists::sum(const Place& at, const BlockInputs& inputs) const {
  int32_t* sums = step_sums(at);
  for (int64_t q = 0; q < tiling().blocks; ++q) sum_lists(tile(at, q), inputs.lists[q], sums, q == 0);
  return sums;
}

// Whole tiles with one K-block fire in registers.
void Lists::fire_steps(const Place& at, const BlockInputs& inputs) const {
  const Tile whole = tile(at);
  if (tiling().blocks > 1 || !whole.is_whole()) return fire_sums(whole, sum(at, inputs), layer_.neuron);
  fire_lists(whole, inputs.lists[0], layer_.neuron);
}

void Lists::sum_counts(const Place& at, const BlockInputs& inputs, double* windows) const {
  add_bits(sum(at, inputs), at.block.rows, tiling().width(), windows);
}

// Lists read weights in an order that the processor does not foresee. Fewer rows leave much of a tile unread, and with
// more rows it pays for itself anyway.
void Lists::fetch(int64_t i, int64_t rows) const {
  constexpr int64_t kFewest = 8, kMost = 128;
  rows *= layer_.plane_count();
  if (rows >= kFewest && rows <= kMost) prepared_.fetch(i);
}

// --- digits ----------------------------------------------------------------------------------------------------------

int64_t Digits::most_rows() const {
  return expanded_rows(layer_.geometry, layer_.counted() ? 1 : 8 * layer_.plane_count());
}

void Digits::load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor) const {
  inputs.expanded.load(layer_, group * tiling().channels, block);
}

void Digits::fire_steps(const Place& at, const BlockInputs& inputs) const {
  int32_t* sums = step_sums(at);
  multiply(inputs.expanded, prepared_.columns(at.tile).data(), tiling().registers, sums);
  fire_sums(tile(at), sums, layer_.neuron);
}

void Digits::sum_counts(const Place& at, const BlockInputs& inputs, double* windows) const {
  multiply(inputs.expanded, prepared_.columns(at.tile).data(), tiling().registers, windows);
}

}  // namespace tandem::cpu
