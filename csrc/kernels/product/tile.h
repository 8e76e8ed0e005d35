// The innermost kernels: one tile of outputs, row by row.
#pragma once

#include "../neuron/if_neuron.h"
#include "lists.h"

namespace tandem::cpu {

// Multiplies a whole tile with one K-block by lists, and fires the neurons in registers.
void fire_lists(const Tile& tile, const SpikeLists& lists, const Neuron<float>& neuron);

// Multiplies by lists and writes the sums, [rows, sheets, 8, 16 R]. Adds to the sums in memory unless `first`.
void sum_lists(const Tile& tile, const SpikeLists& lists, int32_t* sums, bool first);

// Fires the neurons from sums in memory.
void fire_sums(const Tile& tile, const int32_t* sums, const Neuron<float>& neuron);

}  // namespace tandem::cpu
