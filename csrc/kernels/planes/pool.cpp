#include "pool.h"

#include <algorithm>
#include <cstring>

#include "../cpu/capability.h"

namespace tandem::cpu {

namespace {

TANDEM_INLINE void pool_lines(const Geometry& g, Timing timing, const uint8_t* in, uint8_t* out, int64_t begin,
                              int64_t end) {
  const int64_t height = g.out_height(), width = g.out_width();
  for (int64_t line = begin; line < end; ++line) {
    const int64_t image = line / height, y = line % height;
    for (int64_t x = 0; x < width; ++x) {
      uint8_t* pixel = out + (line * width + x) * g.channels;
      std::memset(pixel, 0, g.channels);
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const int64_t row = g.input(0, y, tap / g.kernel[1]), column = g.input(1, x, tap % g.kernel[1]);
        if (!g.has_input(0, row) || !g.has_input(1, column)) continue;
        const uint8_t* from = in + g.pixel(0, image, row, column);
        for (int64_t c = 0; c < g.channels; ++c) {
          pixel[c] = timing == Timing::kWindow ? std::max(pixel[c], from[c]) : static_cast<uint8_t>(pixel[c] | from[c]);
        }
      }
    }
  }
}

}  // namespace

void max_pool(const Geometry& images, Timing timing, const uint8_t* in, uint8_t* out, ParallelFor parallel) {
  const int64_t line = images.out_width() * images.taps() * images.channels;
  parallel_ranges(parallel, images.batch * images.out_height(), 1 + 65536 / (line + 1),
                  [&](int64_t begin, int64_t end) {
                    at_level([&](auto) TANDEM_INLINE_LAMBDA { pool_lines(images, timing, in, out, begin, end); });
                  });
}

void to_channels_first(const uint8_t* in, int64_t images, int64_t pixels, int64_t channels, uint8_t* out,
                       ParallelFor parallel) {
  const int64_t size = pixels * channels;
  parallel_ranges(parallel, images, 1 + 32768 / (size + 1), [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const uint8_t* from = in + image * size;
      uint8_t* to = out + image * size;
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t p = 0; p < pixels; ++p) to[c * pixels + p] = from[p * channels + c];
      }
    }
  });
}

}  // namespace tandem::cpu
