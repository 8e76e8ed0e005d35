#include "../spike_window.h"

#include <algorithm>
#include <cstring>

#include "capability.h"

namespace tandem::cpu {

namespace {

TANDEM_INLINE void or_bytes(const uint8_t* in, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] |= in[i];
}

TANDEM_INLINE void pool_lines_body(const PoolWindow& w, const uint8_t* in, uint8_t* out, int64_t begin, int64_t end) {
  for (int64_t line = begin; line < end; ++line) {
    const int64_t image = line / w.out_height, y = line % w.out_height;
    for (int64_t x = 0; x < w.out_width; ++x) {
      uint8_t* pixel = out + (line * w.out_width + x) * w.channels;
      std::memset(pixel, 0, w.channels);
      for (int64_t i = 0; i < w.kernel[0]; ++i) {
        const int64_t row = y * w.stride[0] - w.padding[0] + i * w.dilation[0];
        if (row < 0 || row >= w.height) continue;
        for (int64_t j = 0; j < w.kernel[1]; ++j) {
          const int64_t column = x * w.stride[1] - w.padding[1] + j * w.dilation[1];
          if (column < 0 || column >= w.width) continue;
          or_bytes(in + ((image * w.height + row) * w.width + column) * w.channels, w.channels, pixel);
        }
      }
    }
  }
}
TANDEM_CPU_KERNEL(pool_lines, (const PoolWindow& w, const uint8_t* in, uint8_t* out, int64_t begin, int64_t end),
                  (w, in, out, begin, end))

}  // namespace

void max_pool(const PoolWindow& window, const uint8_t* in, uint8_t* out, ParallelFor parallel) {
  const int64_t line = window.out_width * window.channels * window.kernel[0] * window.kernel[1];
  parallel_ranges(parallel, window.images * window.out_height, 1 + 65536 / (line + 1),
                  [&](int64_t begin, int64_t end) { pool_lines(window, in, out, begin, end); });
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
