#include "spike_rule.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "spike_dense.h"
#include "spike_lists.h"

namespace tandem::cpu {

namespace {

// Inputs of a K-block, 128 KB of a tile of 32 outputs: above, weights come too slowly even from the L2 cache.
constexpr int64_t kBlockInputs = 1024;

}  // namespace

Tiling::Tiling(const SpikeProduct& product) {
  const int64_t taps = product.taps(), channels = std::max<int64_t>(product.group_channels(), 1);
  const int64_t inputs = taps * channels;
  const int64_t wanted = std::max<int64_t>(1, (inputs + kBlockInputs - 1) / kBlockInputs);
  block_channels = (channels + wanted - 1) / wanted;
  if (block_channels > 64 && wanted > 1) block_channels = (block_channels + 63) / 64 * 64;
  block_channels =
      std::clamp<int64_t>(block_channels, 1, std::max<int64_t>(1, kMaxInputs / std::max<int64_t>(taps, 1)));
  blocks = (channels + block_channels - 1) / block_channels;
  registers = product.group_outputs() > kLanes ? 2 : 1;
  tiles_per_group = (product.group_outputs() + width() - 1) / width();
  tile_size = (product.inputs() + blocks + 1) * width();
}

int64_t block_rows(const SpikeProduct& product, const Tiling& tiling, int planes) {
  constexpr int64_t kMaxBytes = 1 << 22;  // input bytes listed at a time: lists take up to 16 times as much
  const int64_t rows = kMaxBytes / (planes * std::max<int64_t>(product.inputs(), 1));
  return std::clamp<int64_t>(rows, 1, (tiling.blocks == 1 ? 256 : 64));
}

int64_t dense_rows(const SpikeProduct& product, int planes) {
  constexpr int64_t kMaxBytes = 3 << 18;  // spikes expanded at a time: beside them the L2 cache holds digits
  const int64_t rows = kMaxBytes / (8 * planes * std::max<int64_t>(product.inputs(), 1));
  return std::clamp<int64_t>((rows + 8) / 16 * 16, 16, 128);
}

namespace {

// Bits, nonzero pairs and nonzero nibbles of some words; a kernel for the sake of its popcounts. A regular distance
// between them would meet the same channels again and again, so they lie at the multiples of the golden ratio.
TANDEM_INLINE void count_patterns_body(const uint8_t* bytes, uint64_t words, int64_t samples, int64_t* counts) {
  for (int64_t i = 0; i < samples; ++i) {
    const uint64_t fraction = static_cast<uint32_t>(i) * 2654435769u;
    uint64_t word;
    std::memcpy(&word, bytes + 8 * (fraction * words >> 32), sizeof(word));
    const uint64_t pair = (word | word >> 1) & 0x5555555555555555ull;
    counts[0] += __builtin_popcountll(word);
    counts[1] += __builtin_popcountll(pair);
    counts[2] += __builtin_popcountll((pair | pair >> 2) & 0x1111111111111111ull);
  }
}
TANDEM_CPU_KERNEL(count_patterns, (const uint8_t* bytes, uint64_t words, int64_t samples, int64_t* counts),
                  (bytes, words, samples, counts))

}  // namespace

Density Density::measure(const uint8_t* bytes, int64_t size) {
  constexpr int64_t kSamples = 512;
  const int64_t words = std::min<int64_t>(size / 8, UINT32_MAX), samples = std::min(words, kSamples);
  int64_t counts[3] = {};
  count_patterns(bytes, words, samples, counts);
  const double seen = 8.0 * static_cast<double>(std::max<int64_t>(samples, 1));
  return {{counts[0] / seen, counts[1] / seen, counts[2] / seen}};
}

double width_cost(const SpikeProduct& product, int width, const Density& density) {
  const int index = width == 4 ? 2 : width - 1;
  const double fold_and_fire[] = {180, 180, 260};
  const int64_t vectors = (product.group_channels() + 63) / 64;
  const bool columns = product.kernel[1] > product.stride[1];  // as build_lists() decides
  const int64_t compares = columns ? product.kernel[0] * product.stride[1] * vectors : product.taps() * vectors;
  const int64_t copies = columns ? product.kernel[1] : 0;
  const double tiles = static_cast<double>(product.group_outputs()) / 16,
               inputs = static_cast<double>(product.inputs());
  const double blocks = static_cast<double>(Tiling(product).blocks);
  return tiles * (density.adds[index] * inputs + fold_and_fire[index] + 80 * (blocks - 1)) +
         8.0 * static_cast<double>(runs_per_plane(width) * (compares + copies));
}

double dense_cost(const SpikeProduct& product) {
  const DenseRows rows(product);
  const double tiles = static_cast<double>(product.group_outputs()) / 16;
  const double multiply = 31.0 * rows.idle * static_cast<double>(DenseShape(product).chunks()), fire = 190;
  const double expand = 1.9 * static_cast<double>(rows.pixels * product.group_channels());
  const double weights =
      product.packed == nullptr ? static_cast<double>(product.inputs() * product.group_outputs()) : 0;
  return tiles * (multiply + fire) + expand + 1.1 * weights / static_cast<double>(product.rows());
}

int choose_width(const SpikeProduct& product, const Density& density, bool matrix_unit) {
  int best = 1;
  for (int width : {2, 4}) {
    if (width_cost(product, width, density) < width_cost(product, best, density)) best = width;
  }
  return matrix_unit && dense_cost(product) < width_cost(product, best, density) ? kDense : best;
}

}  // namespace tandem::cpu
