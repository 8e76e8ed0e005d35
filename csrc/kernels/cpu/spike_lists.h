// Which inputs are active when: for every row of a product, its inputs bucketed by the pattern of their spikes.
//
// The steps of a plane are taken in groups of `width` = 1, 2 or 4. Within a group an input's spikes form one of
// 2^width - 1 nonzero patterns; each (group, pattern) is a run: the list of the inputs with that pattern. Adding up the
// weights of each run once and folding the sums costs one row of weights per input and group, however many spikes.
#pragma once

#include <cstdint>

#include "../spike_product.h"
#include "scratch.h"

namespace tandem::cpu {

constexpr int runs_per_plane(int width) { return 8 / width * ((1 << width) - 1); }

// The product kernel loads four entries at a time, as one word, so runs are padded to whole words, an empty run to one.
constexpr int kWordEntries = 4;

// An entry is 8 k for input k: in units of the tile's width a byte offset into its weights. Entry 8 K is the row of
// zeros that pads runs. The lowest bit of the first entry of a word marks the last word of a run.
constexpr int64_t kEntryScale = 8;
constexpr int64_t kMaxInputs = 65535 / kEntryScale;
constexpr uint16_t kLastOfRun = 1;

// Lists of consecutive rows: that of row r and plane p begins at entries + start[r * planes + p].
struct SpikeLists {
  Scratch<uint16_t> entries;
  Scratch<int64_t> start;
};

// Outputs [x0, x1) of line y of sample b.
struct Strip {
  int64_t b, y, x0, x1;
};

// Lists the input channels [first, last) of the image for the rows of `count` strips, which `parallel` may divide.
void build_lists(const SpikeProduct& product, int planes, int width, int64_t first, int64_t last, const Strip* strips,
                 int64_t count, SpikeLists& lists, ParallelFor parallel);

}  // namespace tandem::cpu
