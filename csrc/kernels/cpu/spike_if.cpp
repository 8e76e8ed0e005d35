// The layer: pack, cut into blocks of rows, list, multiply, fire.
#include <algorithm>
#include <vector>

#include "../spike_product.h"
#include "scratch.h"
#include "spike_lists.h"
#include "spike_rule.h"
#include "spike_tile.h"

namespace tandem::cpu {

namespace {

struct Layer {
  const SpikeProduct& product;
  const NeuronArgs<float>& neuron;
  const Tiling& tiling;
  const int32_t* packed;
  uint8_t* gates;  // null or a byte per neuron, where channels do not fill the bytes of the mask
  int width;

  int planes() const { return (neuron.T + 7) / 8; }
};

// What a thread keeps.
struct Workspace {
  std::vector<SpikeLists> lists = std::vector<SpikeLists>(1);  // by K-block
};

Workspace& workspace() {
  thread_local Workspace own;
  return own;
}

// A block of rows: every group's lists, then every tile of the group.
void run_block(const Layer& layer, const Strip* strips, int64_t count, ParallelFor parallel) {
  const SpikeProduct& product = layer.product;
  const Tiling& tiling = layer.tiling;
  std::vector<SpikeLists>& lists = workspace().lists;
  if (static_cast<int64_t>(lists.size()) < tiling.blocks) lists.resize(tiling.blocks);
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i) rows += strips[i].x1 - strips[i].x0;
  const int64_t first_row = (strips[0].b * product.out_height() + strips[0].y) * product.out_width() + strips[0].x0;

  for (int64_t group = 0; group < product.groups; ++group) {
    const int64_t channel = group * product.group_channels(), output = group * product.group_outputs();
    for (int64_t q = 0; q < tiling.blocks; ++q) {
      build_lists(product, layer.planes(), layer.width, channel + tiling.first_channel(q),
                  channel + tiling.last_channel(product, q), strips, count, lists[q], parallel);
    }
    constexpr int64_t kGrain = 1 << 16;  // input bytes of rows worth a thread
    const int64_t grain = 1 + kGrain / (rows * layer.planes() * product.inputs() + 1);
    parallel_ranges(parallel, tiling.tiles_per_group, grain, [&](int64_t begin, int64_t end) {
      thread_local Scratch<int32_t> sums_memory;
      for (int64_t i = begin; i < end; ++i) {
        const int32_t* weights = layer.packed + (group * tiling.tiles_per_group + i) * tiling.tile_size;
        const int64_t first = i * tiling.width();
        const auto tile = [&](int64_t q) {
          return Tile{lists[q],
                      rows,
                      first_row,
                      layer.planes(),
                      layer.width,
                      tiling.registers,
                      weights + tiling.block_offset(product, q),
                      reinterpret_cast<const float*>(weights + tiling.tile_size - tiling.width()),
                      output + first,
                      std::min<int64_t>(tiling.width(), product.group_outputs() - first)};
        };
        if (tiling.blocks == 1) {
          fused_tile(tile(0), layer.neuron, layer.gates);
          continue;
        }
        int32_t* sums = sums_memory.reserve(rows * layer.planes() * 8 * tiling.width());
        for (int64_t q = 0; q < tiling.blocks; ++q) product_tile(tile(q), sums, q == 0);
        scan_tile(tile(0), sums, layer.neuron, layer.gates);
      }
    });
  }
}

// Output lines, the long ones cut, gathered into blocks of at most `rows` rows (or one strip).
struct Blocks {
  std::vector<Strip> strips;
  std::vector<int64_t> first;  // first strip of each block, and the number of strips

  Blocks(const SpikeProduct& product, int64_t rows) {
    const int64_t width = product.out_width(), cuts = (width + rows - 1) / rows;
    int64_t in_block = rows;
    for (int64_t b = 0; b < product.batch; ++b) {
      for (int64_t y = 0; y < product.out_height(); ++y) {
        for (int64_t cut = 0; cut < cuts; ++cut) {
          const Strip strip{b, y, width * cut / cuts, width * (cut + 1) / cuts};
          const int64_t size = strip.x1 - strip.x0;
          if (in_block + size > rows) {
            first.push_back(static_cast<int64_t>(strips.size()));
            in_block = 0;
          }
          in_block += size;
          strips.push_back(strip);
        }
      }
    }
    first.push_back(static_cast<int64_t>(strips.size()));
  }

  int64_t size() const { return static_cast<int64_t>(first.size()) - 1; }
};

void run_layer(const Layer& layer, ParallelFor parallel) {
  const int64_t rows = block_rows(layer.product, layer.tiling, layer.planes());
  const Blocks blocks(layer.product, rows);
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

void pack_gates(const uint8_t* gates, const NeuronArgs<float>& neuron, ParallelFor parallel) {
  const int64_t bytes = (neuron.neurons + 7) / 8;
  parallel_ranges(parallel, bytes, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int byte = 0;
      for (int64_t n = 8 * i; n < std::min(8 * i + 8, neuron.neurons); ++n) byte |= gates[n] << (n % 8);
      neuron.mask[i] = static_cast<uint8_t>(byte);
    }
  });
}

}  // namespace

bool product_if(const SpikeProduct& product, const NeuronArgs<float>& neuron, ParallelFor parallel) {
  if (neuron.neurons == 0) return true;
  thread_local Scratch<int32_t> packed_memory;
  thread_local Scratch<uint8_t> gates_memory;
  const Tiling tiling(product);
  const int32_t* packed = product.packed;
  if (packed == nullptr) {
    int32_t* own = packed_memory.reserve(packed_size(product));
    if (!pack_weights(product, own, parallel)) return false;
    packed = own;
  }
  int width = product.bucket_width;
  if (width == 0) {
    const int64_t bytes = product.batch * product.height * product.width * product.channels * ((neuron.T + 7) / 8);
    width = choose_width(product, tiling, Density::measure(product.planes, bytes));
  }
  const bool needs_gates = neuron.mask != nullptr && product.group_outputs() % 8 != 0;
  uint8_t* gates = needs_gates ? gates_memory.reserve(neuron.neurons) : nullptr;
  run_layer(Layer{product, neuron, tiling, packed, gates, width}, parallel);
  if (needs_gates) pack_gates(gates, neuron, parallel);
  return true;
}

}  // namespace tandem::cpu
