// The active inputs of a linear layer: those with at least one spike. In a few rows many inputs are silent, and their
// weights need not be packed.
#pragma once

#include <vector>

#include "../cpu/capability.h"
#include "../layer.h"
#include "units.h"

#if TANDEM_MULTIVERSION
#include <immintrin.h>
#endif

namespace tandem::cpu {

struct ActiveInputs {
  int64_t inputs;               // inputs of the layer
  int64_t count;                // active inputs
  std::vector<uint16_t> masks;  // a bit per input: whether it is active
  std::vector<uint8_t> planes;  // [P, batch, count], of the active inputs

  explicit ActiveInputs(const Layer& layer);

  // Whether this layer and processor support skipping silent inputs.
  static bool possible(const Geometry& geometry);
  bool pays() const { return 8 * count < 7 * inputs; }
};

// Copies the weights of the active inputs of one row next to each other and measures the magnitudes of all weights in
// the same pass. Writes up to 16 floats beyond the last one. Prefetches into L2 the weights `ahead` elements further
// on.
#if TANDEM_MULTIVERSION
template <class E>
TANDEM_TARGET_V4 Magnitudes gather_active(const ActiveInputs& active, const E* row, int64_t ahead, float factor,
                                          float* out) {
  MagnitudeSums<kLanes> sums;
  const E* end = row + active.inputs;
  int64_t until = sums.kAtOnce;
  for (const uint16_t mask : active.masks) {
    Vec<float> floats{};
    __builtin_prefetch(row + ahead, 0, 2);
    if (end - row >= kLanes) {
      floats = load_floats<kLanes>(row);
    } else {
      for (int i = 0; i < end - row; ++i) floats[i] = load_floats<1>(row + i)[0];
    }
    sums.add(floats, factor);
    if (--until == 0) {
      sums.flush();
      until = sums.kAtOnce;
    }
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(mask, reinterpret_cast<__m512>(floats)));
    out += __builtin_popcount(mask);
    row += kLanes;
  }
  return sums.result();
}
#else
template <class E>
Magnitudes gather_active(const ActiveInputs&, const E*, int64_t, float, float*) {  // never called: possible() is false
  return {};
}
#endif

}  // namespace tandem::cpu
