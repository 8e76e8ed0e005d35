// Pooling and layouts of spike trains, without neurons: maximum pooling, flattening.
#pragma once

#include "../layer.h"

namespace tandem::cpu {

// Each output byte is the OR of its input bytes: at each step it spikes if any of them does. For counts (window timing)
// it is their maximum. The batch of `images` is that of samples times sheets; outputs are not used. Padding is silent.
void max_pool(const Geometry& images, Timing timing, const uint8_t* in, uint8_t* out, ParallelFor parallel);

// [images, pixels, channels] -> [images, channels, pixels].
void to_channels_first(const uint8_t* in, int64_t images, int64_t pixels, int64_t channels, uint8_t* out,
                       ParallelFor parallel);

}  // namespace tandem::cpu
