// The entries of lists (lists.h).
#pragma once

#include <cstdint>

#include "../weights/tiling.h"

namespace tandem::cpu {

constexpr int runs_per_plane(int steps) { return 8 / steps * ((1 << steps) - 1); }

// The product kernel loads four entries at a time, as one word, so runs are padded to whole words; an empty run has
// one.
constexpr int kWordEntries = 4;

// The entry of input k is 8 k: multiplied by an eighth of the bytes of an input's weights it is their offset. Entry 8 K
// is the row of zeros that pads runs. The lowest bit of the first entry of a word marks the last word of a run.
constexpr int64_t kEntryScale = 8;
static_assert(kMaxInputs * kEntryScale <= UINT16_MAX);
constexpr uint16_t kLastOfRun = 1;

}  // namespace tandem::cpu
