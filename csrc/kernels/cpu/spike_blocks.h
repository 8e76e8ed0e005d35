// How the rows of a layer are divided, and what its entry points share.
#pragma once

#include <vector>

#include "../spike_product.h"
#include "spike_dense.h"
#include "spike_lists.h"
#include "spike_rule.h"
#include "spike_tile.h"

namespace tandem::cpu {

// Output lines, the long ones cut, gathered into blocks of at most `rows` rows (or one strip).
struct Blocks {
  std::vector<Strip> strips;
  std::vector<int64_t> first;  // first strip of each block, and the number of strips

  Blocks(const SpikeProduct& product, int64_t rows);

  int64_t size() const { return static_cast<int64_t>(first.size()) - 1; }
};

// A layer ready to run. What it points to is this thread's and lasts until its next layer.
struct Prepared {
  Tiling tiling;
  const int32_t* packed;       // null: this layer is turned down (product_if)
  int width;                   // of the buckets
  bool dense;                  // products by the matrix unit, without buckets
  const DenseWeights* digits;  // for the matrix unit; null where nothing asks for them
  uint8_t* gates;              // null or a byte per neuron, where channels do not fill the bytes of the mask

  // `windows`: dense_windows() will be asked for, if there is a matrix unit that can hold the layer.
  Prepared(const SpikeProduct& product, const NeuronArgs<float>& neuron, ParallelFor parallel, bool windows = false);

  // Packs the gates into the bits of the mask.
  void finish(const NeuronArgs<float>& neuron, ParallelFor parallel) const;

  // The columns of tile i of a group.
  const DenseColumn* columns(int64_t group, int64_t i) const {
    return digits->columns.data() + (group * tiling.tiles_per_group + i) * tiling.registers;
  }

  // Tile i of a group, K-block q, for `rows` rows from `row` on.
  Tile tile(const SpikeProduct& product, int planes, int64_t group, int64_t i, int64_t q, const SpikeLists& lists,
            int64_t rows, int64_t row) const;
};

// Products and neurons, block by block.
void run_layer(const SpikeProduct& product, const NeuronArgs<float>& neuron, const Prepared& prepared,
               ParallelFor parallel);

}  // namespace tandem::cpu
