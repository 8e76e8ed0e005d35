// The product of a whole window, u = W c.
#pragma once

#include "../weights/tiling.h"

namespace tandem::cpu {

// From the sums of the bits of counts, [rows, 8, width], worth 1, 2, 4, ..., 128: [rows, width], exact integers.
void add_bits(const int32_t* sums, int64_t rows, int width, double* windows);

// Writes u [rows of the layer, outputs] for the rows and channels of the tile, from its sums over the window [rows,
// width].
void write_products(const Tile& tile, const double* windows, float* u, int64_t outputs);

// Adds to u instead. No sum is rounded: a unit is a power of two.
void add_products(const Tile& tile, const double* windows, double* u, int64_t outputs);

// Fires neurons of window timing, from the sums over the window [rows, width].
void fire_sums(const Tile& tile, const double* windows, const Neuron<float>& neuron);

}  // namespace tandem::cpu
