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

// Which encodings of the weights there are.
struct Encodings {
  int64_t byte_blocks;  // K-blocks of tiles of bytes; 0: tiles are int32
  bool tiles, digits;
};

Encodings all(const Geometry& geometry, const Weights& weights) {
  return {count_byte_blocks(geometry, weights), true, has_digits(geometry)};
}

// The offsets of the parts of prepared weights, in bytes. A header has the number of K-blocks of bytes.
struct Parts {
  int64_t units, tiles, digits, size;

  Parts(const Geometry& geometry, const Tiling& tiling, DType dtype, const Encodings& has) {
    const int64_t count = tiling.tiles();
    const auto lines = [](int64_t n) { return (n + kLine - 1) / kLine * kLine; };
    units = kLine;
    tiles = units + lines(count * tiling.width() * static_cast<int64_t>(sizeof(float)));
    digits = tiles + (has.tiles ? lines(count * tiling.tile_size * (has.byte_blocks > 0 ? 1 : 4)) : 0);
    size = digits + (has.digits ? lines(DigitLayout(geometry, tiling, dtype).size()) : 0);
  }
};

// A tile that this thread has packed just before its use.
thread_local Scratch<int32_t> own_tile;
thread_local float own_units[2 * kLanes];

// Memory of this thread for the weights of a layer.
char* own_memory(int64_t size) {
  thread_local Scratch<char> memory;
  return memory.reserve(size);
}

void write(const Geometry& geometry, const Weights& weights, const Encodings& wanted, char* memory,
           ParallelFor parallel) {
  const Tiling tiling(geometry, wanted.byte_blocks);
  const Parts at(geometry, tiling, weights.dtype, wanted);
  const TilePacker pack_one(weights, tiling);
  std::optional<DigitPacker> digits;
  if (wanted.digits) digits.emplace(geometry, tiling, weights.dtype, memory + at.digits);
  const bool bytes = wanted.byte_blocks > 0, words = wanted.tiles && !bytes;
  *reinterpret_cast<int64_t*>(memory) = wanted.byte_blocks;
  constexpr int64_t kGrain = 1 << 16;  // weights worth a thread
  const int64_t size = tiling.tile_size;
  parallel_ranges(parallel, tiling.tiles(), 1 + kGrain / (size + 1), [&](int64_t begin, int64_t end) {
    thread_local Scratch<int32_t> tile_memory;
    int32_t* passing = words ? nullptr : tile_memory.reserve(size);
    for (int64_t i = begin; i < end; ++i) {
      int32_t* tile = words ? reinterpret_cast<int32_t*>(memory + at.tiles) + i * size : passing;
      pack_one(i, tile, reinterpret_cast<float*>(memory + at.units) + i * tiling.width());
      if (wanted.tiles && bytes) std::copy_n(tile, size, reinterpret_cast<int8_t*>(memory + at.tiles) + i * size);
      if (digits) digits->pack(i, tile);
    }
  });
}

}  // namespace

int64_t prepared_size(const Geometry& geometry, const Weights& weights) {
  const Encodings wanted = all(geometry, weights);
  return Parts(geometry, Tiling(geometry, wanted.byte_blocks), weights.dtype, wanted).size;
}

void prepare(const Geometry& geometry, const Weights& weights, void* memory, ParallelFor parallel) {
  write(geometry, weights, all(geometry, weights), static_cast<char*>(memory), parallel);
}

const void* prepare(const Geometry& geometry, const Weights& weights, ParallelFor parallel) {
  char* memory = own_memory(prepared_size(geometry, weights));
  prepare(geometry, weights, memory, parallel);
  return memory;
}

Prepared::Prepared(const Layer& layer, Algorithm algorithm, ParallelFor parallel)
    : byte_blocks_(layer.prepared != nullptr             ? *static_cast<const int64_t*>(layer.prepared)
                   : algorithm == Algorithm::kTileByTile ? 0
                                                         : count_byte_blocks(layer.geometry, layer.weights)),
      tiling_(layer.geometry, byte_blocks_),
      layout_(layer.geometry, tiling_, layer.weights.dtype) {
  if (algorithm == Algorithm::kTileByTile) {
    pack_one_.emplace(layer.weights, tiling_);
    return;
  }
  const Geometry& geometry = layer.geometry;
  const bool digits = algorithm == Algorithm::kDigits;
  const auto* from = static_cast<const char*>(layer.prepared);
  const Encodings has =
      from == nullptr ? Encodings{byte_blocks_, !digits, digits} : Encodings{byte_blocks_, true, has_digits(geometry)};
  const Parts at(geometry, tiling_, layer.weights.dtype, has);
  if (from == nullptr) {
    char* own = own_memory(at.size);
    write(geometry, layer.weights, has, own, parallel);
    from = own;
  }
  units_ = reinterpret_cast<const float*>(from + at.units);
  tiles_ = from + at.tiles;
  digits_ = from + at.digits;
}

void Prepared::pack(int64_t group, int64_t i) const {
  if (!pack_one_) return;
  (*pack_one_)(group* tiling_.tiles_per_group + i, own_tile.reserve(tiling_.tile_size), own_units);
}

Tile Prepared::tile(const Layer& layer, int64_t group, int64_t i, int64_t q, int64_t rows, int64_t first_row) const {
  const int64_t number = group * tiling_.tiles_per_group + i, first = i * tiling_.width();
  const char* weights = pack_one_ ? reinterpret_cast<const char*>(own_tile.data()) : tiles_ + number * tile_bytes();
  return {rows,
          first_row,
          layer.plane_count(),
          tiling_.registers,
          bytes(),
          weights + tiling_.first_row(q) * tiling_.width() * (bytes() ? 1 : 4),
          pack_one_ ? own_units : units_ + number * tiling_.width(),
          group * tiling_.outputs + first,
          std::min<int64_t>(tiling_.width(), tiling_.outputs - first)};
}

void Prepared::fetch(int64_t group, int64_t i) const {
  if (pack_one_ || tiling_.blocks > 1) return;
  const char* tile = tiles_ + (group * tiling_.tiles_per_group + i) * tile_bytes();
  for (int64_t at = 0; at < tile_bytes(); at += kLine) __builtin_prefetch(tile + at, 0, 2);
}

}  // namespace tandem::cpu
