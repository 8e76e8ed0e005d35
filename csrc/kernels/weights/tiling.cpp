#include "tiling.h"

#include <algorithm>

#include "../cpu/capability.h"
#include "../cpu/vectors.h"

namespace tandem::cpu {

namespace {

// The largest K-block of a tile in bytes: beyond it even the L2 cache delivers weights too slowly.
constexpr int64_t kBlockBytes = 128 << 10;

}  // namespace

Tiling::Tiling(const Geometry& geometry, int64_t byte_blocks)
    : groups(geometry.is_depthwise() ? 1 : geometry.groups),
      outputs(geometry.outputs / groups),
      channels(geometry.group_channels()),
      taps(geometry.taps()) {
  registers = capability() == Capability::kV4 && outputs > kLanes ? 2 : 1;
  const int64_t some = std::max<int64_t>(channels, 1), bytes = taps * some * width() * int64_t{sizeof(int32_t)};
  const int64_t wanted = byte_blocks > 0 ? byte_blocks : std::max<int64_t>(1, (bytes + kBlockBytes - 1) / kBlockBytes);
  block_channels = (some + wanted - 1) / wanted;
  if (block_channels > 64 && wanted > 1) block_channels = (block_channels + 63) / 64 * 64;
  block_channels =
      std::clamp<int64_t>(block_channels, 1, std::max<int64_t>(1, kMaxInputs / std::max<int64_t>(taps, 1)));
  blocks = (some + block_channels - 1) / block_channels;
  tiles_per_group = (outputs + width() - 1) / width();
  tile_size = (inputs() + blocks) * width();
}

int64_t listed_rows(const Geometry& geometry, const Tiling& tiling, int sheets) {
  constexpr int64_t kMaxBytes = 1 << 22;  // input bytes listed at a time: lists take up to 16 times as much
  const int64_t rows = kMaxBytes / (sheets * std::max<int64_t>(geometry.inputs(), 1));
  return std::clamp<int64_t>(rows, 1, (tiling.blocks == 1 ? 256 : 64));
}

int64_t expanded_rows(const Geometry& geometry, int bytes) {
  constexpr int64_t kMaxBytes = 3 << 18;  // bytes of spikes expanded at a time: the L2 cache also holds digits
  const int64_t rows = kMaxBytes / (bytes * std::max<int64_t>(geometry.inputs(), 1));
  return std::clamp<int64_t>((rows + 8) / 16 * 16, 16, 128);
}

std::vector<Block> blocks_of(const Geometry& geometry, int64_t rows) {
  const int64_t width = geometry.out_width(), cuts = (width + rows - 1) / rows;
  std::vector<Block> blocks;
  int64_t row = 0;
  for (int64_t b = 0; b < geometry.batch; ++b) {
    for (int64_t y = 0; y < geometry.out_height(); ++y) {
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const int64_t x0 = width * cut / cuts, x1 = width * (cut + 1) / cuts;
        if (blocks.empty() || blocks.back().rows + x1 - x0 > rows) blocks.push_back({{}, row, 0});
        Block& block = blocks.back();
        block.strips.push_back({b, y, x0, x1, block.rows});
        block.rows += x1 - x0;
        row += x1 - x0;
      }
    }
  }
  return blocks;
}

}  // namespace tandem::cpu
