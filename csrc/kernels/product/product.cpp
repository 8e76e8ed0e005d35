#include "product.h"

#include "../planes/bits.h"
#include "tile.h"

namespace tandem::cpu {

Tile Product::tile(int64_t i, const Block& block, Workspace& workspace) const {
  Tile tile = prepared_.tile(i, workspace).for_rows(block.first_row, block.rows);
  tile.sheets = layer_.sheets();
  return tile;
}

void Product::fire(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const {
  if (layer_.timing() == Timing::kStep) return fire_steps(tile, inputs, workspace);
  rounded_windows(tile, inputs, workspace, [&](const auto* sums) { fire_window_sums(tile, sums, layer_.neuron); });
}

const double* Product::windows(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const {
  auto* windows = workspace.take<double>(tile.rows * tile.width());
  sum_counts(tile, inputs, workspace, windows);
  return windows;
}

// --- lists -----------------------------------------------------------------------------------------------------------

Lists::Lists(const Layer& layer, const Prepared& weights, int steps)
    : Product(layer, weights), steps_(steps), bits_(8) {
  if (steps_ == 4 && layer.timing() == Timing::kWindow && largest_byte(layer.stored, layer.geometry.sheet_size()) < 16)
    bits_ = 4;
}

int64_t Lists::most_rows(const Layer& layer) {
  return listed_rows(layer.geometry, Tiling(layer.geometry), layer.sheets());
}

BlockInputs Lists::load(int64_t group, const Block& block, Workspace& workspace, ParallelFor parallel) const {
  const int64_t channel = group * tiling().channels;
  auto* lists = workspace.take<SpikeLists>(tiling().blocks);
  for (int64_t q = 0; q < tiling().blocks; ++q) {
    const Listed listed{steps_, bits_, channel + tiling().first_channel(q), channel + tiling().last_channel(q)};
    lists[q] = build_lists(layer_, listed, block, workspace, parallel);
  }
  return {lists, {}};
}

const int32_t* Lists::sum(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const {
  int32_t* sums = step_sums(tile, workspace);
  for (int64_t q = 0; q < tiling().blocks; ++q) {
    sum_lists(tile.at_block(tiling(), q), inputs.lists[q], sums, q == 0);
  }
  return sums;
}

// Whole tiles with one K-block fire in registers.
void Lists::fire_steps(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const {
  if (tiling().blocks == 1 && tile.is_whole()) return fire_lists(tile, inputs.lists[0], layer_.neuron);
  fire_sums(tile, sum(tile, inputs, workspace), layer_.neuron);
}

void Lists::sum_counts(const Tile& tile, const BlockInputs& inputs, Workspace& workspace, double* windows) const {
  add_bits(sum(tile, inputs, workspace), tile.rows, tile.width(), windows);
}

// Lists read weights in an order that the processor does not foresee. Fewer rows leave much of a tile unread, and with
// more rows it pays for itself anyway.
void Lists::fetch(int64_t i, int64_t rows) const {
  constexpr int64_t kFewest = 8, kMost = 128;
  rows *= layer_.sheets();
  if (rows >= kFewest && rows <= kMost) prepared_.fetch(i);
}

// --- digits ----------------------------------------------------------------------------------------------------------

int64_t Digits::most_rows(const Layer& layer) {
  return expanded_rows(layer.geometry, layer.timing() == Timing::kWindow ? 1 : 8 * layer.sheets());
}

BlockInputs Digits::load(int64_t group, const Block& block, Workspace& workspace, ParallelFor) const {
  return {nullptr, expand(layer_, group * tiling().channels, block, workspace)};
}

void Digits::fire_steps(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const {
  const auto columns = prepared_.columns(tile);
  fire_bytes(inputs.expanded, columns.data(), tile, layer_.neuron, step_sums(tile, workspace));
}

void Digits::sum_counts(const Tile& tile, const BlockInputs& inputs, Workspace&, double* windows) const {
  multiply_bytes(inputs.expanded, prepared_.columns(tile).data(), tile.registers, windows);
}

const float* Digits::rounded(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const {
  const auto columns = prepared_.columns(tile);
  if (!rounds(inputs.expanded, columns.data(), tile.registers)) return nullptr;
  auto* sums = workspace.take<float>(tile.rows * tile.width());
  multiply_bytes(inputs.expanded, columns.data(), tile.registers, sums);
  return sums;
}

}  // namespace tandem::cpu
