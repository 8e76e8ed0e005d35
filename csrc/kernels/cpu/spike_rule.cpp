#include "spike_rule.h"

#include <algorithm>
#include <cstring>

#include "spike_lists.h"

namespace tandem::cpu {

Tiling::Tiling(const SpikeProduct& product) {
  const int64_t taps = product.taps(), channels = std::max<int64_t>(product.group_channels(), 1);
  blocks = (taps * channels + kMaxInputs - 1) / kMaxInputs;
  block_channels = std::max<int64_t>(1, (channels + blocks - 1) / blocks);
  blocks = (channels + block_channels - 1) / block_channels;
  registers = 1;
  tiles_per_group = (product.group_outputs() + width() - 1) / width();
  tile_size = (product.inputs() + blocks + 1) * width();
}

int64_t block_rows(const SpikeProduct& product, const Tiling& tiling, int planes) {
  constexpr int64_t kMaxBytes = 1 << 22;  // input bytes listed at a time: lists take up to 16 times as much
  const int64_t rows = kMaxBytes / (planes * std::max<int64_t>(product.inputs(), 1));
  return std::clamp<int64_t>(rows, 1, (tiling.blocks == 1 ? 256 : 64));
}

Density Density::measure(const uint8_t* bytes, int64_t size) {
  constexpr int64_t kSamples = 512;
  const int64_t words = size / 8, step = std::max<int64_t>(1, words / kSamples);
  int64_t bits = 0, pairs = 0, nibbles = 0, seen = 0;
  for (int64_t i = 0; i < words; i += step, ++seen) {
    uint64_t word;
    std::memcpy(&word, bytes + 8 * i, sizeof(word));
    const uint64_t pair = (word | word >> 1) & 0x5555555555555555ull;
    bits += __builtin_popcountll(word);
    pairs += __builtin_popcountll(pair);
    nibbles += __builtin_popcountll((pair | pair >> 2) & 0x1111111111111111ull);
  }
  const double n = 8.0 * static_cast<double>(std::max<int64_t>(seen, 1));
  return {{bits / n, pairs / n, nibbles / n}};
}

int choose_width(const SpikeProduct& product, const Tiling& tiling, const Density& density) {
  (void)product; (void)tiling;
  return density.adds[0] < 1.2 * density.adds[2] ? 1 : 4;
}

}  // namespace tandem::cpu
