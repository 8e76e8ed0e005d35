#include "prepared.h"

#include <algorithm>

#include "../cpu/capability.h"
#include "../cpu/vectors.h"

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

// Of the weights as an algorithm multiplies them; kFastest: as any does.
PreparedLayout layout_for(const Geometry& geometry, const Weights& weights, Algorithm algorithm) {
  const bool digits = algorithm == Algorithm::kDigits || (algorithm == Algorithm::kFastest && has_digits(geometry));
  return {geometry, weights.dtype, {count_byte_blocks(geometry, weights), algorithm != Algorithm::kDigits, digits}};
}

void write(const Geometry& geometry, const Weights& weights, const PreparedLayout& layout, char* memory,
           ParallelFor parallel) {
  const PreparedHeader& header = layout.header;
  const TilePacker pack_tile(weights, layout.tiling);
  const ColumnPacker pack_column(geometry, weights, layout.tiling);
  *reinterpret_cast<PreparedHeader*>(memory) = header;
  constexpr int64_t kGrain = 1 << 16;  // weights worth a thread
  const int64_t size = layout.tiling.tile_size, registers = layout.tiling.registers;
  for_workers(parallel, layout.tiling.tiles(), 1 + kGrain / (size + 1),
              [&](int64_t begin, int64_t end, Workspace& own) {
                int32_t* words = layout.bytes() ? own.take<int32_t>(size) : nullptr;
                for (int64_t i = begin; i < end; ++i) {
                  char* tile = memory + layout.tiles + i * layout.tile_bytes();
                  float* unit = reinterpret_cast<float*>(memory + layout.units) + i * layout.tiling.width();
                  if (header.has_tiles) {
                    pack_tile(i, words != nullptr ? words : reinterpret_cast<int32_t*>(tile), unit);
                    if (words != nullptr) std::copy_n(words, size, reinterpret_cast<int8_t*>(tile));
                  }
                  for (int64_t r = 0; header.has_digits && r < registers; ++r) {
                    const int64_t column = i * registers + r;
                    pack_column(column, layout.columns.cut(memory + layout.digits, column),
                                layout.columns.digits(memory + layout.digits, column), unit + 16 * r, own);
                  }
                }
              });
}

}  // namespace

PreparedLayout::PreparedLayout(const Geometry& geometry, DType dtype, const PreparedHeader& contents)
    : header(contents),
      tiling(geometry, header.byte_blocks),
      columns(geometry, dtype, tiling.tiles() * tiling.registers) {
  const auto lines = [](int64_t n) { return (n + kLine - 1) / kLine * kLine; };
  units = kLine;
  tiles = units + lines(tiling.tiles() * tiling.width() * static_cast<int64_t>(sizeof(float)));
  digits = tiles + (header.has_tiles ? lines(tiling.tiles() * tile_bytes()) : 0);
  size = digits + (header.has_digits ? lines(columns.size()) : 0);
}

int64_t prepared_size(const Geometry& geometry, const Weights& weights) {
  return layout_for(geometry, weights, Algorithm::kFastest).size;
}

void prepare(const Geometry& geometry, const Weights& weights, void* memory, ParallelFor parallel) {
  write(geometry, weights, layout_for(geometry, weights, Algorithm::kFastest), static_cast<char*>(memory), parallel);
}

const void* prepare(const Geometry& geometry, const Weights& weights, Algorithm algorithm, Workspace& workspace,
                    ParallelFor parallel) {
  const PreparedLayout layout = layout_for(geometry, weights, algorithm);
  char* memory = workspace.take<char>(layout.size);
  write(geometry, weights, layout, memory, parallel);
  return memory;
}

Prepared::Prepared(const Layer& layer, bool as_digits)
    : layout_(layer.geometry, layer.weights.dtype,
              layer.prepared == nullptr ? PreparedHeader{} : *static_cast<const PreparedHeader*>(layer.prepared)),
      columns_of_tile_(layer.geometry, layer.weights.dtype, layout_.tiling.registers),
      memory_(static_cast<const char*>(layer.prepared)) {
  if (memory_ != nullptr) return;
  if (as_digits) {
    pack_column_.emplace(layer.geometry, layer.weights, layout_.tiling);
  } else {
    pack_words_.emplace(layer.weights, layout_.tiling);
  }
}

Tile Prepared::tile(int64_t i) const {
  const int64_t width = tiling().width(), first = i % tiling().tiles_per_group * width;
  Tile tile;
  tile.number = i;
  tile.registers = tiling().registers;
  tile.bytes = bytes();
  tile.channel = i / tiling().tiles_per_group * tiling().outputs + first;
  tile.channels = std::min<int64_t>(width, tiling().outputs - first);
  if (memory_ != nullptr) {
    tile.weights = tile_memory(i);
    tile.unit = reinterpret_cast<const float*>(memory_ + layout_.units) + i * width;
  }
  return tile;
}

Tile Prepared::tile(int64_t i, Workspace& workspace) const {
  Tile tile = this->tile(i);
  if (memory_ != nullptr) return tile;
  auto* unit = workspace.take<float>(tile.width());
  tile.unit = unit;
  if (pack_words_) {
    auto* words = workspace.take<int32_t>(tiling().tile_size);
    (*pack_words_)(i, words, unit);
    tile.weights = reinterpret_cast<const char*>(words);
  } else {
    auto* memory = workspace.take<char>(columns_of_tile_.size());
    const ColumnPacker& pack_column = *pack_column_;
    for (int r = 0; r < tile.registers; ++r) {
      pack_column(i * tile.registers + r, columns_of_tile_.cut(memory, r), columns_of_tile_.digits(memory, r),
                  unit + 16 * r, workspace);
    }
    tile.weights = memory;
  }
  return tile;
}

void Prepared::fetch(int64_t i) const {
  if (memory_ == nullptr || tiling().blocks > 1) return;
  for (int64_t line = 0; line < layout_.tile_bytes(); line += kLine) {
    __builtin_prefetch(tile_memory(i) + line, 0, 2);
  }
}

}  // namespace tandem::cpu
