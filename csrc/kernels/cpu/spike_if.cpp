// The layer: pack, cut into blocks of rows, list, multiply, fire.
#include <algorithm>
#include <vector>

#include "../spike_product.h"
#include "scratch.h"
#include "spike_blocks.h"
#include "spike_depthwise.h"
#include "spike_lists.h"
#include "spike_pack.h"
#include "spike_rule.h"
#include "spike_tile.h"

namespace tandem::cpu {

namespace {

struct Layer {
  const SpikeProduct& product;
  const NeuronArgs<float>& neuron;
  const Prepared& prepared;

  int planes() const { return (neuron.T + 7) / 8; }
};

// What a thread keeps.
struct Workspace {
  std::vector<SpikeLists> lists = std::vector<SpikeLists>(1);  // by K-block
  DenseInputs inputs;
};

Workspace& workspace() {
  thread_local Workspace own;
  return own;
}

// A block of rows: every group's lists or expanded inputs, then every tile of the group.
void run_block(const Layer& layer, const Strip* strips, int64_t count, ParallelFor parallel) {
  const SpikeProduct& product = layer.product;
  const Prepared& prepared = layer.prepared;
  const Tiling& tiling = prepared.tiling;
  const int planes = layer.planes();
  const bool dense = prepared.dense;
  std::vector<SpikeLists>& lists = workspace().lists;
  DenseInputs& inputs = workspace().inputs;
  if (static_cast<int64_t>(lists.size()) < tiling.blocks) lists.resize(tiling.blocks);
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i) rows += strips[i].x1 - strips[i].x0;
  const int64_t first_row = (strips[0].b * product.out_height() + strips[0].y) * product.out_width() + strips[0].x0;

  for (int64_t group = 0; group < product.groups; ++group) {
    const int64_t channel = group * product.group_channels();
    if (dense) inputs.expand(product, planes, channel, strips, count);
    for (int64_t q = 0; !dense && q < tiling.blocks; ++q) {
      build_lists(product, planes, prepared.width, channel + tiling.first_channel(q),
                  channel + tiling.last_channel(product, q), strips, count, lists[q], parallel);
    }
    constexpr int64_t kGrain = 1 << 16;  // input bytes of rows worth a thread
    const int64_t grain = 1 + kGrain / (rows * planes * product.inputs() + 1);
    parallel_ranges(parallel, tiling.tiles_per_group, grain, [&](int64_t begin, int64_t end) {
      thread_local Scratch<int32_t> sums_memory;
      for (int64_t i = begin; i < end; ++i) {
        const auto tile = [&](int64_t q) {
          return prepared.tile(product, planes, group, i, q, lists[q], rows, first_row);
        };
        const int64_t last = tiling.blocks - 1;
        int32_t* sums = dense || last > 0 ? sums_memory.reserve(rows * planes * 8 * tiling.width()) : nullptr;
        if (dense) {
          dense_tile(inputs, layer.neuron.T, prepared.columns(group, i), tiling.registers, sums);
          scan_tile(tile(0), sums, layer.neuron, prepared.gates);
        } else {
          for (int64_t q = 0; q < last; ++q) product_tile(tile(q), sums, q == 0);
          fused_tile(tile(last), sums, layer.neuron, prepared.gates);
        }
      }
    });
  }
}

}  // namespace

void run_layer(const SpikeProduct& product, const NeuronArgs<float>& neuron, const Prepared& prepared,
               ParallelFor parallel) {
  const Layer layer{product, neuron, prepared};
  const int64_t rows =
      prepared.dense ? dense_rows(product, layer.planes()) : block_rows(product, prepared.tiling, layer.planes());
  const Blocks blocks(product, rows);
  // Whole blocks are the better work for a thread; few blocks are divided among threads one by one.
  constexpr int64_t kManyBlocks = 8;
  const auto run = [&](int64_t i, ParallelFor inner) {
    run_block(layer, blocks.strips.data() + blocks.first[i], blocks.first[i + 1] - blocks.first[i], inner);
  };
  if (blocks.size() >= kManyBlocks) {
    parallel_ranges(parallel, blocks.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run(i, serial_for);
    });
  } else {
    for (int64_t i = 0; i < blocks.size(); ++i) run(i, parallel);
  }
}

int64_t packed_size(const SpikeProduct& product) {
  if (is_depthwise(product)) return tiles_size(single_channel(product));
  return tiles_size(product) + DenseWeights::size(product, Tiling(product));
}

bool pack_weights(const SpikeProduct& product, int32_t* packed, ParallelFor parallel) {
  if (is_depthwise(product)) return pack_tiles(single_channel(product), packed, nullptr, false, parallel);
  const bool digits = DenseWeights::size(product, Tiling(product)) > 0;
  return pack_tiles(product, packed, digits ? packed + tiles_size(product) : nullptr, false, parallel);
}

bool product_if(const SpikeProduct& product, const NeuronArgs<float>& neuron, ParallelFor parallel) {
  if (neuron.neurons == 0) return true;
  if (is_depthwise(product)) return depthwise_if(product, neuron, parallel);
  const Prepared prepared(product, neuron, parallel);
  if (prepared.packed == nullptr) return false;
  run_layer(product, neuron, prepared, parallel);
  prepared.finish(neuron, parallel);
  return true;
}

}  // namespace tandem::cpu
