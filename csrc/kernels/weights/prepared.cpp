#include "prepared.h"

#include <algorithm>
#include <optional>

#include "../cpu/capability.h"
#include "../cpu/scratch.h"
#include "../cpu/vectors.h"
#include "pack.h"

namespace tandem::cpu {

namespace {

constexpr int64_t kLine = 64;  // every part begins at a cache line

// Whether the sums of a K-block's weights of one output fit int16: any sum lies between those of all negative and of
// all positive weights.
bool fits_int16(const int8_t* weights, int64_t lines, int64_t line_size, int64_t pitch) {
  int32_t positive = 0, negative = 0;
  for (int64_t i = 0; i < lines; ++i, weights += pitch) {
    for (int64_t k = 0; k < line_size; ++k) {
      positive += std::max<int32_t>(weights[k], 0);
      negative += std::min<int32_t>(weights[k], 0);
    }
  }
  return positive <= INT16_MAX && negative >= INT16_MIN;
}

// The number of K-blocks with which weights can be bytes that are added in int16, in half or a quarter of the loads; 0
// if a K-block had so few inputs that lists of words are as fast, and in vectors of fewer than 512 bits, where they are
// faster.
int64_t count_byte_blocks(const Geometry& geometry, const Weights& weights) {
  constexpr int64_t kFewestInputs = 256;
  const int64_t inputs = geometry.inputs(), taps = geometry.taps(), channels = geometry.group_channels();
  const bool possible = weights.dtype == DType::kInt8 && capability() == Capability::kV4;
  if (!possible || taps > kMaxInputs || channels == 1) return 0;
  const auto* data = static_cast<const int8_t*>(weights.data);
  const auto fits = [&](const Tiling& tiling) {
    for (int64_t i = 0; i < geometry.outputs * tiling.blocks; ++i) {
      const int64_t q = i % tiling.blocks, first = tiling.first_channel(q);
      const int64_t size = tiling.last_channel(q) - first;
      const int8_t* row = data + i / tiling.blocks * inputs;
      if (weights.channels_last ? !fits_int16(row + first, taps, size, channels)
                                : !fits_int16(row + first * taps, 1, size * taps, 0)) {
        return false;
      }
    }
    return true;
  };
  for (int64_t blocks = 1; blocks * kFewestInputs <= inputs; blocks *= 2) {
    if (fits(Tiling(geometry, blocks))) return blocks;
  }
  return 0;
}

// As much as any algorithm reads.
PreparedLayout whole_layout(const Geometry& geometry, const Weights& weights) {
  return {geometry, weights.dtype, count_byte_blocks(geometry, weights), true, has_digits(geometry)};
}

PreparedLayout layout_for(const Layer& layer, Algorithm algorithm) {
  const Geometry& geometry = layer.geometry;
  const DType dtype = layer.weights.dtype;
  if (layer.prepared != nullptr) {
    return {geometry, dtype, *static_cast<const int64_t*>(layer.prepared), true, has_digits(geometry)};
  }
  if (algorithm == Algorithm::kTileByTile) return {geometry, dtype, 0, false, false};
  const bool digits = algorithm == Algorithm::kDigits;
  return {geometry, dtype, count_byte_blocks(geometry, layer.weights), !digits, digits};
}

// A tile that this thread has packed just before its use.
thread_local Scratch<int32_t> own_tile;
thread_local float own_units[2 * kLanes];

// Memory of this thread for the weights of a layer.
char* own_memory(int64_t size) {
  thread_local Scratch<char> memory;
  return memory.reserve(size);
}

void write(const Geometry& geometry, const Weights& weights, const PreparedLayout& to, char* memory,
           ParallelFor parallel) {
  const TilePacker pack_one(weights, to.tiling);
  const auto positions = to.has_digits ? input_positions(geometry, to.tiling) : std::vector<int64_t>();
  *reinterpret_cast<int64_t*>(memory) = to.byte_blocks;
  constexpr int64_t kGrain = 1 << 16;  // weights worth a thread
  const int64_t size = to.tiling.tile_size, registers = to.tiling.registers;
  parallel_ranges(parallel, to.tiling.tiles(), 1 + kGrain / (size + 1), [&](int64_t begin, int64_t end) {
    thread_local Scratch<int32_t> tile_memory;
    const bool words = to.has_tiles && !to.bytes();
    int32_t* passing = words ? nullptr : tile_memory.reserve(size);
    for (int64_t i = begin; i < end; ++i) {
      char* at = memory + to.tiles + i * to.tile_bytes();
      int32_t* tile = words ? reinterpret_cast<int32_t*>(at) : passing;
      pack_one(i, tile, reinterpret_cast<float*>(memory + to.units) + i * to.tiling.width());
      if (to.has_tiles && to.bytes()) std::copy_n(tile, size, reinterpret_cast<int8_t*>(at));
      for (int64_t r = 0; to.has_digits && r < registers; ++r) {
        to.columns.pack(i * registers + r, tile + 16 * r, positions, memory + to.digits);
      }
    }
  });
}

}  // namespace

PreparedLayout::PreparedLayout(const Geometry& geometry, DType dtype, int64_t blocks, bool with_tiles, bool with_digits)
    : byte_blocks(blocks),
      tiling(geometry, blocks),
      columns(geometry, tiling, dtype),
      has_tiles(with_tiles),
      has_digits(with_digits) {
  const auto lines = [](int64_t n) { return (n + kLine - 1) / kLine * kLine; };
  units = kLine;
  tiles = units + lines(tiling.tiles() * tiling.width() * static_cast<int64_t>(sizeof(float)));
  digits = tiles + (has_tiles ? lines(tiling.tiles() * tile_bytes()) : 0);
  size = digits + (has_digits ? lines(columns.size()) : 0);
}

int64_t prepared_size(const Geometry& geometry, const Weights& weights) { return whole_layout(geometry, weights).size; }

void prepare(const Geometry& geometry, const Weights& weights, void* memory, ParallelFor parallel) {
  write(geometry, weights, whole_layout(geometry, weights), static_cast<char*>(memory), parallel);
}

const void* prepare(const Geometry& geometry, const Weights& weights, ParallelFor parallel) {
  char* memory = own_memory(prepared_size(geometry, weights));
  prepare(geometry, weights, memory, parallel);
  return memory;
}

Prepared::Prepared(const Layer& layer, Algorithm algorithm, ParallelFor parallel)
    : at_(layout_for(layer, algorithm)), memory_(static_cast<const char*>(layer.prepared)) {
  if (algorithm == Algorithm::kTileByTile) {
    pack_one_.emplace(layer.weights, at_.tiling);
  } else if (memory_ == nullptr) {
    char* own = own_memory(at_.size);
    write(layer.geometry, layer.weights, at_, own, parallel);
    memory_ = own;
  }
}

void Prepared::pack(int64_t i) const {
  if (pack_one_) (*pack_one_)(i, own_tile.reserve(tiling().tile_size), own_units);
}

Tile Prepared::tile(const Layer& layer, int64_t i, int64_t q, int64_t rows, int64_t first_row) const {
  const int64_t width = tiling().width(), group = i / tiling().tiles_per_group;
  const int64_t first = i % tiling().tiles_per_group * width;
  const char* weights = pack_one_ ? reinterpret_cast<const char*>(own_tile.data()) : tile_memory(i);
  return {rows,
          first_row,
          layer.plane_count(),
          tiling().registers,
          bytes(),
          weights + tiling().first_row(q) * width * (bytes() ? 1 : 4),
          pack_one_ ? own_units : reinterpret_cast<const float*>(memory_ + at_.units) + i * width,
          group * tiling().outputs + first,
          std::min<int64_t>(width, tiling().outputs - first)};
}

void Prepared::fetch(int64_t i) const {
  if (pack_one_ || tiling().blocks > 1) return;
  for (int64_t at = 0; at < at_.tile_bytes(); at += kLine) __builtin_prefetch(tile_memory(i) + at, 0, 2);
}

}  // namespace tandem::cpu
