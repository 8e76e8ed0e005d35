// Lists of active inputs: for every row of a product, its inputs sorted by the pattern of their spikes.
//
// The steps of a plane are taken in groups of 1, 2 or 4. In a group of G steps an input has one of 2^G - 1 nonzero
// spike patterns. A (group, pattern) is a run: the list of the inputs with that pattern. The weights of each run are
// added once and the sums folded into the steps: an active input costs one row of weights per group, however many
// spikes it has.
//
//   bytes of five inputs   0b00000101  0b0  0b00100101  0b00100000  0b00000100      bit t: the spike at step t
//   groups of G = 4        steps 0..3: 5, 0, 5, 0, 4            steps 4..7: 0, 0, 2, 2, 0
//   runs                   4: {4}, 5: {0, 2}                    2: {2, 3}           all others are empty
//   sums                   step 0: run 5;  step 2: run 4 + run 5;  step 5: run 2
#pragma once

#include <cstdint>

#include "../cpu/workspace.h"
#include "../weights/tiling.h"
#include "entries.h"

namespace tandem::cpu {

// What is listed of the inputs: channels [first, last), in groups of `steps` steps; of each byte the lowest 4 or 8
// bits.
struct Listed {
  int steps = 1, bits = 8;
  int64_t first = 0, last = 0;
};

// Lists of consecutive rows: the list of row r and sheet p begins at entries + start[r * sheets + p].
struct SpikeLists {
  Listed listed;
  uint16_t* entries;
  int64_t* start;
};

// Whether receptive fields overlap, so that each input column is listed once and they concatenate their columns.
inline bool has_columns(const Geometry& geometry) { return geometry.kernel[1] > geometry.stride[1]; }

// Lists the inputs for the rows of a block, which `parallel` may divide, in the workspace.
SpikeLists build_lists(const Layer& layer, const Listed& listed, const Block& block, Workspace& workspace,
                       ParallelFor parallel);

}  // namespace tandem::cpu
