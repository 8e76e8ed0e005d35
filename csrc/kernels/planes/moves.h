// Windows and layouts of spike planes: maximum pooling, flattening, silence at the border. No neurons here.
#pragma once

#include <cstdint>

#include "../parallel.h"

namespace tandem {

// A pooling window over images [images, height, width, channels] of bytes; padding counts as silence.
struct PoolWindow {
  int64_t images, height, width, channels;
  int64_t out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // vertical, horizontal
  bool counted;                                           // bytes are counts
};

namespace cpu {

// Each output byte is the OR of its window: a spike wherever one of the window's neurons spikes at that step. Of counts
// it is the maximum.
void max_pool(const PoolWindow& window, const uint8_t* in, uint8_t* out, ParallelFor parallel);

// [images, pixels, channels] -> [images, channels, pixels].
void to_channels_first(const uint8_t* in, int64_t images, int64_t pixels, int64_t channels, uint8_t* out,
                       ParallelFor parallel);

// [images, height, width, channels] -> [images, height + below, width + right, channels], silent where it is new.
void pad_after(const uint8_t* in, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t below,
               int64_t right, uint8_t* out, ParallelFor parallel);

}  // namespace cpu

}  // namespace tandem
