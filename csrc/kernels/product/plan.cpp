#include "plan.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../cpu/vectors.h"
#include "lists.h"
#include "matrix_unit/matrix_unit.h"

namespace tandem::cpu {

namespace {

// The largest K-block of a tile in bytes: beyond it even the L2 cache delivers weights too slowly.
constexpr int64_t kBlockBytes = 128 << 10;

}  // namespace

Tiling::Tiling(const Geometry& geometry, int64_t byte_blocks) {
  const int64_t taps = geometry.taps(), channels = std::max<int64_t>(geometry.group_channels(), 1);
  const bool wide = byte_blocks > 0 || capability() == Capability::kV4;
  registers = wide && geometry.group_outputs() > kLanes ? 2 : 1;
  const int64_t bytes = taps * channels * width() * static_cast<int64_t>(sizeof(int32_t));
  const int64_t wanted = byte_blocks > 0 ? byte_blocks : std::max<int64_t>(1, (bytes + kBlockBytes - 1) / kBlockBytes);
  block_channels = (channels + wanted - 1) / wanted;
  if (block_channels > 64 && wanted > 1) block_channels = (block_channels + 63) / 64 * 64;
  block_channels =
      std::clamp<int64_t>(block_channels, 1, std::max<int64_t>(1, kMaxInputs / std::max<int64_t>(taps, 1)));
  blocks = (channels + block_channels - 1) / block_channels;
  tiles_per_group = (geometry.group_outputs() + width() - 1) / width();
  tile_size = (geometry.inputs() + blocks) * width();
}

int64_t listed_rows(const Geometry& geometry, const Tiling& tiling, int planes) {
  constexpr int64_t kMaxBytes = 1 << 22;  // input bytes listed at a time: lists take up to 16 times as much
  const int64_t rows = kMaxBytes / (planes * std::max<int64_t>(geometry.inputs(), 1));
  return std::clamp<int64_t>(rows, 1, (tiling.blocks == 1 ? 256 : 64));
}

int64_t expanded_rows(const Geometry& geometry, int bytes) {
  constexpr int64_t kMaxBytes = 3 << 18;  // bytes of spikes expanded at a time: the L2 cache also holds digits
  const int64_t rows = kMaxBytes / (bytes * std::max<int64_t>(geometry.inputs(), 1));
  return std::clamp<int64_t>((rows + 8) / 16 * 16, 16, 128);
}

namespace {

// Counts bits, nonzero pairs and nonzero nibbles of sampled words. Multiversioned for its popcounts. The samples are at
// multiples of the golden ratio: with a regular distance they would meet the same channels again and again.
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

const ListCosts& ListCosts::here() {
  static const ListCosts costs = [] {
    ListCosts of = kCompressedLists;
    if (capability() == Capability::kV3) of = kAvx2Lists;
    if (capability() == Capability::kDefault) of = kNarrowLists;
    of.compressed = can_compress();
    return of;
  }();
  return costs;
}

double lists_cost(const Geometry& geometry, Way way, const Density& density, const ListCosts& costs) {
  const int steps = static_cast<int>(way), index = steps == 4 ? 2 : steps - 1;
  const int64_t channels = geometry.group_channels();
  const bool columns = geometry.kernel[1] > geometry.stride[1];  // as build_lists() decides
  const int64_t pixels = columns ? geometry.kernel[0] * geometry.stride[1] : geometry.taps();
  const int64_t copies = columns ? geometry.kernel[1] : 0;
  const double tiles = static_cast<double>(geometry.group_outputs()) / 16,
               inputs = static_cast<double>(geometry.inputs());
  const double blocks = static_cast<double>(Tiling(geometry).blocks);
  const int64_t runs = runs_per_plane(steps);
  const int64_t compares = 8 * runs * pixels * ((channels + 63) / 64),
                look_ups = 8 * 8 / steps * pixels * ((channels + 15) / 16);
  const double sorting = steps == 1 ? 0 : 6 * density.adds[index] * static_cast<double>(pixels * channels);
  return tiles *
             (costs.addition * density.adds[index] * inputs + costs.fold_and_fire[index] + costs.block * (blocks - 1)) +
         static_cast<double>(8 * runs * copies) +
         (costs.compressed ? static_cast<double>(compares) : static_cast<double>(look_ups) + sorting);
}

double steps_cost(const Geometry& geometry, bool prepared, Way way) {
  const ExpandedRows rows(geometry);
  const double tiles = static_cast<double>(geometry.group_outputs()) / 16;
  const bool unit = way == Way::kMatrixUnit;
  const double chunk = unit ? 31 * rows.idle : 140, fire = unit ? 190 : 130;
  const double multiply = chunk * static_cast<double>(ChunkShape(geometry).chunks());
  const double expand = 1.9 * static_cast<double>(rows.pixels * geometry.group_channels());
  const double weights = prepared ? 0 : static_cast<double>(geometry.inputs() * geometry.group_outputs());
  return tiles * (multiply + fire) + expand + 1.1 * weights / static_cast<double>(geometry.rows());
}

double counts_cost(const Geometry& geometry, bool prepared, Way way) {
  const ExpandedRows rows(geometry);
  const double tiles = static_cast<double>(geometry.group_outputs()) / 16;
  const bool unit = way == Way::kMatrixUnit;
  const double chunk = unit ? 6 * rows.idle : 40, fire = 50;
  const double expand = 0.2 * static_cast<double>(rows.pixels * geometry.group_channels());
  const double weights = prepared ? 0 : static_cast<double>(geometry.inputs() * geometry.group_outputs());
  return tiles * (chunk * static_cast<double>(ChunkShape(geometry).chunks()) + fire) + expand +
         1.1 * weights / static_cast<double>(geometry.rows());
}

Ways compare(const Geometry& geometry, bool prepared, const Density& density, Way digits, bool counted,
             const ListCosts& costs) {
  Ways::One best{Way::kLists1, lists_cost(geometry, Way::kLists1, density, costs)};
  for (const Way way : {Way::kLists2, Way::kLists4}) {
    const double cost = lists_cost(geometry, way, density, costs);
    if (cost < best.cost) best = {way, cost};
  }
  if (digits != Way::kMatrixUnit && digits != Way::kDense) return {best, best};
  return {best, {digits, counted ? counts_cost(geometry, prepared, digits) : steps_cost(geometry, prepared, digits)}};
}

bool prefers_tile_by_tile(const Geometry& geometry, int planes) {
  constexpr int64_t kFewRows = 8;
  return geometry.rows() * planes <= kFewRows;
}

}  // namespace tandem::cpu
