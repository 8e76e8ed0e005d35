// Windows and layouts of spike planes: maximum pooling and flattening. No neurons here.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace tandem {

// A pooling window over images [images, height, width, channels] of bytes; padding counts as silence.
struct PoolWindow {
  int64_t images, height, width, channels;
  int64_t out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // vertical, horizontal
};

namespace cpu {

// Each output byte is the OR of its window: a spike wherever one of the window's neurons spikes at that step.
void max_pool(const PoolWindow& window, const uint8_t* in, uint8_t* out, ParallelFor parallel);

// [images, pixels, channels] -> [images, channels, pixels].
void to_channels_first(const uint8_t* in, int64_t images, int64_t pixels, int64_t channels, uint8_t* out,
                       ParallelFor parallel);

}  // namespace cpu

}  // namespace tandem
