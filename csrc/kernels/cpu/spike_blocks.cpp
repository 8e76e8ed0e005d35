#include "spike_blocks.h"

#include <algorithm>

#include "scratch.h"
#include "spike_pack.h"

namespace tandem::cpu {

Blocks::Blocks(const SpikeProduct& product, int64_t rows) {
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

namespace {

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

Prepared::Prepared(const SpikeProduct& product, const NeuronArgs<float>& neuron, ParallelFor parallel, bool windows)
    : tiling(product), packed(nullptr), width(product.bucket_width), dense(false), digits(nullptr), gates(nullptr) {
  thread_local Scratch<int32_t> packed_memory;
  thread_local DenseWeights dense_weights;
  thread_local Scratch<uint8_t> gates_memory;
  if (product.taps() > kMaxInputs) return;
  const int64_t digits_size = DenseWeights::size(product, tiling);
  if (width == 0) {
    const int64_t bytes = product.batch * product.height * product.width * product.channels * ((neuron.T + 7) / 8);
    width = choose_width(product, Density::measure(product.planes, bytes), digits_size > 0);
  }
  if (width == kDense) {
    dense = digits_size > 0;
    width = 4;
  }
  const bool needs_digits = dense || (windows && digits_size > 0);
  if (product.packed != nullptr) {
    packed = product.packed;
  } else {
    int32_t* own = packed_memory.reserve(tiles_size(product) + (needs_digits ? digits_size : 0));
    int32_t* own_digits = needs_digits ? own + tiles_size(product) : nullptr;
    if (!pack_tiles(product, own, own_digits, dense, parallel)) return;
    packed = own;
  }
  if (needs_digits) {
    dense_weights.read(product, tiling, packed + tiles_size(product));
    digits = &dense_weights;
  }
  const bool needs_gates = neuron.mask != nullptr && product.group_outputs() % 8 != 0;
  if (needs_gates) gates = gates_memory.reserve(neuron.neurons);
}

void Prepared::finish(const NeuronArgs<float>& neuron, ParallelFor parallel) const {
  if (gates != nullptr) pack_gates(gates, neuron, parallel);
}

Tile Prepared::tile(const SpikeProduct& product, int planes, int64_t group, int64_t i, int64_t q,
                    const SpikeLists& lists, int64_t rows, int64_t row) const {
  const int32_t* weights = packed + (group * tiling.tiles_per_group + i) * tiling.tile_size;
  const int64_t first = i * tiling.width();
  return Tile{lists,
              rows,
              row,
              planes,
              width,
              tiling.registers,
              weights + tiling.block_offset(product, q),
              reinterpret_cast<const float*>(weights + tiling.tile_size - tiling.width()),
              group * product.group_outputs() + first,
              std::min<int64_t>(tiling.width(), product.group_outputs() - first)};
}

}  // namespace tandem::cpu
