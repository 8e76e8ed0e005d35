// Pooling and layouts of spike planes, without neurons: maximum pooling, flattening, padding.
#pragma once

#include "../layer.h"

namespace tandem {

// Pooling over images of bytes, counts or planes, with the window of a layer. Padding is silent.
struct PoolWindow {
  Geometry images;                // batch: samples times planes; outputs and groups are not used
  int64_t out_height, out_width;  // one more than the geometry's where the last window reaches beyond the end
  bool counted;
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
