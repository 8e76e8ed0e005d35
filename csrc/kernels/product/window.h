// From sums of single steps to the product of a whole window, u = W c.
#pragma once

#include "tile.h"

namespace tandem::cpu {

// Reduces the sums of a tile, [rows, planes, 8, width], over its T steps: [rows, width], exact integers.
void add_steps(const int32_t* sums, int T, int64_t rows, int width, double* windows);

// The same for counts: the sums of their bits are worth 1, 2, 4, ..., 128.
void add_bits(const int32_t* sums, int64_t rows, int width, double* windows);

// Writes u [rows of the layer, outputs] for the rows and channels of the tile, from its sums over the window [rows,
// width].
void write_products(const Tile& tile, const double* windows, float* u, int64_t outputs);

// Fires neurons of window timing, from the sums over the window [rows, width].
void fire_sums(const Tile& tile, const double* windows, const Neuron<float>& neuron, uint8_t* open);

}  // namespace tandem::cpu
