// How a spike product is cut up: rules from measurements. None of them changes a result.
#pragma once

#include "../spike_product.h"

namespace tandem::cpu {

// Depends on the shape of the weights alone, for they are packed accordingly.
struct Tiling {
  int registers;           // R: a tile is 16 R outputs
  int64_t block_channels;  // input channels per K-block
  int64_t blocks;          // K-blocks
  int64_t tiles_per_group;
  int64_t tile_size;  // int32 of one packed tile: K-blocks of [inputs + 1, 16 R], then the unit [16 R]

  Tiling(const SpikeProduct& product);

  int width() const { return 16 * registers; }
  // Channels [first, last) of K-block q within a group.
  int64_t first_channel(int64_t q) const { return q * block_channels; }
  int64_t last_channel(const SpikeProduct& product, int64_t q) const {
    const int64_t last = (q + 1) * block_channels;
    return last < product.group_channels() ? last : product.group_channels();
  }
  // Where K-block q starts in a tile.
  int64_t block_offset(const SpikeProduct& product, int64_t q) const {
    return q * (product.taps() * block_channels + 1) * width();
  }
};

// The bucket width that stands for the product by the matrix unit (spike_dense.h).
constexpr int kDense = 8;

// Rows whose lists are made at a time; rows that are expanded at a time.
int64_t block_rows(const SpikeProduct& product, const Tiling& tiling, int planes);
int64_t dense_rows(const SpikeProduct& product, int planes);

// Nonzero patterns per input byte, by bucket width.
struct Density {
  double adds[3];  // widths 1, 2, 4

  static Density measure(const uint8_t* bytes, int64_t size);
};

// The time per row and group of channels, in additions of 16 weights (1 cycle of a Xeon): additions, folding and firing,
// making the lists. The constants are rounded from times of 12 layers on an Intel processor with AVX-512 (linear and
// 3 x 3, K = 576 .. 1152, N = 64 .. 800, rates 10 .. 25%), in which the cheapest width cost at most 3% more time than the
// fastest one; that of K-blocks beyond the first, later, from 3 x 3 layers of 128 channels.
double width_cost(const SpikeProduct& product, int width, const Density& density);

// The same by the matrix unit, in the same unit of time. On a Xeon with AMX, for five layers (linear and 3 x 3, K = 288 ..
// 1152, N = 64 .. 800) at rates from 1 to 15%, layers go to the unit where it takes at most a quarter more time than
// lists, and not before it takes at most a fifth less.
double dense_cost(const SpikeProduct& product);

// The bucket width of least cost, kDense among them where there is a matrix unit.
int choose_width(const SpikeProduct& product, const Density& density, bool matrix_unit);

}  // namespace tandem::cpu
