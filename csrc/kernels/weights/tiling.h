// How a product is divided: tiles of outputs, K-blocks of inputs, blocks of rows. Nothing here changes a result.
#pragma once

#include <vector>

#include "../layer.h"

namespace tandem::cpu {

// The most inputs of a K-block: entries of lists name them in 16 bits (product/entries.h).
constexpr int64_t kMaxInputs = 8191;

// How the weights of a layer are divided. This depends only on their shape and the instruction set, because weights are
// prepared accordingly.
//
// A tile is 16 R consecutive outputs of a group. R is 2 with AVX-512: weights from the L3 cache then arrive faster.
// Narrower vectors gain nothing from wide tiles, which would exceed their L1 cache. A K-block is as many input channels
// as stay in the L2 cache.
struct Tiling {
  int64_t groups, outputs, channels, taps;  // of the weights; the outputs and channels of a group
  int registers;                            // R, 1 or 2
  int64_t block_channels;                   // input channels per K-block
  int64_t blocks;                           // K-blocks
  int64_t tiles_per_group;
  int64_t tile_size;  // weights of one prepared tile: K-blocks of [inputs + 1, 16 R]

  // `byte_blocks`: the number of K-blocks of int8 weights; 0: int32 weights. Depthwise weights, [outputs, 1, kernel],
  // are those of one group with one input channel.
  explicit Tiling(const Geometry& geometry, int64_t byte_blocks = 0);

  int width() const { return 16 * registers; }
  int64_t tiles() const { return groups * tiles_per_group; }
  int64_t inputs() const { return taps * channels; }
  // Channels [first, last) of K-block q within a group.
  int64_t first_channel(int64_t q) const { return q * block_channels; }
  int64_t last_channel(int64_t q) const {
    const int64_t last = (q + 1) * block_channels;
    return last < channels ? last : channels;
  }
  // The rows of a tile, one for each input, are in the order K-block, tap, channel. The last one of a K-block is zero.
  int64_t first_row(int64_t q) const { return q * (taps * block_channels + 1); }
  int64_t row(int64_t tap, int64_t channel) const {
    const int64_t q = channel / block_channels, first = first_channel(q);
    return first_row(q) + tap * (last_channel(q) - first) + channel - first;
  }
};

// A tile is 16 R consecutive output channels, to be multiplied for some rows. Its weights are [inputs + 1, 16 R], the
// last row zero.
struct Tile {
  int64_t number = 0;             // among the layer's
  int registers = 1;              // R, 1 or 2
  bool bytes = false;             // weights are int8, and their sums fit int16 (prepared.cpp); else int32
  const char* weights = nullptr;  // of one K-block
  const float* unit = nullptr;    // [16 R], the value of a sum of 1
  int64_t channel = 0;            // first output channel
  int64_t channels = 0;           // output channels that exist, at most 16 R
  int64_t rows = 0;
  int64_t first_row = 0;  // number of the first row within the layer
  int sheets = 1;         // P

  int width() const { return 16 * registers; }
  bool is_whole() const { return channels == width(); }
  // Of K-block q instead of the first.
  Tile at_block(const Tiling& tiling, int64_t q) const {
    Tile tile = *this;
    tile.weights += tiling.first_row(q) * width() * (bytes ? 1 : 4);
    return tile;
  }
  Tile for_rows(int64_t first, int64_t size) const {
    Tile tile = *this;
    tile.first_row = first;
    tile.rows = size;
    return tile;
  }
};

// The number of rows whose inputs are listed at a time, and of those whose inputs are expanded to bytes.
int64_t listed_rows(const Geometry& geometry, const Tiling& tiling, int sheets);
// bytes: per input, one for each step or one for the count.
int64_t expanded_rows(const Geometry& geometry, int bytes);

// Output pixels [x0, x1) of line y of sample b. `row` is the number of the first one within the block.
struct Strip {
  int64_t b, y, x0, x1;
  int64_t row;
};

// Consecutive strips, and the rows in them.
struct Block {
  std::vector<Strip> strips;
  int64_t first_row, rows;
};

// Cuts long output lines into strips and gathers strips into blocks of at most `rows` rows.
std::vector<Block> blocks_of(const Geometry& geometry, int64_t rows);

}  // namespace tandem::cpu
