// The innermost kernels: one tile of outputs, row by row. Sums of steps are [rows, sheets, 8, 16 R], of windows [rows,
// 16 R], exact integers.
#pragma once

#include "../neuron/if_neuron.h"
#include "lists.h"

namespace tandem::cpu {

// Multiplies a whole tile with one K-block by lists, and fires the neurons in registers.
void fire_lists(const Tile& tile, const SpikeLists& lists, const Neuron& neuron);

// Multiplies by lists and writes the sums of steps. Adds to the sums in memory unless `first`.
void sum_lists(const Tile& tile, const SpikeLists& lists, int32_t* sums, bool first);

// Fires the neurons from sums of steps.
void fire_sums(const Tile& tile, const int32_t* sums, const Neuron& neuron);

// Fires neurons of window timing from the sums of the window, exact or rounded.
void fire_window_sums(const Tile& tile, const double* windows, const Neuron& neuron);
void fire_window_sums(const Tile& tile, const float* windows, const Neuron& neuron);

// The sums of the window from those of the bits of counts, [rows, 8, width], worth 1, 2, 4, ..., 128.
void add_bits(const int32_t* sums, int64_t rows, int width, double* windows);

// Writes u [rows of the layer, outputs] for the rows and channels of the tile.
void write_products(const Tile& tile, const double* windows, float* u, int64_t outputs);
void write_products(const Tile& tile, const float* windows, float* u, int64_t outputs);

// Adds to u instead. No sum is rounded: a unit is a power of two.
void add_products(const Tile& tile, const double* windows, double* u, int64_t outputs);

}  // namespace tandem::cpu
