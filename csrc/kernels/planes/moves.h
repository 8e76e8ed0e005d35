// Pooling and layouts of spike planes, without neurons: maximum pooling, flattening, padding.
#pragma once

#include <cstdint>

#include "../parallel.h"

namespace tandem {

// Pooling over images [images, height, width, channels] of bytes. Padding is silent.
struct PoolWindow {
  int64_t images, height, width, channels;
  int64_t out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // vertical, horizontal
  bool counted;                                           // the bytes are counts
};

namespace cpu {

// Each output byte is the OR of its input bytes: at each step it spikes if any of them does. For counts it is their
// maximum.
void max_pool(const PoolWindow& window, const uint8_t* in, uint8_t* out, ParallelFor parallel);

// [images, pixels, channels] -> [images, channels, pixels].
void to_channels_first(const uint8_t* in, int64_t images, int64_t pixels, int64_t channels, uint8_t* out,
                       ParallelFor parallel);

// [images, height, width, channels] -> [images, height + below, width + right, channels]; the padding is silent.
void pad_after(const uint8_t* in, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t below,
               int64_t right, uint8_t* out, ParallelFor parallel);

}  // namespace cpu

}  // namespace tandem
